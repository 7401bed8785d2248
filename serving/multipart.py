"""Parse a ``multipart/form-data`` body that has arrived whole.

Starlette's parser spools to disk and takes a body that ends early for a shorter form; here both are errors or absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from serving.errors import ApiError

__all__ = ["Part", "parse_multipart"]

# A boundary has at most 70 characters (RFC 2046, 5.1.1); the time to find it grows with the square of the length.
_MAX_CONTENT_TYPE = 2**10


@dataclass
class Part:
    """One part of a form: the field's name and its bytes."""

    name: str = ""
    content: bytearray = field(default_factory=bytearray)


def parse_multipart(body: bytes, content_type: str, max_parts: int) -> list[Part]:
    """The parts of ``body``, in order.

    Raises:
        ApiError: 400, a Content-Type that is too long or has no boundary, or a malformed or unfinished body; 413, more
            than ``max_parts`` parts.
    """
    if len(content_type) > _MAX_CONTENT_TYPE:
        raise ApiError(400, f"The Content-Type has more than {_MAX_CONTENT_TYPE} characters; send a shorter boundary.")
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise ApiError(400, "The Content-Type multipart/form-data has no boundary; let your HTTP client set it.")
    form = _Form(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_end": form.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ApiError(400, f"The multipart body is malformed: {error}.") from error
    if not form.ended:
        raise ApiError(400, "The multipart body is incomplete: it ends before its closing boundary.")
    return form.parts


class _Form:
    """The parser's callbacks: it reports slices of what it was given."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._part = Part()
        self._header_name = bytearray()
        self._header_value = bytearray()

    def on_part_begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise ApiError(413, f"The form has more than {self._max_parts} parts; send fewer images a request.")
        self._part = Part()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            options = parse_options_header(bytes(self._header_value))[1]
            self._part.name = options.get(b"name", b"").decode("utf-8", errors="replace")
        self._header_name.clear()
        self._header_value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part.content += data[start:end]

    def on_part_end(self) -> None:
        self.parts.append(self._part)

    def on_end(self) -> None:
        self.ended = True
