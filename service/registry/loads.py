"""What reads from a disk that may hang, as a network disk does: loads of models, looks at folders.

In: a call. Out: what it gives, or `LoadHangs`. Nothing can end a thread: that of a call that is given up goes on, and
what it opens after all is closed at once. Where several do, no other is begun. They are daemons, which do not keep the
process from ending.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

from service.threads import NoThread

log = logging.getLogger(__name__)

_MOST_GIVEN_UP = 4  # each may hold the memory of a model
_ENDS_S = 5.0  # how long the process waits for a load when it ends: onnxruntime should not go on without it


class LoadHangs(Exception):
    """A load takes longer than it may."""


T = TypeVar("T")


class Loads(Generic[T]):
    """`run` and `close` belong to the event loop. `close_late` gets, in another thread, what is there after all; then
    `on_late` is called on the event loop."""

    def __init__(
        self,
        deadline_s: float,
        close_late: Callable[[T], None] = lambda loaded: None,
        on_late: Callable[[], None] = lambda: None,
    ) -> None:
        self._deadline_s = deadline_s
        self._close_what_is_late, self._on_late = close_late, on_late
        self._running: set[Future[T]] = set()
        self._given_up: set[Future[T]] = set()

    async def run(self, load: Callable[[], T]) -> T:
        """What `load` gives, called in a thread of its own, and raises what it raises.

        Raises:
            LoadHangs: it has not ended by the deadline, or too many others never have. NoThread: it has not begun.
        """
        if len(self._given_up) >= _MOST_GIVEN_UP:
            raise LoadHangs(f"{len(self._given_up)} loads that took too long have not ended yet: restart the service")
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()  # so that nothing can cancel it
        try:
            threading.Thread(target=_call, args=(load, done), name="load", daemon=True).start()
        except RuntimeError as error:
            raise NoThread(error) from error
        self._running.add(done)
        future = asyncio.wrap_future(done)
        try:
            await asyncio.wait([future], timeout=self._deadline_s)
            if not future.done():
                raise LoadHangs(f"it has not been loaded within {self._deadline_s:g} s (VQSERVE_RELOAD_DEADLINE_S)")
            return future.result()
        finally:
            self._running.discard(done)
            if future.cancel():  # not done: its deadline has passed, or the service ends
                self._given_up.add(done)
                done.add_done_callback(partial(self._close_late, asyncio.get_running_loop()))

    def close(self) -> None:
        """Wait for the loads that may still end soon."""
        wait(self._running, _ENDS_S)

    def _close_late(self, loop: asyncio.AbstractEventLoop, done: Future[T]) -> None:
        self._given_up.discard(done)
        log.warning("a load that was given up has ended")
        if done.exception() is None:
            self._close_what_is_late(done.result())
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._on_late)


def _call(load: Callable[[], T], done: Future[T]) -> None:
    try:
        loaded = load()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must reach who waits
        done.set_exception(error)
    else:
        done.set_result(loaded)
