"""Threads for work that would hold up the event loop: picture files, containers, scores, `?effort=`.

In: calls, and how many pixels they are about. Out: futures. Each pool has a bounded queue. Small work has a pool of its
own, so that a digit's container does not wait behind half a minute of photographs, and so has large work under the
prior, which takes seconds where a picture file takes milliseconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from prometheus_client import Gauge

from service.errors import SHUTTING_DOWN, NotReady, QueueFull
from service.stopping import Stopped, stoppable

T = TypeVar("T")

SMALL_PIXELS = 1 << 16  # of one request: tenths of a second at most, by the slowest of this work (`?effort=`)
SMALL, LARGE, PRIOR = "small", "large", "prior"


class NoThread(Exception):
    """The system has none left."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(f"{error}: allow more threads (pids) or memory")


def require_threads(threads: int) -> None:
    """Raises NoThread where so many more cannot be started now: for what ends the process without a line then."""
    with ThreadPoolExecutor(threads, thread_name_prefix="required") as executor:
        _start_all(executor, threads)


def _start_all(executor: ThreadPoolExecutor, threads: int) -> None:
    """Now: later there may be none to be had, and work would wait for good."""
    all_there = threading.Barrier(threads)  # an executor starts no other while one is idle
    try:
        for _ in range(threads):
            executor.submit(all_there.wait)
    except RuntimeError as error:
        all_there.abort()  # those that wait would keep the process from ending
        raise NoThread(error) from error


class Pool:
    """`most_waiting` calls at most wait for a thread, about `most_pixels` together, or those of one request."""

    def __init__(self, name: str, threads: int, most_waiting: int, most_pixels: int, waiting: Gauge) -> None:
        """Raises NoThread where they cannot be started."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"{name}-work")
        _start_all(self._executor, threads)
        self._most_waiting, self._most_pixels = most_waiting, most_pixels
        self._gauge = waiting
        self._lock = threading.Lock()
        self._waiting, self._pixels = 0, 0.0
        self._stops: set[threading.Event] = set()  # one for each call that has not ended
        self._closed = False

    def submit(self, calls: Sequence[Callable[[], T]], pixels: int, *, late: bool = False) -> list[asyncio.Future[T]]:
        """All of them or none. Cancel a future to stop its call: its thread is free at the work's next `check_stop`.
        `late`: they make an answer of what an engine has done already, for which `require_room` was asked before.

        Raises:
            QueueFull: others wait, and together they would be more than may. Not what is `late`.
            NotReady: the pool is closed.
        """
        if self._closed:
            raise NotReady(SHUTTING_DOWN)
        if not late:
            self.require_room(len(calls), pixels)
        return [self._submit(call, pixels / len(calls)) for call in calls]

    def require_room(self, calls: int, pixels: int) -> None:
        """Raises QueueFull where `submit` would, of what is not late: before the work is done that they will need."""
        if self._waiting and (full := self._why_full(calls, pixels)):
            raise QueueFull.for_now(f"{self._waiting} pictures are waiting for a thread, {full}")

    def close(self) -> None:
        """Stop what runs, wait for none of it, and take no more."""
        self._closed = True
        for stop in self._stops:
            stop.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _why_full(self, calls: int, pixels: int) -> str | None:
        """Which limit so much more would exceed, and the setting that moves it; None where there is room."""
        if self._waiting + calls > self._most_waiting:
            return (
                f"with these they would be more than the {self._most_waiting} that may (VQSERVE_MAX_QUEUED_PICTURES)."
            )
        if self._pixels + pixels > self._most_pixels:
            return "with these they would have more pixels than may (VQSERVE_MAX_PIXELS_PER_REQUEST)."
        return None

    def _submit(self, call: Callable[[], T], pixels: float) -> asyncio.Future[T]:
        stop = threading.Event()
        self._count(1, pixels)
        # The executor's queue keeps what it was given, also after a cancellation, until a thread comes to it: what the
        # call holds, a picture file perhaps, is let go here.
        held = [stoppable(call, stop)]
        done: Future[T] = self._executor.submit(self._begin, held, pixels)
        done.add_done_callback(partial(self._end, pixels))
        future = asyncio.wrap_future(done)
        self._stops.add(stop)
        future.add_done_callback(partial(self._give_up, stop, held))
        return future

    def _begin(self, held: list[Callable[[], T]], pixels: float) -> T:
        self._count(-1, -pixels)
        try:
            try:
                call = held.pop()
            except IndexError:  # given up just now
                raise Stopped from None
            return call()
        except Stopped as stopped:
            raise NotReady(SHUTTING_DOWN) from stopped

    def _end(self, pixels: float, done: Future[Any]) -> None:
        if done.cancelled():  # it never began
            self._count(-1, -pixels)

    def _give_up(self, stop: threading.Event, held: list[Callable[[], Any]], _: asyncio.Future[Any]) -> None:
        stop.set()
        held.clear()
        self._stops.discard(stop)

    def _count(self, change: int, pixels: float) -> None:
        with self._lock:
            self._waiting += change
            self._pixels += pixels
        self._gauge.inc(change)
