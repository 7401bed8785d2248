"""The body of an inference request: JSON, and behind it the data of binary tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from serving.errors import ApiError

__all__ = [
    "MIN_TIMEOUT_US",
    "InferRequest",
    "InputTensor",
    "RequestedOutput",
    "header_length",
    "parse_request",
    "raw_request",
    "short",
]

# As in /v1: nobody could keep a shorter one.
MIN_TIMEOUT_US = 10_000


@dataclass(frozen=True, kw_only=True)
class InputTensor:
    """An input: ``binary`` has its data as they lie in the body, or else ``data`` has what the JSON holds."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    binary: memoryview | None = None
    data: Any = None


@dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """An output to return: in binary or in JSON, the tensor itself or its ``classes`` highest values (0: itself)."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """What a client asks for.

    Attributes:
        id: to be returned with the answer.
        timeout: seconds until the answer is of no use any more; ``None``: the server's own limit.
        inputs: at least one, each name once.
        outputs: each name once; ``None``: all that the model has.
        binary: whether outputs are returned in binary where the client does not say it for each.
    """

    id: str | None
    timeout: float | None
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] | None
    binary: bool


def header_length(header: str | None, body_bytes: int) -> int:
    """The bytes of JSON in a body of ``body_bytes``, by the Inference-Header-Content-Length; without it, all are.

    Raises:
        ApiError: 400, no number, or more than there are.
    """
    if header is None:
        return body_bytes
    if not (header.isascii() and header.isdecimal()) or len(header) > 15 or int(header) > body_bytes:
        raise ApiError(
            400, f"Inference-Header-Content-Length is {header[:40]!r}, but the body has {body_bytes} bytes to count."
        )
    return int(header)


def parse_request(body: memoryview, json_bytes: int) -> InferRequest:
    """Read a body whose first ``json_bytes`` are JSON.

    Raises:
        ApiError: 400, anything that the protocol does not allow, or that only an extension allows which is not offered.
    """
    try:
        content = orjson.loads(body[:json_bytes])
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ApiError(400, "The request must be a JSON object.")
    parameters = _parameters(content, "The request")
    binary = _flag(parameters, "binary_data_output", "The request")
    _refuse_sequences(parameters)
    return InferRequest(
        id=_id(content),
        timeout=_timeout(parameters),
        inputs=_inputs(content, body[json_bytes:]),
        outputs=_outputs(content, binary),
        binary=binary,
    )


def raw_request(body: memoryview, name: str, shape: tuple[int, ...]) -> InferRequest:
    """A body without JSON, which a header length of 0 announces: the FP32 input called ``name``, and every output in
    binary (Triton's "raw binary request")."""
    tensor = InputTensor(name=name, datatype="FP32", shape=shape, binary=body)
    return InferRequest(id=None, timeout=None, inputs=(tensor,), outputs=None, binary=True)


def short(text: str) -> str:
    """``text`` in quotes, cut where a client made it long."""
    return repr(text if len(text) <= 80 else text[:80] + "...")


def _id(content: Mapping[str, Any]) -> str | None:
    value = content.get("id")
    if value is not None and not isinstance(value, str):
        raise ApiError(400, "The request's id must be text.")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """The parameter is in microseconds; 0 stands for none, as in Triton."""
    microseconds = _whole(parameters, "timeout", "The request")
    if microseconds and microseconds < MIN_TIMEOUT_US:
        raise ApiError(
            400, f"The request has a timeout of {microseconds} microseconds; allow {MIN_TIMEOUT_US}, or 0: none."
        )
    _whole(parameters, "priority", "The request")  # all requests have the same: it is checked and changes nothing
    return microseconds / 1e6 if microseconds else None


def _refuse_sequences(parameters: Mapping[str, Any]) -> None:
    if any(parameters.get(name) for name in ("sequence_id", "sequence_start", "sequence_end")):
        raise ApiError(400, "The models keep no state between requests; leave sequence_id out.")


def _inputs(content: Mapping[str, Any], binary: memoryview) -> tuple[InputTensor, ...]:
    entries = _entries(content, "inputs")
    if not entries:
        raise ApiError(400, "The request has no inputs.")
    tensors: list[InputTensor] = []
    position = 0
    for name, entry in entries.items():
        where = f"The input {short(name)}"
        size = _whole(_parameters(entry, where), "binary_data_size", where)
        if size is not None and position + size > len(binary):
            raise ApiError(400, f"{where} needs {size} bytes of binary data, but only {len(binary) - position} follow.")
        tensors.append(_input(name, entry, where, None if size is None else binary[position : position + size]))
        position += size or 0
    if position < len(binary):
        raise ApiError(400, f"{len(binary) - position} bytes follow that belong to no input.")
    return tuple(tensors)


def _input(name: str, entry: Mapping[str, Any], where: str, binary: memoryview | None) -> InputTensor:
    datatype, shape, data = entry.get("datatype"), entry.get("shape"), entry.get("data")
    if not isinstance(datatype, str):
        raise ApiError(400, f"{where} has no datatype.")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ApiError(400, f"{where} needs a shape: a list of whole numbers, none negative.")
    if (binary is None) == (data is None):
        raise ApiError(400, f"{where} needs either data or binary_data_size.")
    return InputTensor(name=name, datatype=datatype, shape=tuple(shape), binary=binary, data=data)


def _outputs(content: Mapping[str, Any], binary: bool) -> tuple[RequestedOutput, ...] | None:
    if content.get("outputs") is None:
        return None
    outputs: list[RequestedOutput] = []
    for name, entry in _entries(content, "outputs").items():
        where = f"The output {short(name)}"
        parameters = _parameters(entry, where)
        outputs.append(
            RequestedOutput(
                name=name,
                binary=_flag(parameters, "binary_data", where, default=binary),
                classes=_whole(parameters, "classification", where) or 0,
            )
        )
    return tuple(outputs) or None


def _entries(content: Mapping[str, Any], field: str) -> dict[str, dict[str, Any]]:
    """Name -> tensor of the list ``field``, in its order."""
    entries = content.get(field, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ApiError(400, f"The request's {field} must be a list of objects.")
    named: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise ApiError(400, f"One of the request's {field} has no name.")
        if name in named:
            raise ApiError(400, f"The request's {field} have {short(name)} twice.")
        named[name] = entry
    return named


def _parameters(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ApiError(400, f"{where} has parameters that are not an object.")
    if any(name.startswith("shared_memory_") for name in parameters):
        raise ApiError(400, f"{where} is in shared memory, which this server does not read; send the data themselves.")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, where: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(400, f"{where} has a {name} that is neither true nor false.")
    return value


def _whole(parameters: Mapping[str, Any], name: str, where: str) -> int | None:
    value = parameters.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise ApiError(400, f"{where} has a {name} that is not a whole number from 0.")
    return value
