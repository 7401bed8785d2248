"""From a prediction to the body of an inference response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cbn_deploy.runtime import Prediction
from serving.api.finite import require_finite
from serving.api.v2.request import InferRequest, RequestedOutput, short
from serving.api.v2.signature import LOGITS, POSTERIOR_PREFIX, output_tensors
from serving.api.v2.tensors import bytes_to_binary, floats_to_binary
from serving.errors import ApiError
from serving.models import ServedModel

__all__ = ["Answer", "encode_answer", "json_values", "requested_outputs", "top_classes"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response's body; ``json_bytes`` of it are JSON, and binary data follow if that is not ``None``."""

    body: bytes
    json_bytes: int | None


def requested_outputs(request: InferRequest, model: ServedModel) -> tuple[RequestedOutput, ...]:
    """What to return: what the request names, else all that the model has.

    Raises:
        ApiError: 400, an output that the model does not have, or classes of one that is not the logits.
    """
    names = [tensor.name for tensor in output_tensors(model)]
    if request.outputs is None:
        return tuple(RequestedOutput(name=name, binary=request.binary) for name in names)
    for output in request.outputs:
        if output.name not in names:
            raise ApiError(400, f"{model.name} has no output {short(output.name)}; GET /v2/models/{model.name}.")
        if output.classes and output.name != LOGITS:
            raise ApiError(400, f"classification applies to '{LOGITS}', not to '{output.name}'.")
    return request.outputs


def json_values(outputs: Sequence[RequestedOutput], prediction: Prediction) -> int:
    """How many numbers :func:`encode_answer` will write as text."""
    return sum(_tensor(output.name, prediction).size for output in outputs if not output.binary)


def encode_answer(
    request: InferRequest, model: ServedModel, outputs: Sequence[RequestedOutput], prediction: Prediction
) -> Answer:
    """The response to ``request``: its outputs in the order in which they were asked for.

    Raises:
        ApiError: 500, logits whose highest are asked for are not finite; tensors are returned as they are.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    for output in outputs:
        entry, data = _encode(output, _tensor(output.name, prediction), model.description.class_names)
        described.append(entry)
        if data is not None:
            binary.append(data)
    content: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": described}
    if request.id is not None:
        content["id"] = request.id
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(output.binary for output in outputs):
        return Answer(body=text, json_bytes=None)
    return Answer(body=b"".join([text, *binary]), json_bytes=len(text))


def top_classes(logits: NDArray[np.float32], class_names: Sequence[str], count: int) -> list[list[str]]:
    """``value:index:label`` of the ``count`` highest logits (all, if there are fewer) of each image (n, K), best first.

    The value is the logit, in as few digits as give the float32 back. Equal ones keep the classes' order.

    Raises:
        ApiError: 500, they are not all finite.
    """
    require_finite(logits)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [f"{row[index]!s}:{index}:{class_names[index]}" for index in order]
        for row, order in zip(logits, best, strict=True)
    ]


def _encode(
    output: RequestedOutput, tensor: NDArray[np.float32], class_names: Sequence[str]
) -> tuple[dict[str, Any], bytes | memoryview | None]:
    """The output's entry in the JSON, and its binary data if it has any."""
    if output.classes:
        rows = top_classes(tensor, class_names, output.classes)
        shape, datatype = [len(rows), len(rows[0])], "BYTES"
        values: Any = [text for row in rows for text in row]
    else:
        shape, datatype, values = list(tensor.shape), "FP32", np.ascontiguousarray(tensor).reshape(-1)
    entry = {"name": output.name, "datatype": datatype, "shape": shape}
    if not output.binary:
        return {**entry, "data": values}, None
    data = bytes_to_binary(text.encode() for text in values) if output.classes else floats_to_binary(values)
    return {**entry, "parameters": {"binary_data_size": len(data)}}, data


def _tensor(name: str, prediction: Prediction) -> NDArray[np.float32]:
    return prediction.logits if name == LOGITS else prediction.posteriors[name.removeprefix(POSTERIOR_PREFIX)]
