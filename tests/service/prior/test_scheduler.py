"""The scheduler with a sampler whose rows the test hands out one by one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from service.errors import NotReady, QueueFull
from service.prior.draws import Codes, Draw
from service.prior.scheduler import Scheduler
from service.prior.turns import Job, Sample, choose
from service.telemetry.metrics import Metrics

H, W, SLOTS = 5, 2, 4
PLACES = 4 * SLOTS


class StepByStep:
    """Draws `[label, row]` in every row, and only when the test lets it."""

    grid = (H, W)
    max_batch = SLOTS

    def __init__(self) -> None:
        self.free = list(range(PLACES))
        self.state: dict[int, list[int]] = {}  # place -> label, next row
        self.batches: list[list[int]] = []  # labels
        self.entered = 0
        self.idle: Callable[[], bool] = lambda: False
        self.failing: Exception | None = None
        self.failing_open: Exception | None = None
        self.dead = False
        self._allowed = threading.Semaphore(0)

    @property
    def free_places(self) -> int:
        return len(self.free)

    def open(self, draw: Draw, batch: int) -> int:
        assert 1 <= batch <= self.max_batch
        if self.failing_open is not None:
            raise self.failing_open
        place = self.free.pop()
        self.state[place] = [draw.label, 0]
        return place

    def close(self, place: int) -> None:
        self.free.append(place)

    def advance(self, places: Sequence[int]) -> Codes:
        assert len(set(places)) == len(places) <= self.max_batch
        assert not set(places) & set(self.free)
        self.entered += 1
        assert self._allowed.acquire(timeout=10)
        self.batches.append([self.state[place][0] for place in places])
        if self.failing is not None:
            raise self.failing
        rows = np.array([self.state[place] for place in places], np.int64)
        for place in places:
            self.state[place][1] += 1
        return rows

    def check(self) -> None:
        if self.dead:
            raise RuntimeError("dead")

    async def rows(self, count: int) -> None:
        """Let `count` rows be drawn, and wait until the next one has begun or nothing is left to draw."""
        await self.begun()
        before = len(self.batches)
        for _ in range(count):
            self._allowed.release()
        await until(lambda: len(self.batches) == before + count)
        await until(lambda: self.idle() or self.entered > len(self.batches))

    async def begun(self) -> None:
        """Wait until a row is being drawn: what comes from now on cannot be part of it."""
        await until(lambda: self.entered > len(self.batches))

    def release(self) -> None:
        """Draw everything that is left."""
        self._allowed.release(10_000)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.001)


def draws(label: int, count: int = 1) -> list[Draw]:
    codes, mask = np.zeros((H, W), np.int64), np.zeros((H, W), np.bool_)
    one = Draw(np.zeros((H, W), np.float32), label, np.float32(1), 1, np.float32(1), codes, mask)
    return [one] * count


def scheduler_of(sampler: StepByStep, max_samples: int = 1000, **more: Any) -> tuple[Scheduler, Metrics]:
    metrics = Metrics()
    scheduler = Scheduler(sampler, max_samples, 60, metrics.generation.of("m"), **more)
    sampler.idle = lambda: not scheduler._driving
    return scheduler, metrics


def value(metrics: Metrics, name: str) -> float:
    found = metrics.registry.get_sample_value(f"vqserve_generate_{name}", {"model": "m"})
    assert found is not None
    return found


def run(work: Callable[[StepByStep, Scheduler, Metrics], Coroutine[Any, Any, None]], max_samples: int = 1000) -> None:
    async def main() -> None:
        sampler = StepByStep()
        scheduler, metrics = scheduler_of(sampler, max_samples)
        try:
            await asyncio.wait_for(work(sampler, scheduler, metrics), 20)
            assert sampler.free_places == PLACES, "every place is free again"
            assert value(metrics, "samples_in_flight") == 0
        finally:
            scheduler.close("the test is over")
            sampler.release()

    asyncio.run(main())


def test_a_job_that_arrives_joins_at_the_next_row_and_not_after_the_batch() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        first = scheduler.submit(draws(1))
        await sampler.rows(2)
        second = scheduler.submit(draws(2))
        await sampler.rows(H)
        assert (await first)[0].tolist() == [[1, row] for row in range(H)]
        assert not second.done()
        await sampler.rows(1)
        assert (await second)[0].tolist() == [[2, row] for row in range(H)]
        # The row that was already being drawn when the second job came cannot take it along.
        assert sampler.batches == [[1]] * 3 + [[1, 2]] * 2 + [[2]] * 3

    run(work)


def test_a_large_job_delays_a_small_one_by_one_row() -> None:
    """64 samples hold every slot; a single one has its first row in the first step that begins after its arrival."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        large = scheduler.submit(draws(1, 64))
        await sampler.begun()
        await sampler.rows(2)
        small = scheduler.submit(draws(2))
        await sampler.rows(1 + H)
        assert small.done()
        assert sampler.batches[3] == [1, 2, 1, 1]
        sampler.release()
        assert [grid.tolist() for grid in await large] == [[[1, row] for row in range(H)]] * 64

    run(work)


def test_every_job_has_a_slot_and_the_oldest_has_the_rest() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        jobs = [scheduler.submit(draws(0, 8))]
        await sampler.begun()
        jobs.append(scheduler.submit(draws(1, 8)))
        await sampler.rows(5)
        assert all(batch == [0, 1, 0, 0] for batch in sampler.batches[1:])
        sampler.release()
        await asyncio.gather(*jobs)

    run(work)


def test_beside_others_a_large_job_does_not_fill_a_row() -> None:
    """A full row takes longest, and those who want one sample would wait for seven of them. Alone it may; that more
    waits than two rows take is no reason, for then one sample is wanted most often."""

    async def main() -> None:
        sampler = StepByStep()
        scheduler, _ = scheduler_of(sampler, filled_beside_others=SLOTS - 2)
        large = scheduler.submit(draws(1, 2 * SLOTS - 1))
        await sampler.begun()
        small = scheduler.submit(draws(2))
        await sampler.rows(2)
        more = scheduler.submit(draws(3))
        await sampler.rows(1)
        assert [sorted(batch) for batch in sampler.batches] == [
            [1] * SLOTS,
            [1] * (SLOTS - 3) + [2],
            [1] * (SLOTS - 3) + [2],
        ]
        assert scheduler.samples_inside == 2 * SLOTS + 1
        await sampler.rows(1)
        assert sorted(sampler.batches[3]) == [1] * (SLOTS - 3) + [2, 3]
        sampler.release()
        await asyncio.gather(large, small, more)

    asyncio.run(main())


def test_cancelling_frees_the_slots_before_the_next_row() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        leaving = scheduler.submit(draws(1, SLOTS))
        await sampler.begun()
        staying = scheduler.submit(draws(2, SLOTS))
        await sampler.rows(2)
        leaving.cancel()
        await until(lambda: value(metrics, "cancelled_samples_total") == SLOTS)
        await sampler.rows(2)
        assert sampler.batches[3] == [2] * SLOTS
        sampler.release()
        await staying

    run(work)


def test_rows_are_told_once_in_order_and_only_when_all_samples_have_them() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        told: list[tuple[int, list[list[int]]]] = []
        future = scheduler.submit(draws(1, SLOTS + 1), lambda row, codes: told.append((row, codes.tolist())))
        await sampler.rows(H)
        assert told == [], "one sample has not begun"
        await sampler.rows(2)
        assert [row for row, _ in told] == [0, 1]
        await sampler.rows(H - 2)
        await future
        assert told == [(row, [[1, row]] * (SLOTS + 1)) for row in range(H)]

    run(work)


@pytest.mark.parametrize(("second", "refused"), [(5, False), (6, True)])
def test_the_queue_is_bounded(second: int, refused: bool) -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        futures = [scheduler.submit(draws(1, 5))]
        await sampler.begun()
        if refused:
            with pytest.raises(QueueFull) as caught:
                scheduler.submit(draws(2, second))
            assert int(caught.value.headers["Retry-After"]) >= 1
            assert value(metrics, "rejected_samples_total") == second
        else:
            futures.append(scheduler.submit(draws(2, second)))
        for future in futures:
            future.cancel()
        await sampler.rows(1)

    run(work, max_samples=10)


@pytest.mark.parametrize("dead", [False, True])
def test_a_failed_row_reaches_every_caller(dead: bool) -> None:
    """Running, paused and waiting ones alike. The scheduler goes on unless the sampler also fails on known input."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        futures = [scheduler.submit(draws(label, 8)) for label in range(3)]
        await sampler.rows(2)
        sampler.failing, sampler.dead = RuntimeError("CUDA error 700"), dead
        await sampler.rows(1)
        for future in futures:
            with pytest.raises(NotReady, match="sampler has failed"):
                await future
        assert (scheduler.why_not_ready() is not None) is dead
        sampler.failing = None
        if dead:
            with pytest.raises(NotReady):
                scheduler.submit(draws(1))
        else:
            again = scheduler.submit(draws(1))
            await sampler.rows(H)
            assert (await again).shape == (1, H, W)

    run(work)


def test_a_choice_that_fails_reaches_every_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is in the batch then; the thread would try the same choice for ever."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        futures = [scheduler.submit(draws(label)) for label in range(2)]
        await sampler.begun()
        monkeypatch.setattr("service.prior.scheduler.choose", Mock(side_effect=[RuntimeError("no choice"), []]))
        await sampler.rows(1)
        for future in futures:
            with pytest.raises(NotReady, match="sampler has failed on this batch"):
                await future
        assert scheduler.why_not_ready() is None

    run(work)


def test_a_failed_row_leaves_those_that_are_not_in_it() -> None:
    """They failed too, with a sampler that is well: those that waited for a slot, and those that came meanwhile."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        failed = [scheduler.submit(draws(label)) for label in range(SLOTS)]
        await sampler.begun()
        await sampler.rows(1)
        begun_meanwhile = scheduler.submit(draws(SLOTS))
        assert scheduler.samples_inside == SLOTS + 1
        sampler.failing = RuntimeError("no memory for so many")
        await sampler.rows(1)
        sampler.failing = None
        for future in failed:
            with pytest.raises(NotReady, match="sampler has failed on this batch"):
                await future
        assert scheduler.samples_inside == 1
        await sampler.rows(H)
        assert (await begun_meanwhile)[0].tolist() == [[SLOTS, row] for row in range(H)]

    run(work)


def test_rows_that_cannot_be_stored_reach_every_caller() -> None:
    """All waited for ever, also later ones."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        future, right = scheduler.submit(draws(1, 2)), sampler.advance
        sampler.advance = lambda places: right(places)[:1]  # type: ignore[method-assign]
        await sampler.rows(1)
        with pytest.raises(NotReady, match="sampler has failed"):
            await future
        sampler.advance = right  # type: ignore[method-assign]
        again = scheduler.submit(draws(1))
        await sampler.rows(H)
        assert (await again).shape == (1, H, W)

    run(work)


@pytest.mark.parametrize("dead", [False, True])
def test_a_sample_that_cannot_begin_reaches_every_caller(dead: bool) -> None:
    """On CUDA it clears a place on the device, which may fail. All waited for ever, also later ones."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        first = scheduler.submit(draws(1, 3))
        await sampler.rows(1)
        sampler.failing_open, sampler.dead = RuntimeError("CUDA error 700"), dead
        second = scheduler.submit(draws(2))
        await sampler.rows(1)
        for future in (first, second):
            with pytest.raises(NotReady, match="sampler has failed"):
                await future
        assert (scheduler.why_not_ready() is not None) is dead
        if not dead:
            sampler.failing_open = None
            again = scheduler.submit(draws(1))
            await sampler.rows(H)
            assert (await again).shape == (1, H, W)

    run(work)


def test_the_owner_hears_of_a_death_in_the_event_loop() -> None:
    async def main() -> None:
        sampler, heard, threads = StepByStep(), asyncio.Event(), list[threading.Thread]()

        def on_death() -> None:
            threads.append(threading.current_thread())
            heard.set()

        scheduler, _ = scheduler_of(sampler, on_death=on_death)
        future = scheduler.submit(draws(1))
        sampler.failing, sampler.dead = RuntimeError("no"), True
        await sampler.rows(1)
        await asyncio.wait_for(heard.wait(), 5)
        assert threads == [threading.current_thread()]
        with pytest.raises(NotReady):
            await future

    asyncio.run(main())


def test_close_answers_everyone_and_refuses_the_next() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        futures = [scheduler.submit(draws(label, 3)) for label in range(3)]
        await sampler.rows(1)
        scheduler.close("The service is shutting down.")
        for future in futures:
            with pytest.raises(NotReady, match="shutting down"):
                await future
        with pytest.raises(NotReady, match="shutting down") as told:
            scheduler.submit(draws(1))
        assert told.value.headers == {"Retry-After": "1"}
        await sampler.rows(1)

    run(work)


def test_metrics_of_a_job() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        future = scheduler.submit(draws(1, 3))
        assert value(metrics, "samples_in_flight") == 3
        await sampler.rows(2)
        assert value(metrics, "busy_slots") == 3
        assert scheduler.slots == SLOTS
        assert value(metrics, "first_row_seconds_count") == 1
        await sampler.rows(H - 2)
        await future
        assert value(metrics, "rows_total") == 3 * H
        assert value(metrics, "row_seconds_count") == H
        assert value(metrics, "first_row_seconds_count") == 1
        await until(lambda: value(metrics, "busy_slots") == 0)

    run(work)


def test_the_thread_works_only_while_there_is_work() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        for label in range(3):
            future = scheduler.submit(draws(label))
            await sampler.rows(H)
            await future
            await until(lambda: not scheduler._driving)
        assert len(scheduler._executor._threads) == 1

    run(work)


def test_choose_never_runs_out_of_places_and_serves_the_oldest_first() -> None:
    """Random arrivals, departures and rows: the rule of `choose` that 2 * slots places are enough, by simulation."""
    random = np.random.default_rng(0)
    jobs: list[Job] = []
    most = 0
    for _ in range(20_000):
        for _ in range(random.choice([0, 0, 0, 0, 0, 0, 1, 3])):
            job = Job(None, None, np.zeros((0, H, W), np.int64), None, 0.0)  # type: ignore[arg-type]
            job.unfinished = [Sample(job, index, draws(0)[0]) for index in range(random.choice([1, 1, 3, 20]))]
            jobs.append(job)
        if jobs and random.random() < 0.05:
            jobs.pop(random.integers(len(jobs)))
        if len(jobs) > 12:
            del jobs[6:]
        filled = int(random.integers(1, SLOTS + 1))
        batch = choose(jobs, SLOTS, filled)
        for sample in batch:
            sample.place = 1
        most = max(most, sum(sample.place is not None for job in jobs for sample in job.unfinished))
        firsts = [job.unfinished[0] for job in jobs[:SLOTS]]
        others = [sample for job in jobs for sample in job.unfinished[1:]]
        assert batch[: len(firsts)] == firsts, "the oldest jobs all advance"
        assert batch[len(firsts) :] == others[: max(0, filled - len(firsts))], "the oldest has what is left"
        for sample in batch:
            sample.row += 1
            if sample.row == H:
                sample.job.unfinished.remove(sample)
        jobs = [job for job in jobs if job.unfinished]
    assert most == 2 * SLOTS - 1
