"""What the service keeps about one request while it is inside. Middleware makes it, handlers and logs read it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

from starlette.types import Scope

_KEY = "vqserve.call"

Stage = tuple[str, float, float]  # name, start and end on the clock of time.perf_counter()
# Where the stages of the running request are noted; None while nobody asks for them. A context variable, because the
# engine does not know of requests.
noted_stages: ContextVar[list[Stage] | None] = ContextVar("vqserve.noted_stages", default=None)


@dataclass(slots=True)
class Call:
    request_id: str
    trace_id: str | None  # of the caller's W3C traceparent
    started: float  # time.perf_counter()
    timer: asyncio.Timeout  # ends the request at its deadline, or when its client has left
    client_left: bool = False
    key_name: str | None = None  # of the API key that was used
    stages: list[Stage] | None = None  # those of this request, where its sender or a trace wants them


def call_of(scope: Scope) -> Call:
    return cast(Call, scope[_KEY])


def remember(scope: Scope, call: Call) -> None:
    scope[_KEY] = call
