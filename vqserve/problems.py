"""What can go wrong in a call. In: an HTTP answer that is not a success, or a stream's last event. Out: an error."""

from __future__ import annotations

import re
from typing import Any

import httpx

from vqserve.retries import retry_after_s

REQUEST = "urn:vqserve:request:"  # `instance` of a problem document is this and the request's id
NO_TYPE = "about:blank"  # of an answer without a problem document, such as a proxy's
OF_ONE_FILE = frozenset(
    f"urn:vqserve:problem:{slug}"
    for slug in (
        "body-too-large",
        "deadline-passed",
        "invalid-codes",
        "invalid-container",
        "malformed-request",  # a container of no bytes
        "not-a-picture",
        "picture-too-large",
        "too-many-items",
        "wrong-picture-size",
    )
)


class VqserveError(Exception):
    """Base of every error of this package. Network failures stay httpx's own exceptions."""


class UnexpectedAnswerError(VqserveError):
    """A success whose body is not what this client knows: another server, or another version of it."""


class FileError(VqserveError):
    """One file cannot be read, or is not what was asked for. The next one may be."""


class TooLargeTogetherError(VqserveError):
    """Several pictures are too large for one container, and fewer may not be."""


class ProblemError(VqserveError):
    """The service refused. `type` is stable (`urn:vqserve:problem:queue-full`); `detail` says what to do.

    `retry_after_s` is the seconds until it is worth a try, where the answer says them.
    """

    def __init__(
        self,
        status: int,
        type: str,
        title: str,
        detail: str,
        request_id: str | None,
        retry_after_s: float | None = None,
    ) -> None:
        given = (status, type, title, detail, request_id, retry_after_s)
        super().__init__(*given)  # all, or no other process could read the error
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.status} {self.title}: {self.detail}" if self.detail else f"{self.status} {self.title}"


def problem_of(response: httpx.Response) -> ProblemError:
    """The problem document of an answer that was read; anything else, such as a proxy's page, by its status alone."""
    fields = _fields(response)
    return ProblemError(
        response.status_code,
        str(fields.get("type") or NO_TYPE),  # null is as if it were left out
        str(fields.get("title") or response.reason_phrase),
        str(fields.get("detail") or _of_another_server(response)),
        response.headers.get("x-request-id"),
        retry_after_s(response),
    )


def leave_compressed(response: httpx.Response) -> None:
    """For an answer that is no success, before it is read: of 1 MB of gzip, 2 GB were read to show 200 characters."""
    if not response.is_success:
        response.headers.pop("content-encoding", None)


def _of_another_server(response: httpx.Response) -> str:
    """Where a redirect leads, without its query, which may hold a secret; else the beginning of the page, in a line, or
    nothing of one that is no text."""
    if not response.has_redirect_location:
        words = " ".join(_text(response).split())[:200]
        return "" if re.search(r"[\x00-\x1f]", words) else words
    target = response.headers["location"].partition("?")[0]
    return f"it leads to {without_userinfo(target)}, and redirects are not followed: pass the service's own URL"


def _text(response: httpx.Response) -> str:
    """As its charset says, or in UTF-8: `undefined` and `base64` are none for text, but Python knows them."""
    try:
        return response.content.decode(response.charset_encoding or "utf-8", "replace")
    except (LookupError, ValueError):
        return response.content.decode("utf-8", "replace")


def without_userinfo(url: str) -> str:
    """For messages. All up to the last @ goes, since the `/` of a password that was not escaped ends no user."""
    return re.sub(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)?.*@", r"\1", url, flags=re.DOTALL)


def _fields(response: httpx.Response) -> dict[str, object]:
    """None of them where the answer holds no problem document, or one that was cut off."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    try:
        fields = response.json()
    except (RecursionError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def problem_of_event(fields: dict[str, Any]) -> VqserveError:
    """The problem document that a stream ends with when the service gives up after its status was sent."""
    try:
        request_id = str(fields["instance"]).removeprefix(REQUEST)
        status, kind = int(fields["status"]), str(fields["type"] or NO_TYPE)
        return ProblemError(status, kind, str(fields["title"] or ""), str(fields["detail"] or ""), request_id)
    except (KeyError, OverflowError, TypeError, ValueError):  # 1e999 overflows
        return UnexpectedAnswerError(f"the stream ended with an unknown error: {fields}")
