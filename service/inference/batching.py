"""Work-conserving batching. In: arrays from many callers. Out: a future for each, resolved by runs over whole batches.

The queue is bounded in pictures and in elements: a picture may be a thousand times as large as another. An array that
is more than a run may be, and more than the others can wait for, has a second lane (`service.inference.lane`): it may
take as long as thousands of them. Both lanes share the queue, but one run of the others may wait however full large
arrays make it. Whoever leaves frees the place at once. While overload lasts (`service.inference.overload`), where a
setting asks for that, one run waits at most. All state belongs to the event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from time import perf_counter

from service.call import noted_stages
from service.errors import NotReady, QueueFull
from service.inference.batch_limits import BatchLimits
from service.inference.lane import Array, Item, Lane, Run
from service.inference.overload import WHY_SHORT, Overload
from service.stopping import Stopped

_DRAIN_SMOOTHING = 0.2  # weight of the newest run in the measured drain rate


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
        self.limits = limits
        self._observe = observe
        self._on_failure = on_failure
        self._on_queue = on_queue
        self._overload = overload or Overload()
        self._batches = Lane(run, limits, self._change_queue, self._finish)
        self._large = Lane(run, limits, self._change_queue, self._finish, "engine-large")
        self._lanes = (self._batches, self._large)
        self._batches_only = (self._batches,)
        self._brief_elements = 0
        self._company: asyncio.TimerHandle | None = None  # while an idle batcher waits for it
        self._closed: str | None = None
        self.queued = self._queued_elements = 0  # in both lanes
        self._just_done = 0  # pictures whose callers have not yet run since
        self._elements_per_s = 0.0

    def run_inline(self, elements: int) -> None:
        """Arrays of together so many elements need no thread: the owner has measured a run."""
        for lane in self._lanes:
            lane.inline_elements = elements

    def keep_with_others(self, elements: int) -> None:
        """One array of up to so many elements goes in its turn, even if it is more than a run: the owner has measured
        that others can wait for it."""
        self._brief_elements = elements

    def submit(self, array: Array, *, late: bool = False) -> asyncio.Future[Array]:
        """`submit_all` with one array."""
        return self.submit_all([array], late=late)[0]

    def submit_all(self, arrays: Sequence[Array], *, late: bool = False) -> list[asyncio.Future[Array]]:
        """Queue arrays (n, ...) of one caller, all or none, and return the futures of their results (n, ...). Cancel
        one to give it up. `late`: they are the result of work that a refusal would waste.

        Raises:
            QueueFull: others wait before them, and together they would be more than may. Not what is `late`.
            NotReady: the batcher is closed.
        """
        if self._closed is not None:
            raise NotReady.for_now(self._closed)
        before = self._lanes if any(map(self._is_large, arrays)) else self._batches_only
        if not late and (full := self._why_full(before, arrays)):
            raise self._refused(full, before)
        self._note(refused=False)
        return [self._queue(array, late) for array in arrays]

    def refuse_early(self) -> None:
        """Where overload lasts: raise now, before its body is read, the QueueFull that a picture would get later."""
        if self._overload.lasts and self._is_full():
            raise self._refused(WHY_SHORT, self._batches_only)

    def give_up_waiting(self) -> None:
        """Refuse what waits."""
        waiting = [(lane, item) for lane in self._lanes for item in lane if not item.late]
        for lane, item in waiting:
            lane.leave(item)  # before the time is told until the queue is done
        for lane, item in waiting:
            if not item.future.done():
                before = self._lanes if lane is self._large else self._batches_only
                item.future.set_exception(self._problem(WHY_SHORT, before))

    def _refused(self, text: str, before: Sequence[Lane]) -> QueueFull:
        """What to raise. It counts towards overload only where the queue is half full: what is merely too large to fit
        beside a few is no sign of it."""
        problem = self._problem(text, before)
        self._note(refused=self._overload.lasts or self.limits.half_full(self.queued, self._queued_elements))
        return problem

    def _note(self, *, refused: bool) -> None:
        if self._overload.note(refused=refused):
            self.give_up_waiting()

    def _problem(self, text: str, before: Sequence[Lane]) -> QueueFull:
        return QueueFull(text, {"Retry-After": str(self.retry_after_s(before))})

    def _queue(self, array: Array, late: bool) -> asyncio.Future[Array]:
        loop = asyncio.get_running_loop()
        lane = self._large if self._is_large(array) else self._batches
        item = Item(array, loop.create_future(), perf_counter(), late, noted_stages.get())
        item.future.add_done_callback(lambda _: lane.leave(item))
        lane.put(item)
        if not lane.active:
            lane.active = True
            if lane is self._batches and self.limits.max_wait_ms and not self._overload.lasts:
                # uvloop's clock has whole milliseconds: it would round less than half of one to no wait at all
                self._company = loop.call_later(max(1.0, self.limits.max_wait_ms) / 1e3, self._with_company)
            else:
                loop.call_soon(lane.go_on)  # everything that this turn of the loop submits goes along
        if self._company is not None and self._is_full():
            self._company.cancel()
            loop.call_soon(self._with_company)
            self._company = None
        return item.future

    def _with_company(self) -> None:
        self._company = None
        self._batches.go_on()

    def _is_large(self, array: Array) -> bool:
        """Whether it can go with no others, and they cannot wait for it."""
        return array.size > self._brief_elements and not self.limits.fit_a_run(len(array), array.size)

    def _is_full(self) -> bool:
        """Whether what waits to go together is a batch already, so that company would come too late."""
        return self.limits.fill_a_run(self._batches.queued, self._batches.queued_elements)

    def _why_full(self, before: Sequence[Lane], arrays: Sequence[Array]) -> str | None:
        """Why these arrays have no room behind what waits in the lanes `before` them; None where they have."""
        waiting = sum(lane.queued for lane in before)
        if not waiting:
            return None
        pictures, elements = sum(map(len, arrays)), sum(array.size for array in arrays)
        waiting_elements = sum(lane.queued_elements for lane in before)
        if not self.limits.fit_a_run(waiting + pictures, waiting_elements + elements):
            if self._overload.lasts:
                return WHY_SHORT  # one run may wait beside the one that is under way
            waiting, waiting_elements = self.queued, self._queued_elements
        full = self.limits.why_full(waiting + pictures, waiting_elements + elements)
        return full and f"{waiting} pictures are waiting, {full}"

    @property
    def in_hand(self) -> int:
        """Pictures that wait, or whose callers still have to make an answer of them: what newcomers wait for. They do
        not wait for those of the other lane."""
        return self._batches.queued + self._just_done

    def retry_after_s(self, before: Sequence[Lane] | None = None) -> int:
        """Seconds until what runs and what waits in the lanes `before`, without them in any, is done at the measured
        rate, from 1 to 60."""
        if not self._elements_per_s:
            return 1
        seconds = 0.0
        for lane in before or self._lanes:
            seconds += lane.queued_elements / self._elements_per_s
            if lane.busy_since is not None:
                running_s = sum(item.array.size for item in lane.running) / self._elements_per_s
                seconds += max(0.0, running_s - (perf_counter() - lane.busy_since))
        return max(1, min(60, math.ceil(seconds)))

    def close(self, reason: str) -> None:
        """Answer every waiting caller with `NotReady` and take no more."""
        self._closed = reason
        for lane in self._lanes:
            for item in lane.close():
                if not item.future.done():
                    item.future.set_exception(NotReady.for_now(reason))

    def _change_queue(self, pictures: int, elements: int) -> None:
        self.queued += pictures
        self._queued_elements += elements
        self._on_queue(pictures)

    def _finish(
        self, batch: Sequence[Item], outcomes: Sequence[Array | Exception], started: float, seconds: float
    ) -> None:
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
        pictures = sum(len(item.array) for item in batch)
        self._just_done += pictures
        asyncio.get_running_loop().call_soon(self._answered, pictures)
        self._observe(batch, started, seconds)  # last: whatever it may do, the callers have what they wait for

    def _answered(self, pictures: int) -> None:
        self._just_done -= pictures

    def _measure(self, batch: Sequence[Item], seconds: float) -> None:
        rate = sum(item.array.size for item in batch) / max(seconds, 1e-6)
        self._elements_per_s += (_DRAIN_SMOOTHING if self._elements_per_s else 1.0) * (rate - self._elements_per_s)
