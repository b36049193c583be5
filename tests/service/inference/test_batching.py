"""The batcher with runs that record what they were given: no model, no HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
import uvloop

from service.errors import NotReady, QueueFull
from service.inference.batch_limits import BatchLimits
from service.inference.batching import Batcher
from service.inference.lane import Array, Item
from service.stopping import check_stop


class Recorder:
    """Doubles its input, remembers each batch's shape, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def __call__(self, array: Array) -> Array:
        self.shapes.append(array.shape)
        self.threads.add(threading.current_thread().name)
        self.started.set()
        self.gate.wait(10)
        if (array == 13).any():
            raise RuntimeError("thirteen")
        return array * 2


def ones(count: int, width: int = 2, value: int = 1) -> Array:
    return np.full((count, width), value)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await work()

    asyncio.run(bounded())


async def hold(batcher: Batcher, recorder: Recorder) -> asyncio.Future[Array]:
    """Start a run that stays inside the engine until the gate opens."""
    recorder.gate.clear()
    future = batcher.submit(ones(1))
    await asyncio.to_thread(recorder.started.wait, 10)
    return future


def test_what_queues_while_the_engine_is_busy_goes_as_one_batch() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=64, max_queued=100))
        first = await hold(batcher, recorder)
        rest = [batcher.submit(ones(1, value=n)) for n in range(5)]
        recorder.gate.set()
        results = await asyncio.gather(first, *rest)
        assert recorder.shapes == [(1, 2), (5, 2)]
        assert [int(result[0, 0]) for result in results] == [2, 0, 2, 4, 6, 8]

    run(work)


def test_an_idle_batcher_starts_without_waiting_and_inline_when_small() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=64, max_queued=100))
        batcher.run_inline(4)
        await batcher.submit(ones(2))
        await batcher.submit(ones(3))
        assert recorder.shapes == [(2, 2), (3, 2)]
        assert threading.current_thread().name in recorder.threads  # four elements: on the event loop
        assert any(name.startswith("engine") for name in recorder.threads)  # six: in the thread

    run(work)


def test_one_turn_of_the_loop_makes_one_batch() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=64, max_queued=100))
        await asyncio.gather(*(batcher.submit(ones(1)) for _ in range(7)))
        assert recorder.shapes == [(7, 2)]

    run(work)


@pytest.mark.parametrize(("count", "batches"), [(3, [3]), (4, [4]), (5, [4, 1])])
def test_max_batch_below_at_and_above(count: int, batches: list[int]) -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=4, max_queued=100))
        await asyncio.gather(*(batcher.submit(ones(1)) for _ in range(count)))
        assert [shape[0] for shape in recorder.shapes] == batches

    run(work)


def test_a_request_larger_than_max_batch_runs_alone_and_beside_the_others() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=4, max_queued=100))
        await asyncio.gather(batcher.submit(ones(1)), batcher.submit(ones(9)), batcher.submit(ones(1)))
        assert sorted(shape[0] for shape in recorder.shapes) == [2, 9]

    run(work)


@pytest.mark.parametrize(("width", "batches"), [(2, [4, 1]), (3, [2, 2, 1]), (8, [1] * 5), (9, [1] * 5)])
def test_a_batch_is_bounded_by_its_elements_too(width: int, batches: list[int]) -> None:
    """Regression: eight pictures of 4096x4096 went as one run, which took longer than any deadline."""

    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=4, max_queued=100, max_batch_elements=8))
        await asyncio.gather(*(batcher.submit(ones(1, width)) for _ in range(5)))
        assert [shape[0] for shape in recorder.shapes] == batches

    run(work)


def test_different_shapes_go_in_different_batches_and_take_turns() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=2, max_queued=100))
        await asyncio.gather(*(batcher.submit(ones(1, width)) for width in (2, 2, 2, 3)))
        assert recorder.shapes == [(2, 2), (1, 3), (1, 2)]

    run(work)


def test_a_bad_item_fails_alone() -> None:
    async def work() -> None:
        failures: list[Exception] = []
        batcher = Batcher(Recorder(), BatchLimits(64, 100), on_failure=failures.append)
        futures = [batcher.submit(ones(1, value=value)) for value in (1, 13, 3)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(results[1], RuntimeError)
        assert [int(np.asarray(results[n])[0, 0]) for n in (0, 2)] == [2, 6]
        assert failures == []

    run(work)


def test_a_failed_run_reaches_every_caller_and_is_reported() -> None:
    async def work() -> None:
        failures: list[Exception] = []
        batcher = Batcher(Recorder(), BatchLimits(64, 100), on_failure=failures.append)
        results = await asyncio.gather(*(batcher.submit(ones(1, value=13)) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(result, RuntimeError) for result in results)
        assert len(failures) == 1
        assert (await batcher.submit(ones(1)) == 2).all()  # and it goes on

    run(work)


def test_arrays_of_one_caller_go_in_together_or_not_at_all() -> None:
    """Its own first ones counted as others, so that a form of many sizes was refused for ever, by an idle service."""

    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 4))
        futures = batcher.submit_all([ones(1, width) for width in range(1, 8)])
        assert batcher.queued == 7
        with pytest.raises(QueueFull):
            batcher.submit_all([ones(1)])
        recorder.gate.set()
        assert [result.shape for result in await asyncio.gather(*futures)] == [(1, width) for width in range(1, 8)]
        first = await hold(batcher, recorder)
        queued = batcher.submit_all([ones(1), ones(2, 3)])
        with pytest.raises(QueueFull):
            batcher.submit_all([ones(1), ones(1, 3)])
        assert batcher.queued == 3
        recorder.gate.set()
        await asyncio.gather(first, *queued)

    run(work)


def test_a_caller_that_has_left_costs_no_run() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100))
        first = await hold(batcher, recorder)
        gone, stays = batcher.submit(ones(3)), batcher.submit(ones(2))
        gone.cancel()
        recorder.gate.set()
        await asyncio.gather(first, stays)
        assert recorder.shapes == [(1, 2), (2, 2)]
        assert batcher.queued == 0

    run(work)


def test_callers_that_leave_free_their_places_at_once() -> None:
    """Regression: they stayed in the queue, in memory and in the metric until the run before them had ended."""

    async def work() -> None:
        recorder, changes = Recorder(), [0]
        batcher = Batcher(recorder, BatchLimits(64, 4, max_queued_elements=8), on_queue=changes.append)
        first = await hold(batcher, recorder)
        array = ones(2)
        memory = weakref.ref(array)
        waiting = [batcher.submit(array), batcher.submit(ones(1)), batcher.submit(ones(1, width=1))]
        del array
        with pytest.raises(QueueFull):
            batcher.submit(ones(1))
        for future in waiting:
            future.cancel()
        del future, waiting
        await asyncio.sleep(0)
        assert (batcher.queued, sum(changes), memory()) == (0, 0, None)
        later = [batcher.submit(ones(1, value=value)) for value in range(4)]
        later[1].cancel()
        recorder.gate.set()
        assert [int(one[0, 0]) for one in await asyncio.gather(first, later[0], *later[2:])] == [2, 0, 4, 6]
        assert recorder.shapes == [(1, 2), (3, 2)]
        assert (batcher.queued, sum(changes)) == (0, 0)

    run(work)


@pytest.mark.parametrize(("width", "refused"), [(3, False), (4, False), (5, True)])
def test_queue_limit_of_elements_below_at_and_above(width: int, refused: bool) -> None:
    """What comes while nothing waits is taken however large it is, or it would never be."""

    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100, max_queued_elements=8))
        futures = [await hold(batcher, recorder), batcher.submit(ones(2))]
        if refused:
            with pytest.raises(QueueFull, match=r"2 pictures are waiting, .* \(VQSERVE_MAX_PIXELS_PER_REQUEST"):
                batcher.submit(ones(1, width))
        else:
            futures.append(batcher.submit(ones(1, width)))
        recorder.gate.set()
        await asyncio.gather(*futures)
        futures = [await hold_again(batcher, recorder), batcher.submit(ones(1, 100))]
        with pytest.raises(QueueFull):
            batcher.submit(ones(1, 1))
        recorder.gate.set()
        await asyncio.gather(*futures)

    run(work)


@pytest.mark.parametrize(("waiting", "refused"), [(3, False), (4, False), (5, True)])
def test_queue_limit_below_at_and_above(waiting: int, refused: bool) -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=64, max_queued=4))
        futures = [await hold(batcher, recorder)]
        futures += [batcher.submit(ones(1)) for _ in range(min(waiting, 4))]
        if refused:
            with pytest.raises(QueueFull) as caught:
                batcher.submit(ones(1))
            assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
        recorder.gate.set()
        await asyncio.gather(*futures)

    run(work)


async def hold_again(batcher: Batcher, recorder: Recorder) -> asyncio.Future[Array]:
    recorder.started.clear()
    return await hold(batcher, recorder)


def test_close_answers_everyone_running_or_waiting() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100))
        running = await hold(batcher, recorder)
        waiting = batcher.submit(ones(1))
        batcher.close("closed for the test")
        for future in (running, waiting):
            with pytest.raises(NotReady, match="closed for the test") as told:
                await future
            assert told.value.headers == {"Retry-After": "1"}
        with pytest.raises(NotReady) as told:
            batcher.submit(ones(1))
        assert told.value.headers == {"Retry-After": "1"}
        recorder.gate.set()

    run(work)


def test_a_large_array_that_nobody_waits_for_is_given_up_and_is_no_failure() -> None:
    """A decoded picture of 16 megapixels held the engine for 8 s after its client had left."""

    async def work() -> None:
        steps, failures, begun = [], [], threading.Event()

        def in_windows(array: Array) -> Array:
            for step in range(1000):
                check_stop()
                steps.append(step)
                begun.set()
                time.sleep(0.005)
            return array

        limits = BatchLimits(64, 100, max_batch_elements=10)
        batcher = Batcher(in_windows, limits, on_failure=failures.append)
        large = batcher.submit(ones(1, width=11))
        await asyncio.to_thread(begun.wait, 5)
        large.cancel()
        small = batcher.submit(ones(1))
        while batcher.queued:
            await asyncio.sleep(0.01)
        assert len(steps) < 500 and failures == []
        small.cancel()
        batcher.close("the end")

    run(work)


def test_a_full_batch_waits_for_no_company() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(3, 100, max_wait_ms=60_000))
        futures = [batcher.submit(ones(1)), batcher.submit(ones(2))]
        async with asyncio.timeout(5):
            await asyncio.gather(*futures)
        assert recorder.shapes == [(3, 2)]

    run(work)


def test_max_wait_gathers_company() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100, max_wait_ms=50))
        first = batcher.submit(ones(1))
        await asyncio.sleep(0.005)
        second = batcher.submit(ones(1))
        await asyncio.gather(first, second)
        assert recorder.shapes == [(2, 2)]

    run(work)


@pytest.mark.parametrize("wait_ms", [0.1, 0.5])
def test_a_wait_of_less_than_a_millisecond_is_one(wait_ms: float) -> None:
    """The service's event loop rounds half of one to none, and the setting did nothing."""

    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100, max_wait_ms=wait_ms))
        future = batcher.submit(ones(1))
        assert isinstance(batcher._company, uvloop.loop.TimerHandle)
        await future
        batcher.close("It is over.")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def test_a_fault_of_who_observes_keeps_nobody_waiting() -> None:
    async def work() -> None:
        def observe(items: Sequence[Item], started: float, seconds: float) -> None:
            raise KeyError("observe")

        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(64, 100), observe=observe)
        running, waiting = await hold(batcher, recorder), batcher.submit(ones(1))
        recorder.gate.set()
        for future in (running, waiting):
            assert (await future).tolist() == [[2, 2]]

    run(work)


@pytest.mark.parametrize("given", [1, 3])
def test_a_run_that_gives_too_few_or_too_many_fails_for_all_of_its_callers(given: int) -> None:
    async def work() -> None:
        recorder = Recorder()

        def gives(array: Array) -> Array:
            return np.resize(recorder(array), (1 if len(array) == 1 else given, 2))

        batcher = Batcher(gives, BatchLimits(64, 100))
        first = await hold(batcher, recorder)
        two = [batcher.submit(ones(2)), batcher.submit(ones(2))]
        recorder.gate.set()
        await first
        for future in two:
            with pytest.raises(ValueError, match=f"a run of 2 pictures gave {given}"):
                await future

    run(work)


def test_the_threads_are_there_before_they_are_needed() -> None:
    """Where none could be started at the first run, its caller and all later ones waited for ever."""
    batcher = Batcher(lambda array: array, BatchLimits(max_batch=1, max_queued=1))
    assert [len(lane.executor._threads) for lane in batcher._lanes] == [1, 1]
    batcher.close("done")
