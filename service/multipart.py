"""multipart/form-data. In: a complete body and its Content-Type. Out: the bytes of each file part named `img`.

python-multipart's parser does the work, called directly: the body is bounded and in memory already, so there is no
temporary file and no task to wait for.
"""

from __future__ import annotations

from collections.abc import Callable

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from service.errors import InvalidParameter, MalformedRequest, TooManyItems

FIELD = "img"
_MAX_HEADERS = 16


class _Parts:
    """Collects the parts as the parser's callbacks announce them."""

    def __init__(self, max_parts: int) -> None:
        self.pictures: list[bytes] = []
        self._max_parts = max_parts
        self._name = self._value = b""
        self._disposition = b""
        self._chunks: list[bytes] = []
        self.ended = False

    def on_part_begin(self) -> None:
        if len(self.pictures) == self._max_parts:
            raise TooManyItems(f"At most {self._max_parts} pictures a request; send the rest in another one.")
        self._disposition = b""
        self._chunks = []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def on_part_end(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise InvalidParameter(f"Unknown form field {name[:40]!r}; send each picture as {FIELD}.")
        self.pictures.append(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))

    def on_end(self) -> None:
        self.ended = True

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = (
            *("on_part_begin", "on_header_field", "on_header_value", "on_header_end"),
            *("on_part_data", "on_part_end", "on_end"),
        )
        return {name: getattr(self, name) for name in names}


def pictures_of_form(body: bytes, content_type: str, max_parts: int) -> list[bytes]:
    """The file parts in the order of the body.

    Raises:
        MalformedRequest: no boundary, or a body that does not follow it.
        InvalidParameter: a field with another name than `img`, or none at all.
        TooManyItems: more than `max_parts` parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary or len(boundary) > 70:  # RFC 2046, section 5.1.1
        raise MalformedRequest("multipart/form-data needs a boundary of 1 to 70 characters in Content-Type.")
    parts = _Parts(max_parts)
    parser = MultipartParser(boundary, parts.callbacks(), max_header_count=_MAX_HEADERS)  # type: ignore[arg-type]
    try:
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise MalformedRequest(f"The body is not multipart/form-data: {error}") from error
    if not parts.ended:
        raise MalformedRequest("The form ends before its closing boundary; was the upload cut off?")
    if not parts.pictures:
        raise InvalidParameter(f"The form has no picture; send at least one as {FIELD}: curl -F {FIELD}=@x.png")
    return parts.pictures
