"""The protocol's JSON objects, as clients read them in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from serving.api.schemas import v2_errors
from serving.api.v2.request import MIN_TIMEOUT_US

__all__ = ["INFER_BODY", "INFER_RESPONSES", "InferResponse"]


class ResponseOutput(BaseModel):
    """An output: with data here, or behind the JSON."""

    name: str
    datatype: str = Field(description="FP32, or BYTES after a classification.")
    shape: list[int]
    parameters: dict[str, int] | None = Field(default=None, description="binary_data_size, where the data follow.")
    data: list[float | str | None] | None = Field(default=None, description="Flat, row by row; null is not finite.")


class InferResponse(BaseModel):
    """The outputs, in the order in which they were asked for."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_COUNT = {"type": "integer", "minimum": 0}
_TIMEOUT = {
    "description": "Microseconds; 0: none.",
    "anyOf": [{"const": 0}, {"type": "integer", "minimum": MIN_TIMEOUT_US}],
}
_SHAPE = {"type": "array", "items": _COUNT}
_INPUT = _object(
    ["name", "datatype", "shape"],
    name={"enum": ["images", "image_bytes"]},
    datatype={"enum": ["FP32", "BYTES"]},
    shape=_SHAPE,
    parameters=_object([], binary_data_size=_COUNT),
    data={"type": "array", "items": {}, "description": "Numbers, flat or nested, row by row."},
)
_OUTPUT = _object(
    ["name"],
    name={"type": "string"},
    parameters=_object([], binary_data={"type": "boolean"}, classification=_COUNT),
)
_REQUEST = _object(
    ["inputs"],
    id={"type": "string"},
    parameters=_object([], timeout=_TIMEOUT, binary_data_output={"type": "boolean"}),
    inputs={"type": "array", "minItems": 1, "maxItems": 1, "items": _INPUT},
    outputs={"type": "array", "items": _OUTPUT},
)
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

INFER_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}, **_BINARY}},
}
INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": _BINARY},
    **v2_errors(400, 401, 404, 408, 413, 415, 422, 500, 503, 504),
}
