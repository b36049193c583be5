"""Work in a thread that ends when nobody waits for it any more.

A thread cannot be cancelled: its work has to look. In: a call and the event that says stop. Out: the same call, under
which `check_stop` raises once the event is set. Outside of such a call `check_stop` does nothing, so the codec, which
does not know of requests, looks in the same way wherever it runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_stop: ContextVar[threading.Event | None] = ContextVar("vqserve.stop", default=None)


class Stopped(Exception):
    """Nobody waits for this work any more."""


def stoppable(call: Callable[[], T], stop: threading.Event) -> Callable[[], T]:
    """`call`, which raises `Stopped` at the next `check_stop` after `stop` is set, or before it begins."""

    def run() -> T:
        token = _stop.set(stop)
        try:
            check_stop()
            return call()
        finally:
            _stop.reset(token)

    return run


def check_stop() -> None:
    """To be called between pieces of work of some milliseconds."""
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise Stopped
