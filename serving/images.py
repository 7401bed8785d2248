"""From a request's body to the model's input array: read within bounds, then decode off the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from cbn_deploy.errors import ImageError
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import ImageLimits, decode_image, preprocess
from serving.body import read_body
from serving.errors import ApiError
from serving.multipart import parse_multipart
from serving.settings import ServingSettings

__all__ = ["Decoder", "Upload", "read_upload", "split_upload", "which_image"]

P = ParamSpec("P")
T = TypeVar("T")

_FIELD = "image"
_INLINE_FORM_BYTES = 64 * 2**10


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The body of a request: an image file, or a form of them, whose boundary is in its Content-Type."""

    body: bytes
    content_type: str
    is_form: bool


async def read_upload(request: Request, settings: ServingSettings) -> Upload:
    """The whole body of a request that may hold images.

    Raises:
        ApiError: 400 unfinished body, 408 too slow, 413 too many bytes, 415 another media type.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    is_form = media_type == "multipart/form-data"
    _check_media_type(request, media_type, is_form)
    body = bytes(await read_body(request, settings.max_upload_bytes, settings.upload_timeout))
    return Upload(body=body, content_type=content_type, is_form=is_form)


async def split_upload(upload: Upload, max_images: int, decoder: Decoder) -> list[bytes]:
    """The image files in an upload: the parts named ``image`` of a form, or the body itself; at least one, none empty.

    Raises:
        ApiError: 400 malformed form, 413 too many images, 422 no image, an empty one, or another field.
    """
    images = await _split(upload, max_images, decoder) if upload.is_form else [upload.body]
    for number, image in enumerate(images, start=1):
        if not image:
            raise ApiError(
                422, f"{which_image(number, len(images))} is empty (0 bytes); send a JPEG, PNG, WebP or BMP file."
            )
    return images


def which_image(number: int, count: int) -> str:
    """What a sentence that is about image ``number`` of ``count``, counted from 1, begins with."""
    return "The image" if count == 1 else f"Image {number} of {count}"


class Decoder:
    """Decodes and preprocesses in ``threads`` threads of its own, so that the event loop keeps answering."""

    def __init__(self, threads: int, limits: ImageLimits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in one of the threads."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def decode(self, images: Sequence[bytes], preprocessing: Preprocessing) -> NDArray[np.float32]:
        """Image files -> float32 (B, 3, H, W).

        Raises:
            ImageError: of the first image that is too large, of another format or damaged; it says which one.
        """
        if len(images) == 1:
            return (await self.run(self._decode_one, images[0], preprocessing, ""))[None]
        count = len(images)
        jobs = [
            asyncio.ensure_future(self.run(self._decode_one, image, preprocessing, f"{which_image(number, count)}: "))
            for number, image in enumerate(images, start=1)
        ]
        try:
            return np.stack(await asyncio.gather(*jobs))
        finally:
            for job in jobs:  # after a failure or a timeout the rest need not be decoded
                job.cancel()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode_one(self, content: bytes, preprocessing: Preprocessing, prefix: str) -> NDArray[np.float32]:
        try:
            return preprocess(decode_image(content, self._limits), preprocessing)
        except ImageError as error:
            raise type(error)(f"{prefix}{error}") from error


def _check_media_type(request: Request, media_type: str, is_form: bool) -> None:
    if not is_form and not media_type.startswith("image/"):
        raise ApiError(
            415,
            f"The Content-Type is {media_type[:80] or 'missing'}; send multipart/form-data with the field '{_FIELD}', "
            "or an image file as the body with its own type, such as image/png.",
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(415, f"The Content-Encoding {encoding[:80]} is not supported; send the image as it is.")


async def _split(form: Upload, max_images: int, decoder: Decoder) -> list[bytes]:
    """The images of a form; a large one is taken apart in a thread, a small one costs less than waking a thread."""
    if len(form.body) <= _INLINE_FORM_BYTES:
        return _form_images(form.body, form.content_type, max_images)
    return await decoder.run(_form_images, form.body, form.content_type, max_images)


def _form_images(body: bytes, content_type: str, max_images: int) -> list[bytes]:
    parts = parse_multipart(body, content_type, max_images)
    for part in parts:
        if part.name != _FIELD:
            raise ApiError(422, f"The form has a field {part.name[:80]!r}; the images go into '{_FIELD}'.")
    if not parts:
        raise ApiError(422, f"The form has no field '{_FIELD}'; send at least one image.")
    return [bytes(part.content) for part in parts]
