"""What can go wrong in a call. In: an HTTP answer that is not a success, or a stream's last event. Out: an error."""

from __future__ import annotations

from typing import Any

import httpx

REQUEST = "urn:vqserve:request:"  # `instance` of a problem document is this and the request's id


class VqserveError(Exception):
    """Base of every error of this package. Network failures stay httpx's own exceptions."""


class UnexpectedAnswerError(VqserveError):
    """A success whose body is not what this client knows: another server, or another version of it."""


class ProblemError(VqserveError):
    """The service refused. `type` is stable (`urn:vqserve:problem:queue-full`); `detail` says what to do."""

    def __init__(self, status: int, type: str, title: str, detail: str, request_id: str | None) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.request_id = request_id


def problem_of(response: httpx.Response) -> ProblemError:
    """The problem document of an answer that was read; anything else, such as a proxy's page, by its status alone."""
    fields: dict[str, object] = {}
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        fields = response.json()
    return ProblemError(
        response.status_code,
        str(fields.get("type", "about:blank")),
        str(fields.get("title", response.reason_phrase)),
        str(fields.get("detail", response.text[:200])),
        response.headers.get("x-request-id"),
    )


def problem_of_event(fields: dict[str, Any]) -> VqserveError:
    """The problem document that a stream ends with when the service gives up after its status was sent."""
    try:
        request_id = str(fields["instance"]).removeprefix(REQUEST)
        return ProblemError(fields["status"], fields["type"], fields["title"], fields["detail"], request_id)
    except (KeyError, TypeError):
        return UnexpectedAnswerError(f"the stream ended with an unknown error: {fields}")
