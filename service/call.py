"""What the service keeps about one request while it is inside. Middleware makes it, handlers and logs read it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from starlette.types import Scope

_KEY = "vqserve.call"


@dataclass(slots=True)
class Call:
    request_id: str
    trace_id: str | None  # of the caller's W3C traceparent
    started: float  # time.perf_counter()
    timer: asyncio.Timeout  # ends the request at its deadline, or when its client has left
    client_left: bool = False
    key_name: str | None = None  # of the API key that was used


def call_of(scope: Scope) -> Call:
    return cast(Call, scope[_KEY])


def remember(scope: Scope, call: Call) -> None:
    scope[_KEY] = call
