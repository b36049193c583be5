"""How a process of the service ends: always as after SIGTERM, which drains first.

In: SIGHUP, or an engine that is dead. Out: SIGTERM to the process itself; after an engine's death, an exit status that
says so, for whoever starts the process again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENGINE_DIED = 4  # uvicorn's own status is 3: the start has failed

_engine_died = threading.Event()


def end_for_dead_engine() -> None:
    """Drain, and end with ENGINE_DIED where `tell_why_it_ends` was called before, else by SIGTERM."""
    _engine_died.set()
    _terminate()


def tell_why_it_ends() -> None:
    """To be called before the server starts. It takes SIGTERM over, and once it has drained it raises the signal again
    for whoever had it before."""
    signal.signal(signal.SIGTERM, _end)


def end_at_hangup() -> None:
    """SIGHUP is SIGTERM, unless it is ignored, as under nohup. It would end the process without draining."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: _terminate())


def end_after_ctrl_c() -> NoReturn:
    """Status 0. As after SIGTERM, without waiting for a thread that hangs, as the interpreter does at its end."""
    os._exit(0)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, where nobody is served yet, SIGTERM and Ctrl-C end the process: the server would act on them only
    afterwards. Only the main thread can say so; another's block changes nothing."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        yield
        return
    for number in before:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int, frame: FrameType | None) -> None:
    if _engine_died.is_set():
        os._exit(ENGINE_DIED)  # as the signal does: without waiting for a thread that hangs
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # the first process of a container, which a signal without a handler does not end
