"""multipart/form-data. In: a complete body and its Content-Type. Out: the bytes of each part named `img`,
whether or not it has a file name.

The parser of the `multipart` package does the work, called directly: the body is bounded and in memory already, so
there is no temporary file and no task to wait for.
"""

from __future__ import annotations

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from service.errors import InvalidParameter, MalformedRequest, TooManyItems

FIELD = "img"


def pictures_of_form(body: bytes, content_type: str, max_parts: int) -> list[bytes]:
    """The file parts in the order of the body.

    Raises:
        MalformedRequest: no boundary, or a body that does not follow it.
        InvalidParameter: a field with another name than `img`, or none at all.
        TooManyItems: more than `max_parts` parts.
    """
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not 0 < len(boundary) <= 70:  # RFC 2046, section 5.1.1
        raise MalformedRequest("multipart/form-data needs a boundary of 1 to 70 characters in Content-Type.")
    pictures: list[bytes] = []
    try:
        _collect(body, boundary, max_parts, pictures)
    except MultipartError as error:
        raise MalformedRequest(f"The body is not a complete multipart/form-data: {error.args[0]}") from error
    if not pictures:
        raise InvalidParameter(f"The form has no picture; send at least one as {FIELD}: curl -F {FIELD}=@x.png")
    return pictures


def _collect(body: bytes, boundary: str, max_parts: int, pictures: list[bytes]) -> None:
    chunks: list[bytearray] = []
    limits = {"content_length": len(body), "max_segment_count": max_parts + 1}
    # the end of `with` complains when the closing boundary is missing
    with PushMultipartParser(boundary, **limits, header_charset="latin-1") as parser:  # file names in any are ignored
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                if len(pictures) == max_parts:
                    raise TooManyItems(f"At most {max_parts} pictures a request; send the rest in another one.")
                if event.name != FIELD:
                    raise InvalidParameter(
                        f"Unknown form field {event.name[:40]!r}; send pictures as {FIELD}, all else in the URL."
                    )
                chunks = []
            elif event is not None:
                chunks.append(event)
            else:  # the end of a part
                pictures.append(b"".join(chunks))
