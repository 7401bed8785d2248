"""Read, and change, what an ONNX file says about itself without the ``onnx`` package and without decoding its tensors.

An ONNX file is one protobuf message, ``ModelProto``. Walking its top-level fields is enough to tell a truncated or
foreign file from a whole one, to collect ``metadata_props`` and to see whether the file carries model-local functions;
one level deeper are the domains of the graph's nodes. Tensors are looked for at every depth, because one that says that
its numbers are in another file would have a runtime read whatever file it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.description import ModelDescription

__all__ = ["OnnxFile", "read_onnx_file", "replace_metadata"]

# Field numbers of onnx.proto, fixed by the format.
_MODEL_GRAPH = 7
_MODEL_METADATA_PROPS = 14
_MODEL_FUNCTIONS = 25
_GRAPH_NODE = 1
_GRAPH_INPUT = 11
_GRAPH_OUTPUT = 12
_VALUE_NAME = 1
_NODE_DOMAIN = 7
_ENTRY_KEY = 1
_ENTRY_VALUE = 2
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14

# Where tensors can be: message -> number of a field -> the message in it.
_WAYS_TO_TENSORS: Mapping[str, Mapping[int, str]] = {
    "model": {_MODEL_GRAPH: "graph", 20: "training", _MODEL_FUNCTIONS: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {_GRAPH_NODE: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_PROTOBUF_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """One read of a file: what is described is what is run, even if the file is replaced meanwhile.

    Attributes:
        path: where it was read.
        content: the whole file.
        description: what its metadata says.
        has_functions: whether it carries model-local functions (a flat graph does not).
        domains: operator domains of the graph's nodes; "" is ONNX's own.
    """

    path: Path
    content: bytes
    description: ModelDescription
    has_functions: bool
    domains: frozenset[str]


def read_onnx_file(path: Path) -> OnnxFile:
    """Read a self-describing ONNX file.

    Raises:
        ModelFileError: missing, not a regular file, unreadable, empty, truncated, not ONNX, without a description, or
            with tensors in other files.
    """
    path = Path(path)
    content = _read(path)
    try:
        fields = list(_fields(memoryview(content)))
        external = any(map(_is_external, _tensors(memoryview(content))))
        metadata = dict(_entry(value) for number, value in fields if number == _MODEL_METADATA_PROPS)
        graphs = [value for number, value in fields if number == _MODEL_GRAPH]
        domains = frozenset(domain for graph in graphs for domain in _domains(graph))
        for graph in graphs:
            _check_names(graph)
    except ValueError as error:
        raise ModelFileError(f"{path} is truncated or not an ONNX file ({error}); export it again.") from error
    numbers = {number for number, _ in fields}
    if _MODEL_GRAPH not in numbers:
        raise ModelFileError(f"{path} is not an ONNX file (it has no graph); make one with cbn-export.")
    if external:
        raise ModelFileError(f"{path} keeps tensors in other files, which are not read; export it again.")
    try:
        description = ModelDescription.from_metadata(metadata)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return OnnxFile(
        path=path,
        content=content,
        description=description,
        has_functions=_MODEL_FUNCTIONS in numbers,
        domains=domains,
    )


def replace_metadata(content: bytes, entries: Mapping[str, str]) -> bytes:
    """The file with these ``metadata_props`` in place of those of the same keys; every other byte stays as it is.

    Raises:
        ValueError: ``content`` is not a whole protobuf message.
    """
    view = memoryview(content)
    kept: list[bytes | memoryview] = [
        view[start:end]
        for number, start, payload, end in _spans(view)
        if number != _MODEL_METADATA_PROPS or _entry(view[payload:end])[0] not in entries
    ]
    for key, value in entries.items():
        entry = _encode(_ENTRY_KEY, key.encode()) + _encode(_ENTRY_VALUE, value.encode())
        kept.append(_encode(_MODEL_METADATA_PROPS, entry))
    return b"".join(kept)


def _read(path: Path) -> bytes:
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give the path of a model.onnx made by cbn-export.")
    if not path.is_file():  # a folder, or a pipe whose reader would wait forever
        raise ModelFileError(f"{path} is not a regular file; give the path of a model.onnx made by cbn-export.")
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelFileError(f"{path} is empty (0 bytes); export it again.")
        if size > _MAX_PROTOBUF_BYTES:
            raise ModelFileError(f"{path} has {size} bytes, more than an ONNX file can have (2 GiB).")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (field number, payload) of one protobuf message; payloads of scalar fields are empty.

    Raises:
        ValueError: the bytes are not a whole protobuf message.
    """
    for number, _, payload, end in _spans(message):
        yield number, message[payload:end]


def _spans(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """The same as positions: (field number, where the field begins, where its payload begins, where both end)."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        payload = position
        if number == 0 or tag >> 32:  # of more than 32 bits some readers see the lower ones only: another field
            raise ValueError(f"field number {number} at byte {payload}")
        if wire_type == _VARINT:
            _, position = _varint(message, position)
            payload = position
        elif wire_type == _BYTES:
            length, payload = _varint(message, position)
            position = payload + length
        elif wire_type in (_FIXED64, _FIXED32):
            position = payload = position + (8 if wire_type == _FIXED64 else 4)
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {payload}")
        if position > len(message):
            raise ValueError(f"it ends {position - len(message)} bytes early")
        yield number, start, payload, position


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(message):
            raise ValueError("it ends inside a number")
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"a number at byte {position} does not end")


def _encode(number: int, payload: bytes) -> bytes:
    """A field of bytes."""
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(payload)) + payload


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _domains(graph: memoryview) -> Iterator[str]:
    """The operator domain of every node of a GraphProto, subgraphs aside."""
    for number, node in _fields(graph):
        if number == _GRAPH_NODE:
            yield next((str(value, "utf-8") for field, value in _fields(node) if field == _NODE_DOMAIN), "")


def _check_names(graph: memoryview) -> None:
    """Demand UTF-8 of the inputs' and outputs' names, which answers carry; runtimes pass on whatever is there."""
    for number, value in _fields(graph):
        if number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            for field, name in _fields(value):
                if field == _VALUE_NAME:
                    str(name, "utf-8")


def _tensors(model: memoryview) -> Iterator[memoryview]:
    """Every TensorProto of a ModelProto: of graphs, their subgraphs, functions and training."""
    waiting = [("model", model)]  # not a recursion: a file may nest more deeply than Python can
    while waiting:
        kind, message = waiting.pop()
        ways = _WAYS_TO_TENSORS[kind]
        for number, payload in _fields(message):
            if ways.get(number) == "tensor":
                yield payload
            elif number in ways:
                waiting.append((ways[number], payload))


def _is_external(tensor: memoryview) -> bool:
    """Whether a TensorProto says that its numbers are in another file, or says anything about such a file."""
    inside = _encode_varint(_TENSOR_DATA_LOCATION << 3 | _VARINT) + b"\0"
    return any(
        number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and tensor[start:end] != inside)
        for number, start, _, end in _spans(tensor)
    )


def _entry(message: memoryview) -> tuple[str, str]:
    """(key, value) of a StringStringEntryProto."""
    texts = {number: str(value, "utf-8") for number, value in _fields(message)}
    return texts.get(_ENTRY_KEY, ""), texts.get(_ENTRY_VALUE, "")
