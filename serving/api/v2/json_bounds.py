"""How much JSON a request for inference can need: more is refused unread, as nobody else moves while it is parsed."""

from __future__ import annotations

from dataclasses import dataclass

from serving.errors import ApiError

__all__ = ["JsonBounds"]

# A number has up to 24 characters, and a line of its own where somebody lays out JSON for people to read.
_BYTES_A_NUMBER = 64
# Names, shapes, parameters, outputs: all there is besides data.
_OTHER_BYTES = 64 * 2**10
_OTHER_LISTS = 4 * 2**10


@dataclass(frozen=True, kw_only=True)
class JsonBounds:
    """Bounds for the requests to one model.

    Attributes:
        max_bytes: of JSON that has the data in it.
        max_lists: lists and objects in it. Empty ones take ten times as long to parse as numbers of the same length.
    """

    max_bytes: int
    max_lists: int

    @classmethod
    def of(cls, image_shape: tuple[int, int, int], max_images: int) -> JsonBounds:
        """The bounds where a request has up to ``max_images`` images of ``image_shape``, (3, H, W), flat or nested."""
        channels, height, width = image_shape
        numbers, lists = channels * height * width, 1 + channels * (1 + height)
        return cls(
            max_bytes=max_images * numbers * _BYTES_A_NUMBER + _OTHER_BYTES,
            max_lists=max_images * lists + _OTHER_LISTS,
        )

    def check(self, body: memoryview, json_bytes: int) -> None:
        """Look at a body whose first ``json_bytes`` are JSON.

        Raises:
            ApiError: 413, more bytes than a request can need, which is little where the data follow in binary; 400, too
                many lists.
        """
        limit = self.max_bytes if json_bytes == len(body) else _OTHER_BYTES
        if json_bytes > limit:
            raise ApiError(413, f"The request has more than {limit} bytes of JSON; send fewer images, or binary data.")
        text = bytes(body[:json_bytes])
        if text.count(b"[") + text.count(b"{") > self.max_lists:
            raise ApiError(400, "The request has more lists and objects in its JSON than the model's images have rows.")
