"""Media types. In: a Content-Type or Accept header. Out: the bare type, the offered type wanted most, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from starlette.requests import Request

from service.errors import NotAcceptable, UnsupportedMediaType

JSON = "application/json"
_MOST_RANGES = 64  # a browser sends ten


def bare_type(content_type: str) -> str:
    """`"text/html; charset=utf-8"` -> `"text/html"`."""
    return content_type.partition(";")[0].strip().lower()


def unsupported(media_type: str, taken: Sequence[str]) -> UnsupportedMediaType:
    """The refusal of a body whose bare Content-Type is none of `taken`: curl's default is the usual reason."""
    given = f"Content-Type is {media_type[:80]!r}" if media_type else "There is no Content-Type"
    return UnsupportedMediaType(f"{given}; this route takes {', '.join(taken)}.")


def answer_type(request: Request, offered: tuple[str, ...], why: str = "") -> str:
    """What `choose` makes of the request's Accept lines, which are one list (RFC 9110, section 5.3). `why` there is no
    other type goes into the refusal."""
    return choose(",".join(request.headers.getlist("accept")), offered, why)


@lru_cache(maxsize=256)
def choose(accept: str, offered: tuple[str, ...], why: str = "") -> str:
    """The offered type with the highest quality in `accept`; the first without Accept.

    Of equals comes first the one that `accept` names, so that `application/json, */*`, which some libraries send by
    themselves, asks for JSON; then the first offered.

    Raises:
        NotAcceptable: nothing that is offered is accepted, or there is far too much to look through.
    """
    parts = accept.split(",", _MOST_RANGES)
    if len(parts) > _MOST_RANGES:
        raise NotAcceptable(f"Accept has more than {_MOST_RANGES} media types; accept one of {', '.join(offered)}.")
    ranges = [_parse(part) for part in parts if part.strip()] or [("*/*", 1.0)]
    wishes = {media_type: _wish(media_type, ranges) for media_type in offered}
    best = max(offered, key=wishes.__getitem__)  # the first of equals
    if not wishes[best][0]:
        raise NotAcceptable(f"Accept one of {', '.join(offered)}{why and f': {why}'}.")
    return best


def _parse(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return media_range, max(0.0, float(parameter[2:]))  # also of "nan"
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _wish(media_type: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """The quality of the most specific range that matches (RFC 9110, section 12.5.1), 0 without one; how specific."""
    patterns = ("*/*", media_type.partition("/")[0] + "/*", media_type)
    for specific in (2, 1, 0):
        for media_range, quality in ranges:
            if media_range == patterns[specific]:
                return quality, specific
    return 0.0, 0
