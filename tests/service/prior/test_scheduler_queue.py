"""The queue of the scheduler: what is left, when to come back, and answers that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.errors import NotReady, QueueFull
from service.prior.scheduler import Scheduler
from service.telemetry.metrics import Metrics
from tests.service.inference.test_batching_rate import Clock
from tests.service.prior.test_scheduler import H, StepByStep, W, draws, run, until, value


@pytest.mark.parametrize(("rate", "seconds"), [(4.0, -(-10 * H // 4)), (0.1, 60), (1e6, 1)])
def test_retry_after_is_the_rows_left_over_the_measured_rate(rate: float, seconds: int) -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        future = scheduler.submit(draws(1, 10))
        await sampler.begun()
        scheduler._rows_per_s = rate
        with pytest.raises(QueueFull) as caught:
            scheduler.submit(draws(2))
        assert caught.value.headers["Retry-After"] == str(seconds)
        future.cancel()
        await sampler.rows(1)

    run(work, max_samples=10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.prior.scheduler.perf_counter", clock)
    return clock


def test_the_rate_is_that_of_all_the_samples_that_advance(clock: Clock) -> None:
    """The first row counts whole, and each later one a tenth: else Retry-After would be several times too long."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        future = scheduler.submit(draws(1, 3))
        for seconds, rate in ((0.5, 6.0), (1.5, 0.9 * 6.0 + 0.1 * 2.0)):
            await sampler.begun()
            clock.now += seconds
            await sampler.rows(1)
            assert scheduler._rows_per_s == pytest.approx(rate)
        sampler.release()
        await future

    run(work)


def test_rows_that_are_drawn_or_given_up_are_no_longer_left() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        staying, leaving = scheduler.submit(draws(1)), scheduler.submit(draws(2, 2))
        await sampler.begun()
        await sampler.rows(2)
        assert scheduler._rows_left == 3 * H - sum(len(batch) for batch in sampler.batches)
        leaving.cancel()
        await until(lambda: value(metrics, "cancelled_samples_total") == 2)
        sampler.release()
        await staying
        assert scheduler._rows_left == 0

    run(work)


def test_a_row_that_stalls_turns_readiness_off(clock: Clock) -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        future = scheduler.submit(draws(1))
        await sampler.begun()
        clock.now += 60
        assert scheduler.why_not_ready() is None
        clock.now += 0.5
        assert scheduler.why_not_ready() == "a row takes longer than 60 s"
        await sampler.rows(H)
        await future
        clock.now += 61
        assert scheduler.why_not_ready() is None, "nothing is being drawn"

    run(work)


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.filterwarnings("error")
def test_an_answer_that_comes_after_its_caller_has_left_is_dropped(closing: bool) -> None:
    """Both within one turn of the loop."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        future = scheduler.submit(draws(1))
        await sampler.rows(H - 1)
        sampler.release()
        if closing:
            future.cancel()
            scheduler.close("The service is shutting down.")
        else:
            while scheduler._driving:
                time.sleep(0.001)
            assert not future.done()
            future.cancel()
        await asyncio.sleep(0.01)
        assert faults == []

    run(work)


def test_whoever_is_told_that_the_sampler_failed_is_told_when_to_come_back() -> None:
    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        future = scheduler.submit(draws(1))
        sampler.failing = RuntimeError("CUDA error 700")
        await sampler.rows(1)
        with pytest.raises(NotReady) as caught:
            await future
        assert caught.value.headers == {"Retry-After": "1"}

    run(work)


def test_a_job_larger_than_the_queue_is_taken_while_nothing_is_inside() -> None:
    """Or it would never be."""

    async def work(sampler: StepByStep, scheduler: Scheduler, metrics: Metrics) -> None:
        future = scheduler.submit(draws(1, 11))
        with pytest.raises(QueueFull):
            scheduler.submit(draws(2))
        sampler.release()
        assert (await future).shape == (11, H, W)

    run(work, max_samples=10)
