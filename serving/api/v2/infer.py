"""`/v2/models/{model}/infer`: tensors in, tensors out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from cbn_deploy.runtime import Prediction
from serving.api.v2.answer import Answer, encode_answer, json_values, requested_outputs
from serving.api.v2.compression import Coding, accepted_coding, compress, content_coding, decompress
from serving.api.v2.inputs import read_input
from serving.api.v2.json_bounds import JsonBounds
from serving.api.v2.request import InferRequest, RequestedOutput, header_length, parse_request, raw_request
from serving.api.v2.schemas import INFER_BODY, INFER_RESPONSES, InferResponse
from serving.api.v2.signature import INPUT
from serving.body import read_body
from serving.classification import Classification
from serving.connection import while_connected
from serving.models import ServedModel
from serving.services import Services, ServicesOf
from serving.timeouts import answer_within

__all__ = ["router"]

router = APIRouter(prefix="/v2")

_HEADER_LENGTH = "Inference-Header-Content-Length"
_ALIGNMENT = 16

# What takes longer than about a millisecond would keep every other client waiting, so a thread does it.
_INLINE_JSON_BYTES = 64 * 2**10
_INLINE_BODY_BYTES = 4 * 2**20
_INLINE_JSON_VALUES = 16 * 2**10
_INLINE_COMPRESS_BYTES = 16 * 2**10


@router.post(
    "/models/{model}/infer",
    response_model=InferResponse,
    responses=INFER_RESPONSES,
    openapi_extra=INFER_BODY,
)
async def infer(request: Request, model: str, services: ServicesOf) -> Response:
    """Classify the tensor `images` or the files `image_bytes`: logits and, where the model returns them, posteriors."""
    return await _infer(request, services.registry.get(model), services)


@router.post(
    "/models/{model}/versions/{version}/infer",
    response_model=InferResponse,
    responses=INFER_RESPONSES,
    openapi_extra=INFER_BODY,
)
async def infer_with_version(request: Request, model: str, version: str, services: ServicesOf) -> Response:
    """The same by this version of the model."""
    return await _infer(request, services.registry.get(model, version), services)


async def _infer(request: Request, served: ServedModel, services: Services) -> Response:
    with services.admission.admit(served):
        work = Classification(request, served, services)
        coding = content_coding(request.headers.get("content-encoding", ""))
        packed = await _read(request, services)
        arrived, most = asyncio.get_running_loop().time(), services.settings.timeout
        async with while_connected(request), answer_within(most):
            bounds = JsonBounds.of(_image_shape(served), services.settings.max_images)
            body = packed if coding is None else await _unpack(packed, coding, request, bounds, services)
            parsed, given = await _parse(body, request, bounds, served, services)
            # What a client allows is known only now.
            async with answer_within(min(parsed.timeout or math.inf, most), since=arrived):
                outputs = requested_outputs(parsed, served)
                images = given if isinstance(given, np.ndarray) else await work.decode(given)
                predicted = await work.predict(images)
                answer = await _encode(parsed, served, outputs, predicted.prediction, services)
                return await _respond(answer, request, services)


async def _read(request: Request, services: Services) -> memoryview:
    """The body as it came."""
    text = request.headers.get(_HEADER_LENGTH, "")
    # So that the tensor behind the JSON is aligned and need not be copied; a wrong length is refused later.
    front = -int(text[-4:]) % _ALIGNMENT if text.isascii() and text.isdecimal() else 0
    return await read_body(request, services.settings.max_upload_bytes, services.settings.upload_timeout, front=front)


async def _unpack(
    body: memoryview, coding: Coding, request: Request, bounds: JsonBounds, services: Services
) -> memoryview:
    most = services.settings.max_upload_bytes
    # Without that header all of it is JSON.
    limit = most if request.headers.get(_HEADER_LENGTH) else min(most, bounds.max_bytes)
    return await services.decoder.run(decompress, body, coding, limit)


async def _parse(
    body: memoryview, request: Request, bounds: JsonBounds, served: ServedModel, services: Services
) -> tuple[InferRequest, NDArray[np.float32] | list[bytes]]:
    json_bytes = header_length(request.headers.get(_HEADER_LENGTH), len(body))
    shape = _image_shape(served)

    def parse() -> tuple[InferRequest, NDArray[np.float32] | list[bytes]]:
        bounds.check(body, json_bytes)
        parsed = parse_request(body, json_bytes) if json_bytes or not body else raw_request(body, INPUT, (1, *shape))
        return parsed, read_input(parsed, shape, services.settings.max_images)

    if json_bytes <= _INLINE_JSON_BYTES and len(body) <= _INLINE_BODY_BYTES:
        return parse()
    return await services.decoder.run(parse)


def _image_shape(served: ServedModel) -> tuple[int, int, int]:
    size = served.description.preprocessing
    return 3, size.height, size.width


async def _encode(
    parsed: InferRequest,
    served: ServedModel,
    outputs: Sequence[RequestedOutput],
    prediction: Prediction,
    services: Services,
) -> Answer:
    if json_values(outputs, prediction) <= _INLINE_JSON_VALUES:
        return encode_answer(parsed, served, outputs, prediction)
    return await services.decoder.run(encode_answer, parsed, served, outputs, prediction)


async def _respond(answer: Answer, request: Request, services: Services) -> Response:
    body, headers = answer.body, {}
    if answer.json_bytes is not None:
        headers[_HEADER_LENGTH] = str(answer.json_bytes)
    coding = accepted_coding(request.headers.get("accept-encoding", ""))
    if coding is not None:
        headers["Content-Encoding"] = coding
        if len(body) <= _INLINE_COMPRESS_BYTES:
            body = compress(body, coding)
        else:
            body = await services.decoder.run(compress, body, coding)
    kind = "application/json" if answer.json_bytes is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=kind)
