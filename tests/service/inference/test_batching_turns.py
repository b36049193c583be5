"""Who arrives, leaves or closes in which turn of the loop, and that a lane has one run at a time."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import NotReady, QueueFull
from service.inference.batch_limits import BatchLimits
from service.inference.batching import Batcher
from service.inference.lane import Array
from tests.service.inference.test_batching import Recorder, hold, ones, run


def test_after_a_batch_that_needed_no_company_the_next_waits_for_its_end() -> None:
    """The timer that the first one had set, or a third picture of the same turn, must not start a second run."""

    async def work() -> None:
        recorder = Recorder()
        recorder.gate.clear()
        batcher = Batcher(recorder, BatchLimits(2, 100, max_wait_ms=20))
        futures = [batcher.submit(ones(1)) for _ in range(3)]
        await asyncio.sleep(0.06)
        assert batcher.queued == 1
        recorder.gate.set()
        await asyncio.gather(*futures)
        assert recorder.shapes == [(2, 2), (1, 2)]

    run(work)


@pytest.mark.parametrize(("width", "waits"), [(4, True), (5, False), (600, False)])
def test_what_nothing_can_join_waits_for_no_company(width: int, waits: bool) -> None:
    """Only pictures were counted: one with as many elements as a batch may have waited all of VQSERVE_MAX_WAIT_MS."""

    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100, max_wait_ms=60_000, max_batch_elements=10))
        future = batcher.submit(ones(2, width))
        done, _ = await asyncio.wait([future], timeout=0.05 if waits else 5)
        assert bool(done) is not waits
        batcher.close("the end")
        await asyncio.gather(future, return_exceptions=True)

    run(work)


def test_the_queue_is_bounded_in_pictures_and_not_in_arrays() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=64, max_queued=4))
        futures = [await hold(batcher, recorder), batcher.submit(ones(2))]
        with pytest.raises(QueueFull, match=r"2 pictures are waiting, .* than the 4 that may \(VQSERVE_MAX_QUEUED_P"):
            batcher.submit(ones(3))
        futures.append(batcher.submit(ones(2)))
        recorder.gate.set()
        await asyncio.gather(*futures)

    run(work)


@pytest.mark.parametrize(("rate", "seconds"), [(0.1, 60), (1e6, 1)])
def test_retry_after_is_from_1_to_60_seconds(rate: float, seconds: int) -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=64, max_queued=100))
        futures = [await hold(batcher, recorder), batcher.submit(ones(4))]
        batcher._elements_per_s = rate
        assert batcher.retry_after_s() == seconds
        recorder.gate.set()
        await asyncio.gather(*futures)
        assert batcher.retry_after_s() == 1, "nothing waits"

    run(work)


def test_who_leaves_in_the_turn_of_its_arrival_costs_no_run() -> None:
    async def work() -> None:
        recorder, changes = Recorder(), [0]
        batcher = Batcher(recorder, BatchLimits(64, 100), on_queue=changes.append)
        stays, gone = batcher.submit(ones(1)), batcher.submit(ones(2))
        gone.cancel()
        await stays
        assert recorder.shapes == [(1, 2)]
        assert (batcher.queued, batcher._queued_elements, sum(changes)) == (0, 0, 0)

    run(work)


def test_a_batcher_whose_only_caller_left_at_once_takes_the_next() -> None:
    async def work() -> None:
        batcher = Batcher(Recorder(), BatchLimits(64, 100))
        batcher.submit(ones(1)).cancel()
        await asyncio.sleep(0.01)
        assert (await batcher.submit(ones(1)) == 2).all()

    run(work)


def test_a_full_batch_that_comes_after_the_wait_does_not_overtake_the_run() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(2, 100, max_wait_ms=5))
        futures = [await hold(batcher, recorder), batcher.submit(ones(1)), batcher.submit(ones(1))]
        await asyncio.sleep(0.01)
        assert batcher.queued == 2
        recorder.gate.set()
        await asyncio.gather(*futures)
        assert recorder.shapes == [(1, 2), (2, 2)]

    run(work)


def test_who_asks_again_before_the_next_run_begins_starts_none_beside_it() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100))
        first = await hold(batcher, recorder)
        waiting = batcher.submit(ones(1))

        async def ask_again() -> asyncio.Future[Array]:
            await first
            recorder.started.clear()
            return await hold(batcher, recorder)

        asking = asyncio.create_task(ask_again())
        await asyncio.sleep(0)
        recorder.gate.set()
        futures = [waiting, await asking]
        for _ in range(2):
            futures.append(batcher.submit(ones(1)))
            await asyncio.sleep(0)
        recorder.gate.set()
        await asyncio.gather(*futures)
        assert recorder.shapes == [(1, 2), (2, 2), (2, 2)]

    run(work)


def test_a_closed_batcher_runs_nothing_more_and_has_no_queue() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100))
        futures = [await hold(batcher, recorder), batcher.submit(ones(3))]
        batcher.close("closed for the test")
        recorder.gate.set()
        for future in futures:
            with pytest.raises(NotReady):
                await future
        await asyncio.sleep(0.05)
        assert recorder.shapes == [(1, 2)]
        assert (batcher.queued, batcher._queued_elements) == (0, 0)

    run(work)
