"""What the service keeps about one request while it is inside. Middleware makes it, handlers and logs read it."""

from __future__ import annotations

import asyncio
import os
import re
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import cast

from starlette.types import Scope

_KEY = "vqserve.call"

Stage = tuple[str, float, float]  # name, start and end on the clock of time.perf_counter()
# Where the stages of the running request are noted; None while nobody asks for them. A context variable, because the
# engine does not know of requests.
noted_stages: ContextVar[list[Stage] | None] = ContextVar("vqserve.noted_stages", default=None)


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
    key_name: str | None = None  # of the API key that was used
    body_bytes: int = 0  # that have come
    stages: list[Stage] | None = None  # those of this request, where its sender or a trace wants them


def call_of(scope: Scope) -> Call:
    return cast(Call, scope[_KEY])


def remember(scope: Scope, call: Call) -> None:
    scope[_KEY] = call
