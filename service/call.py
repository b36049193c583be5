"""What the service keeps about one request while it is inside. Middleware makes it, handlers and logs read it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from typing import cast

from starlette.types import Scope

from service.errors import Problem

_KEY, _ANSWERED = "vqserve.call", "vqserve.answered"

Stage = tuple[str, float, float]  # name, start and end on the clock of time.perf_counter()
# Where the stages of the running request are noted; None while nobody asks for them. A context variable, because the
# engine does not know of requests.
noted_stages: ContextVar[list[Stage] | None] = ContextVar("vqserve.noted_stages", default=None)


def server_timing(stages: Sequence[Stage]) -> bytes:
    """`read;dur=0.02, run;dur=1.31`: milliseconds by stage, in the order of their first start (W3C Server Timing).
    Where two of a stage overlap, as the runs of pictures of two sizes, their common time counts once."""
    seconds: dict[str, float] = {}
    ends: dict[str, float] = {}
    for name, started, ended in sorted(stages, key=itemgetter(1)):
        end = ends.get(name, started)
        seconds[name] = seconds.get(name, 0.0) + max(0.0, ended - max(started, end))
        ends[name] = max(ended, end)
    return ", ".join(f"{name};dur={1e3 * one:.3f}" for name, one in seconds.items()).encode()


_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """The id that a request brings, or a new one, which no other process and no other start gives."""

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)

    def of(self, given: bytes) -> str:
        """`given` is the value of X-Request-ID, empty where there is none."""
        if given and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers):x}"


@dataclass(slots=True)
class Call:
    request_id: str
    trace_id: str | None  # of the caller's W3C traceparent
    started: float  # time.perf_counter()
    timer: asyncio.Timeout  # ends the request at its deadline, or when its client has left
    client_left: bool = False
    failed_status: int | None = None  # of the problem that ended an answer whose own status was sent before
    answered_with: Problem | None = None  # by the protocol, in the place of the app
    key_name: str | None = None  # of the API key that was used
    body_bytes: int = 0  # that have come
    stages: list[Stage] | None = None  # those of this request, where its sender or a trace wants them


def call_of(scope: Scope) -> Call:
    return cast(Call, scope[_KEY])


def answered_below(scope: Scope, problem: Problem, request_id: str) -> str:
    """The protocol answers with `problem`, and the app counts and logs that, also where it begins only afterwards: then
    with this id. Out: the request's id."""
    call: Call | None = scope.get(_KEY)
    if call is not None:
        call.answered_with = problem
        return call.request_id
    scope[_ANSWERED] = problem
    scope["headers"].insert(0, (b"x-request-id", request_id.encode()))
    return request_id


def remember(scope: Scope, call: Call) -> None:
    call.answered_with = scope.get(_ANSWERED)
    scope[_KEY] = call
