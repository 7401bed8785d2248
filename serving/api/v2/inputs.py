"""From the inputs of a request to what the model, or before it the decoder, is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.api.v2.request import InferRequest, InputTensor, short
from serving.api.v2.signature import ENCODED_INPUT, INPUT
from serving.api.v2.tensors import bytes_from_binary, floats_from_binary, floats_from_json
from serving.errors import ApiError

__all__ = ["read_input"]


def read_input(
    request: InferRequest, image_shape: tuple[int, int, int], max_images: int
) -> NDArray[np.float32] | list[bytes]:
    """The request's images: float32 (n, 3, H, W) of finite values, or n encoded files; 1 <= n <= ``max_images``.

    Args:
        request: has ``images`` (FP32) or, as files, ``image_bytes`` (BYTES), and nothing else.
        image_shape: (3, H, W) of the model.
        max_images: bounds the answer, which may be much larger than the request.

    Raises:
        ApiError: 400, unknown, missing or several inputs, or one that is not as the model wants it; 413, too many.
    """
    for tensor in request.inputs:
        if tensor.name not in (INPUT, ENCODED_INPUT):
            raise ApiError(400, f"The model has no input {short(tensor.name)}; its input is '{INPUT}'.")
    if len(request.inputs) > 1:
        raise ApiError(400, f"The request has both '{INPUT}' and '{ENCODED_INPUT}'; send one of them.")
    tensor = request.inputs[0]
    try:
        if tensor.name == ENCODED_INPUT:
            return _files(tensor, max_images)
        return _images(tensor, image_shape, max_images)
    except ValueError as error:
        raise ApiError(400, f"The input '{tensor.name}' {error}.") from None


def _images(tensor: InputTensor, image_shape: tuple[int, int, int], max_images: int) -> NDArray[np.float32]:
    if tensor.datatype != "FP32":
        raise ValueError(f"is FP32, not {short(tensor.datatype)}; convert it before sending")
    if len(tensor.shape) != 4 or tensor.shape[1:] != image_shape:
        sizes = ", ".join(map(str, image_shape))
        raise ValueError(f"must have the shape [n, {sizes}], not {_brief(tensor.shape)}")
    _check_count(tensor, max_images)
    if tensor.binary is not None:
        images = floats_from_binary(tensor.binary, tensor.shape)
    else:
        images = floats_from_json(tensor.data, tensor.shape)
    if not np.isfinite(images).all():
        raise ValueError("has NaN, infinite or too large values; send finite float32 numbers")
    return images


def _files(tensor: InputTensor, max_images: int) -> list[bytes]:
    if tensor.datatype != "BYTES":
        raise ValueError(f"is BYTES, not {short(tensor.datatype)}")
    if not (len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)):
        raise ValueError(f"must have the shape [n] or [n, 1], not {_brief(tensor.shape)}")
    if tensor.binary is None:
        raise ValueError("cannot be sent as JSON text; send it as binary data")
    _check_count(tensor, max_images)
    return bytes_from_binary(tensor.binary, tensor.shape[0])


def _check_count(tensor: InputTensor, max_images: int) -> None:
    if tensor.shape[0] < 1:
        raise ValueError("has no images")
    if tensor.shape[0] > max_images:
        raise ApiError(413, f"The request has {tensor.shape[0]} images; send at most {max_images} at once.")


def _brief(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    return text if len(text) <= 80 else f"{text[:80]}..."
