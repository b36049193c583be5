"""Errors: exceptions that carry their HTTP status, and the one JSON shape that they have outside (RFC 9457).

In: a `Problem`. Out: an `application/problem+json` response whose `type` is stable. Whatever is not a `Problem` becomes
`InternalError`, which says nothing of the inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import orjson
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Base of every error that a caller sees. `detail` says what was wrong and how to fix it."""

    status = 500
    slug = "internal-error"
    title = "Internal error"

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})

    @classmethod
    def for_now(cls, detail: str) -> Self:
        """With the header that says to come back in a second, which is long for what a process answers in one."""
        return cls(detail, {"Retry-After": "1"})


class MalformedRequest(Problem):
    status, slug, title = 400, "malformed-request", "The request cannot be read"


class Unauthorized(Problem):
    status, slug, title = 401, "unauthorized", "No or wrong API key"


class UnknownModel(Problem):
    status, slug, title = 404, "unknown-model", "No such model"


class UnknownRoute(Problem):
    status, slug, title = 404, "unknown-route", "No such route"


class MethodNotAllowed(Problem):
    status, slug, title = 405, "method-not-allowed", "The route has no such method"


class NotAcceptable(Problem):
    status, slug, title = 406, "not-acceptable", "No answer in the accepted media types"


class HeadTooSlow(Problem):
    status, slug, title = 408, "head-too-slow", "The URL and headers did not come in time"


class BodyTooLarge(Problem):
    status, slug, title = 413, "body-too-large", "The request body is too large"


class PictureTooLarge(Problem):
    status, slug, title = 413, "picture-too-large", "The picture has too many pixels"


class TooManyItems(Problem):
    status, slug, title = 413, "too-many-items", "Too many items in one request"


class UnsupportedMediaType(Problem):
    status, slug, title = 415, "unsupported-media-type", "The media type is not supported"


class NotAPicture(Problem):
    status, slug, title = 422, "not-a-picture", "The bytes are not a picture that can be decoded"


class WrongPictureSize(Problem):
    status, slug, title = 422, "wrong-picture-size", "The picture does not have the model's size"


class InvalidCodes(Problem):
    status, slug, title = 422, "invalid-codes", "The codes are not codes of this model"


class InvalidContainer(Problem):
    status, slug, title = 422, "invalid-container", "The bytes are not a container of this model"


class InvalidParameter(Problem):
    status, slug, title = 422, "invalid-parameter", "A parameter has an impossible value"


class NoPrior(Problem):
    status, slug, title = 422, "no-prior", "The model has no prior"


class ReloadFailed(Problem):
    status, slug, title = 422, "reload-failed", "The bundle on disk cannot be served"


class QueueFull(Problem):
    status, slug, title = 429, "queue-full", "Too much is waiting already"


class HeadTooLarge(Problem):
    status, slug, title = 431, "head-too-large", "The URL and headers are too large"


class ClientClosed(Problem):
    """The caller has left: nobody reads this answer. 499 is what proxies log for it."""

    status, slug, title = 499, "client-closed", "The client closed the connection"


class InternalError(Problem):
    status, slug, title = 500, "internal-error", "Internal error"


class NotReady(Problem):
    status, slug, title = 503, "not-ready", "The service is not ready"


class DeadlinePassed(Problem):
    status, slug, title = 504, "deadline-passed", "The deadline of the request has passed"


# of whoever still waits when the process ends, or its own time has passed
SHUTTING_DOWN = "The service is shutting down; ask another instance."
TOOK_TOO_LONG = "The request took longer than its deadline allows; send less, or try later."
PROBLEMS: tuple[type[Problem], ...] = tuple(Problem.__subclasses__())


def utf8(text: str) -> str:
    """The text as JSON can hold it: bytes of a file name that are not UTF-8 are halves of characters in Python, which
    become their escapes, as `\\udcff`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def problem_type(slug: str) -> str:
    """The `type` of the JSON, which stays the same for ever: callers compare it."""
    return f"urn:vqserve:problem:{slug}"


def problem_body(problem: Problem, request_id: str, protocol: bool = False) -> dict[str, object]:
    """The JSON of RFC 9457; with `protocol` also the member that clients of the Open Inference Protocol read."""
    detail = utf8(problem.detail)
    return {
        "type": problem_type(problem.slug),
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "instance": f"urn:vqserve:request:{request_id}",
        **({"error": detail} if protocol else {}),
    }


def problem_response(problem: Problem, request_id: str, protocol: bool = False) -> Response:
    """`protocol`: as in `problem_body`; some of those clients read no errors of a type of their own."""
    body = orjson.dumps(problem_body(problem, request_id, protocol))
    media_type = "application/json" if protocol else MEDIA_TYPE
    return Response(body, problem.status, headers=problem.headers, media_type=media_type)


def internal_error() -> InternalError:
    """For whatever is not a `Problem`."""
    return InternalError("Something went wrong inside. The log knows more, under the request's id.")
