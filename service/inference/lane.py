"""One thread that makes runs, one after another. In: arrays that wait. Out: the outcome of each, by batches.

An idle lane starts at once; whatever arrives while it is busy goes as one batch. Arrays of different shapes go in
different batches, shapes taking turns. An array that is more than a batch may be is a run of its own, which `run` has
to cut. A run that is estimated to take no longer than `inline_ms` needs no thread. All state belongs to the event loop,
so there are no locks: only `run` leaves it.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.call import Stage
from service.inference.batch_limits import BatchLimits
from service.inference.windows import of_all
from service.stopping import stoppable

Array = NDArray[Any]
Run = Callable[[Array], Array]


@dataclass(slots=True, eq=False)
class Item:
    """One caller's array, (n, ...): its n pictures stay together."""

    array: Array
    future: asyncio.Future[Array]
    queued_at: float
    late: bool  # work has been done for it already: it is not refused
    stages: list[Stage] | None  # of the request, where it is traced


class Lane:
    """`on_queue` is called with the change in pictures and elements whenever what waits changes, `on_end` after each
    run with its items, the outcomes, when it started and the seconds that it took; the next run is scheduled after."""

    def __init__(
        self,
        run: Run,
        limits: BatchLimits,
        on_queue: Callable[[int, int], None],
        on_end: Callable[[Sequence[Item], Sequence[Array | Exception], float, float], None],
        name: str = "engine",
    ) -> None:
        self.run, self.limits = run, limits
        self.active = False  # a run is under way or scheduled
        self.running: Sequence[Item] = ()
        self.busy_since: float | None = None
        self.queued = self.queued_elements = 0  # pictures that wait, and the elements of their arrays
        self.inline_elements = 0
        self._on_queue, self._on_end = on_queue, on_end
        self._waiting: OrderedDict[tuple[int, ...], OrderedDict[Item, None]] = OrderedDict()
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.executor.submit(int)  # starts the thread: later there may be none to be had, and nobody to tell

    def __iter__(self) -> Iterator[Item]:
        """What waits."""
        return (item for items in self._waiting.values() for item in items)

    def put(self, item: Item) -> None:
        """Let it wait; `go_on` or the end of a run takes it."""
        self._waiting.setdefault(item.array.shape[1:], OrderedDict())[item] = None
        self._change_queue(len(item.array), item.array.size)

    def leave(self, item: Item) -> None:
        """What is done while it waits has lost its caller. What has been taken for a run does not wait any more."""
        shape = item.array.shape[1:]
        if item in self._waiting.get(shape, ()):
            del self._waiting[shape][item]
            if not self._waiting[shape]:
                del self._waiting[shape]
            self._change_queue(-len(item.array), -item.array.size)

    def close(self) -> Sequence[Item]:
        """End the thread after its run; returns what ran or waited."""
        left = (*self.running, *self)
        for item in tuple(self):
            self.leave(item)
        self.executor.shutdown(wait=False)
        return left

    def go_on(self) -> None:
        """Run a batch of what waits, if anything does."""
        batch = self._take()
        self.active = bool(batch)
        if not batch:
            return
        started = perf_counter()
        if sum(item.array.size for item in batch) <= self.inline_elements:
            self._end(batch, started, self._outcomes(batch))
            return
        self.running, self.busy_since = batch, started
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self.executor, self._outcomes, batch, self._stop_for(batch))
        work.add_done_callback(lambda done: self._end(batch, started, done.result()))

    def _end(self, batch: Sequence[Item], started: float, outcomes: Sequence[Array | Exception]) -> None:
        seconds = perf_counter() - started
        self.running, self.busy_since = (), None
        self.active = bool(self._waiting)
        loop = asyncio.get_running_loop()
        try:
            self._on_end(batch, outcomes, started, seconds)
        finally:
            if self._waiting:
                loop.call_soon(self.go_on)

    def _take(self) -> list[Item]:
        """A batch: the shape whose turn it is, in order of arrival, up to the limits; what exceeds them, alone."""
        batch: list[Item] = []
        while self._waiting and not batch:
            shape, items = self._waiting.popitem(last=False)
            taken = left = 0
            while items and (not batch or self._fits(taken + len(next(iter(items)).array), shape)):
                item, _ = items.popitem(last=False)
                left += len(item.array)
                if not item.future.done():  # done in this turn of the loop, before `leave` could take it out
                    batch.append(item)
                    taken += len(item.array)
            if items:
                self._waiting[shape] = items  # to the end of the turn
            self._change_queue(-left, -left * math.prod(shape))
        return batch

    def _change_queue(self, pictures: int, elements: int) -> None:
        self.queued += pictures
        self.queued_elements += elements
        self._on_queue(pictures, elements)

    def _fits(self, pictures: int, shape: tuple[int, ...]) -> bool:
        """Whether so many pictures of this shape may go together."""
        return self.limits.fit_a_run(pictures, pictures * math.prod(shape))

    def _stop_for(self, batch: Sequence[Item]) -> threading.Event | None:
        """Set when nobody waits for an array that is cut, which runs alone: it is given up between two of its parts."""
        if self._fits(len(batch[0].array), batch[0].array.shape[1:]):
            return None
        stop = threading.Event()
        batch[0].future.add_done_callback(lambda _: stop.set())
        return stop

    def _outcomes(self, batch: Sequence[Item], stop: threading.Event | None = None) -> list[Array | Exception]:
        """One result or exception for each item. A batch that fails is tried item by item: a bad one fails alone."""
        try:
            if stop is not None:
                return [stoppable(partial(self._run, batch[0].array), stop)()]
            if len(batch) == 1:
                return [self._run(batch[0].array)]
            results = self._run(np.concatenate([item.array for item in batch]))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach the callers, or they wait forever
            return [error] if len(batch) == 1 else [self._outcomes([item])[0] for item in batch]
        ends = np.cumsum([len(item.array) for item in batch])
        return list(np.split(results, ends[:-1]))

    def _run(self, array: Array) -> Array:
        return of_all(array, self.run(array))
