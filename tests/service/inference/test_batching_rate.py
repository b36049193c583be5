"""How quickly the batcher gets on, by a clock that the test moves, and when it says to come back."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import QueueFull
from service.inference.batch_limits import BatchLimits
from service.inference.batching import Batcher
from service.inference.lane import Array
from service.stopping import Stopped
from tests.service.inference.test_batching import Recorder, hold, hold_again, ones, run
from tests.service.inference.test_large_lane import HoldsLarge, held


class Clock:
    """Stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("service.inference.batching", "service.inference.lane"):
        monkeypatch.setattr(f"{module}.perf_counter", clock)
    return clock


async def measured(clock: Clock, elements_per_s: int) -> tuple[Batcher, Recorder]:
    """A batcher that takes one array a run, after a first run of two elements. In powers of two seconds are exact."""
    recorder = Recorder()
    batcher = Batcher(recorder, BatchLimits(max_batch=1, max_queued=1000))
    first = await hold(batcher, recorder)
    clock.now += 2 / elements_per_s
    recorder.gate.set()
    await first
    return batcher, recorder


def test_retry_after_follows_the_measured_rate(clock: Clock) -> None:
    """The first run counts whole: with a fifth of its rate all answers said five times as long."""

    async def work() -> None:
        batcher, recorder = await measured(clock, 4)
        blocked = await hold_again(batcher, recorder)
        waiting = [batcher.submit(ones(1)) for _ in range(25)]
        assert batcher.retry_after_s() == 13  # 0.5 s for what runs, 12.5 s for what waits
        waiting.append(batcher.submit(ones(1, width=100)))  # as much work as 50 pictures of two elements
        assert batcher.retry_after_s() == 38
        recorder.gate.set()
        await asyncio.gather(blocked, *waiting)

    run(work)


def test_later_runs_move_the_rate_by_a_fifth(clock: Clock) -> None:
    async def work() -> None:
        batcher, recorder = await measured(clock, 4)
        second = await hold_again(batcher, recorder)
        clock.now += 2  # one element a second
        recorder.gate.set()
        await second
        assert batcher._elements_per_s == pytest.approx(0.8 * 4 + 0.2 * 1)

    run(work)


def test_what_is_left_of_the_run_in_progress_counts(clock: Clock) -> None:
    """With 8 s of a run to come, whoever was refused was told to come back in one."""

    async def work() -> None:
        batcher, recorder = await measured(clock, 8)
        recorder.started.clear()
        recorder.gate.clear()
        large = batcher.submit(ones(1, width=64))
        await asyncio.to_thread(recorder.started.wait, 10)
        assert batcher.retry_after_s() == 8
        clock.now += 5
        assert batcher.retry_after_s() == 3
        waiting = batcher.submit(ones(1, width=16))
        assert batcher.retry_after_s() == 5
        clock.now += 60  # it takes longer than it should: that makes the others no quicker
        assert batcher.retry_after_s() == 2
        recorder.gate.set()
        await asyncio.gather(large, waiting)

    run(work)


def test_who_does_not_wait_for_large_ones_is_not_told_their_time(clock: Clock) -> None:
    """A digit beside three photographs was to come back in a minute, where its lane was free in milliseconds."""

    async def work() -> None:
        engine = HoldsLarge()
        batcher, first = await held(engine)
        waiting, others = batcher.submit(ones(20)), [batcher.submit(ones(4))]
        batcher._elements_per_s = 1.0
        for refused, seconds in ((ones(1), 8), (ones(5), 58)):  # 8 elements of four; 10 run and 40 wait besides
            with pytest.raises(QueueFull) as told:
                batcher.submit(refused)
            assert int(told.value.headers["Retry-After"]) == seconds
        batcher.give_up_waiting()
        for given_up, seconds in ((others[0], 1), (waiting, 10)):
            with pytest.raises(QueueFull) as told:
                await given_up
            assert int(told.value.headers["Retry-After"]) == seconds
        engine.gate.set()
        await first

    run(work)


@pytest.mark.parametrize("error", [Stopped(), RuntimeError("no memory")])
def test_a_run_that_ended_early_says_nothing_of_the_rate(clock: Clock, error: Exception) -> None:
    """All elements of a large picture that was given up counted, over the little time that it took: the rate was a
    thousand times too high, for some thirty runs."""

    async def work() -> None:
        batcher, _ = await measured(clock, 8)

        def fail(array: Array) -> Array:
            clock.now += 0.001
            raise error

        batcher._batches.run = fail
        with pytest.raises(type(error)):
            await batcher.submit(ones(1, width=10_000))
        assert batcher._elements_per_s == pytest.approx(8)

    run(work)


def test_a_run_of_which_one_item_failed_is_measured(clock: Clock) -> None:
    async def work() -> None:
        batcher, recorder = await measured(clock, 8)
        batcher.limits = batcher._batches.limits = BatchLimits(max_batch=2, max_queued=1000)
        recorder.started.clear()
        recorder.gate.clear()
        futures = [batcher.submit(ones(1)), batcher.submit(ones(1, value=13))]
        await asyncio.to_thread(recorder.started.wait, 10)
        clock.now += 4  # one element a second
        recorder.gate.set()
        await asyncio.gather(*futures, return_exceptions=True)
        assert batcher._elements_per_s == pytest.approx(0.8 * 8 + 0.2 * 1)

    run(work)
