"""Work-conserving batching. In: arrays from many callers. Out: a future for each, resolved by runs over whole batches.

An idle batcher starts at once; whatever arrives while it is busy goes as one batch. Arrays of different shapes go in
different batches, shapes taking turns. Batches and queue are bounded in pictures and in elements: a picture may be a
thousand times as large as another. An array that is more than a batch may be is a run of its own, which `run` has to
cut. Whoever leaves frees the place at once. While overload lasts (`service.overload`), where a setting asks for that,
one run waits at most. All state belongs to the event loop, so there are no locks: only `run`
leaves it, for work that is estimated to take longer than `inline_ms`.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batch_limits import BatchLimits
from service.call import Stage, noted_stages
from service.errors import NotReady, QueueFull
from service.overload import WHY_SHORT, Overload
from service.stopping import Stopped, stoppable

Array = NDArray[Any]
Run = Callable[[Array], Array]
_DRAIN_SMOOTHING = 0.2  # weight of the newest run in the measured drain rate


@dataclass(slots=True, eq=False)
class Item:
    """One caller's array, (n, ...): its n pictures stay together."""

    array: Array
    future: asyncio.Future[Array]
    queued_at: float
    late: bool  # work has been done for it already: it is not refused
    stages: list[Stage] | None  # of the request, where it is traced


class Batcher:
    """`observe` is called after each run with its items, when it started and the seconds that it took.

    `on_queue` is called with the change whenever the number of waiting pictures changes. `on_failure` is called when no
    item of a run succeeded: the owner decides whether the engine is dead.
    """

    def __init__(
        self,
        run: Run,
        limits: BatchLimits,
        observe: Callable[[Sequence[Item], float, float], None] = lambda items, started, seconds: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
        on_queue: Callable[[int], None] = lambda change: None,
        overload: Overload | None = None,
    ) -> None:
        self._run = run
        self.limits = limits
        self._observe = observe
        self._on_failure = on_failure
        self._on_queue = on_queue
        self._overload = overload or Overload()
        self._waiting: OrderedDict[tuple[int, ...], OrderedDict[Item, None]] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._executor.submit(int)  # starts the thread: later there may be none to be had, and nobody to tell
        self._active = False
        self._company: asyncio.TimerHandle | None = None  # while an idle batcher waits for it
        self._closed: str | None = None
        self._running: Sequence[Item] = ()
        self.inline_elements = 0  # set by the owner after it has measured a run
        self.queued = 0
        self._queued_elements = 0
        self._just_done = 0  # pictures whose callers have not yet run since
        self.busy_since: float | None = None
        self._elements_per_s = 0.0

    def submit(self, array: Array, *, late: bool = False) -> asyncio.Future[Array]:
        """`submit_all` with one array."""
        return self.submit_all([array], late=late)[0]

    def submit_all(self, arrays: Sequence[Array], *, late: bool = False) -> list[asyncio.Future[Array]]:
        """Queue arrays (n, ...) of one caller, all or none, and return the futures of their results (n, ...). Cancel
        one to give it up. `late`: they are the result of work that a refusal would waste.

        Raises:
            QueueFull: others wait, and together they would be more than may. Not what is `late`.
            NotReady: the batcher is closed.
        """
        if self._closed is not None:
            raise NotReady(self._closed)
        if self.queued and not late and (full := self._why_full(arrays)):
            raise self._refused(full)
        self._note(refused=False)
        return [self._queue(array, late) for array in arrays]

    def refuse_early(self) -> None:
        """Where overload lasts: raise now, before its body is read, the QueueFull that any array would get later."""
        if self._overload.lasts and self._is_full():
            raise self._refused(WHY_SHORT)

    def give_up_waiting(self) -> None:
        """Refuse what waits."""
        waiting = [item for items in self._waiting.values() for item in items if not item.late]
        for item in waiting:
            self._leave(item)  # before the time is told until the queue is done
        for item in waiting:
            if not item.future.done():
                item.future.set_exception(self._problem(WHY_SHORT))

    def _refused(self, text: str) -> QueueFull:
        """Where much waits; what is too large for the room beside little is no sign of overload."""
        problem = self._problem(text)
        self._note(refused=self._overload.lasts or self.limits.half_full(self.queued, self._queued_elements))
        return problem

    def _note(self, *, refused: bool) -> None:
        if self._overload.note(refused=refused):
            self.give_up_waiting()

    def _problem(self, text: str) -> QueueFull:
        return QueueFull(text, {"Retry-After": str(self.retry_after_s())})

    def _queue(self, array: Array, late: bool) -> asyncio.Future[Array]:
        loop = asyncio.get_running_loop()
        item = Item(array, loop.create_future(), perf_counter(), late, noted_stages.get())
        item.future.add_done_callback(lambda _: self._leave(item))
        self._waiting.setdefault(array.shape[1:], OrderedDict())[item] = None
        self._change_queue(len(array), array.size)
        if not self._active:
            self._active = True
            if self.limits.max_wait_ms and not self._overload.lasts:
                # uvloop's clock has whole milliseconds: it would round less than half of one to no wait at all
                self._company = loop.call_later(max(1.0, self.limits.max_wait_ms) / 1e3, self._next)
            else:
                loop.call_soon(self._next)  # everything that this turn of the loop submits goes along
        if self._company is not None and self._is_full():
            self._company.cancel()
            self._company = None
            loop.call_soon(self._next)
        return item.future

    def _is_full(self) -> bool:
        """Whether what waits is a batch already, so that company would come too late."""
        return self.limits.fill_a_run(self.queued, self._queued_elements)

    def _why_full(self, arrays: Sequence[Array]) -> str | None:
        """Why these arrays have no room beside what waits; None where they have."""
        pictures = self.queued + sum(map(len, arrays))
        elements = self._queued_elements + sum(array.size for array in arrays)
        if self._overload.lasts and not self.limits.fit_a_run(pictures, elements):
            return WHY_SHORT  # one run may wait beside the one that is under way
        full = self.limits.why_full(pictures, elements)
        return full and f"{self.queued} pictures are waiting, {full}"

    def _leave(self, item: Item) -> None:
        """What is done while it waits has lost its caller. What has been taken for a run does not wait any more."""
        shape = item.array.shape[1:]
        if item in self._waiting.get(shape, ()):
            del self._waiting[shape][item]
            if not self._waiting[shape]:
                del self._waiting[shape]
            self._change_queue(-len(item.array), -item.array.size)

    @property
    def in_hand(self) -> int:
        """Pictures that wait, or whose callers still have to make an answer of them: what newcomers wait for."""
        return self.queued + self._just_done

    def retry_after_s(self) -> int:
        """Seconds until the run in progress and the queue are done at the measured rate, from 1 to 60."""
        if not self._elements_per_s:
            return 1
        seconds = self._queued_elements / self._elements_per_s
        if self.busy_since is not None:
            running_s = sum(item.array.size for item in self._running) / self._elements_per_s
            seconds += max(0.0, running_s - (perf_counter() - self.busy_since))
        return max(1, min(60, math.ceil(seconds)))

    def close(self, reason: str) -> None:
        """Answer every waiting caller with `NotReady` and take no more."""
        self._closed = reason
        for item in (*self._running, *(item for items in self._waiting.values() for item in items)):
            if not item.future.done():
                item.future.set_exception(NotReady(reason))
        self._waiting.clear()
        self._change_queue(-self.queued, -self._queued_elements)
        self._executor.shutdown(wait=False)

    def _take(self) -> list[Item]:
        """A batch: the shape whose turn it is, in order of arrival, up to the limits; what exceeds them, alone."""
        batch: list[Item] = []
        while self._waiting and not batch:
            shape, items = self._waiting.popitem(last=False)
            taken = left = 0
            while items and (not batch or self._fits(taken + len(next(iter(items)).array), shape)):
                item, _ = items.popitem(last=False)
                left += len(item.array)
                if not item.future.done():  # done in this turn of the loop, before `_leave` could take it out
                    batch.append(item)
                    taken += len(item.array)
            if items:
                self._waiting[shape] = items  # to the end of the turn
            self._change_queue(-left, -left * math.prod(shape))
        return batch

    def _fits(self, pictures: int, shape: tuple[int, ...]) -> bool:
        """Whether so many pictures of this shape may go together."""
        return self.limits.fit_a_run(pictures, pictures * math.prod(shape))

    def _change_queue(self, pictures: int, elements: int) -> None:
        self.queued += pictures
        self._queued_elements += elements
        self._on_queue(pictures)

    def _next(self) -> None:
        self._company = None
        batch = self._take()
        if not batch:
            self._active = False
            return
        started = perf_counter()
        if sum(item.array.size for item in batch) <= self.inline_elements:
            self._finish(batch, started, self._outcomes(batch))
            return
        self._running, self.busy_since = batch, started
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, self._outcomes, batch, self._stop_for(batch))
        work.add_done_callback(lambda done: self._finish(batch, started, done.result()))

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
                return [stoppable(partial(self._checked, batch[0].array), stop)()]
            if len(batch) == 1:
                return [self._checked(batch[0].array)]
            results = self._checked(np.concatenate([item.array for item in batch]))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach the callers, or they wait forever
            return [error] if len(batch) == 1 else [self._outcomes([item])[0] for item in batch]
        ends = np.cumsum([len(item.array) for item in batch])
        return list(np.split(results, ends[:-1]))

    def _checked(self, array: Array) -> Array:
        results = self._run(array)
        if len(results) != len(array):
            raise ValueError(f"a run of {len(array)} pictures gave {len(results)}")
        return results

    def _finish(self, batch: Sequence[Item], started: float, outcomes: list[Array | Exception]) -> None:
        seconds = perf_counter() - started
        self._running, self.busy_since = (), None
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if len(errors) < len(outcomes):  # what failed or was given up may have ended early
            self._measure(batch, seconds)
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.future.done():
                continue
            if isinstance(outcome, Exception):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)
        if len(errors) == len(outcomes) and not isinstance(errors[0], Stopped):
            self._on_failure(errors[0])
        loop = asyncio.get_running_loop()
        pictures = sum(len(item.array) for item in batch)
        self._just_done += pictures
        loop.call_soon(self._answered, pictures)
        if self._waiting:
            loop.call_soon(self._next)
        else:
            self._active = False
        self._observe(batch, started, seconds)  # last: whatever it may do, the callers have what they wait for

    def _answered(self, pictures: int) -> None:
        self._just_done -= pictures

    def _measure(self, batch: Sequence[Item], seconds: float) -> None:
        rate = sum(item.array.size for item in batch) / max(seconds, 1e-6)
        self._elements_per_s += (_DRAIN_SMOOTHING if self._elements_per_s else 1.0) * (rate - self._elements_per_s)
