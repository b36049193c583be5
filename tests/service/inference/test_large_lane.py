"""What is more than a run may be has a lane of its own: others of the same model do not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.errors import NotReady, QueueFull
from service.inference.batch_limits import BatchLimits
from service.inference.batching import Batcher
from service.inference.lane import Array
from service.inference.overload import Overload
from tests.service import bad_inputs as bad
from tests.service.inference.test_batching import Recorder, hold, ones, run
from tests.service.inference.test_engine import engine_of
from tests.service.overload_clock import Clock, clock, overloaded
from tests.service.serving import busy

__all__ = ["clock"]  # a fixture

NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
LIMITS = BatchLimits(max_batch=4, max_queued=20)


class HoldsLarge:
    """Doubles its input; what is more than a run waits in it for the gate."""

    def __init__(self) -> None:
        self.gate, self.started = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def __call__(self, array: Array) -> Array:
        self.sizes.append(len(array))
        if len(array) > LIMITS.max_batch:
            self.started.set()
            assert self.gate.wait(10)
        return array * 2


async def held(
    engine: HoldsLarge, limits: BatchLimits = LIMITS, overload: Overload | None = None
) -> tuple[Batcher, asyncio.Future[Array]]:
    """A batcher with a large run under way."""
    batcher = Batcher(engine, limits, overload=overload)
    large = batcher.submit(ones(5))
    await asyncio.to_thread(engine.started.wait, 10)
    return batcher, large


def test_others_are_answered_while_a_large_run_is_under_way() -> None:
    async def work() -> None:
        engine = HoldsLarge()
        batcher, large = await held(engine)
        for _ in range(3):
            assert (await batcher.submit(ones(1))).tolist() == [[2, 2]]
        assert not large.done() and busy(batcher)
        engine.gate.set()
        assert len(await large) == 5
        assert not busy(batcher)

    run(work)


def test_large_runs_go_one_after_another_in_the_order_of_their_coming() -> None:
    async def work() -> None:
        engine = HoldsLarge()
        batcher, first = await held(engine)
        second, third = batcher.submit(ones(7)), batcher.submit(ones(6))
        await batcher.submit(ones(2))
        assert engine.sizes == [5, 2]
        engine.gate.set()
        await asyncio.gather(first, second, third)
        assert engine.sizes == [5, 2, 7, 6]

    run(work)


def test_large_and_small_share_one_queue() -> None:
    """13 wait in the lane of the large, so that 7 more have room."""

    async def work() -> None:
        engine = HoldsLarge()
        batcher, first = await held(engine)
        waiting = batcher.submit(ones(13))
        with pytest.raises(QueueFull, match="13 pictures are waiting"):
            batcher.submit(ones(8))
        assert (batcher.queued, batcher.in_hand) == (13, 0)  # newcomers that fit a run need not wait for them
        waiting.cancel()
        await asyncio.sleep(0)
        assert batcher.queued == 0
        last = batcher.submit(ones(20))
        engine.gate.set()
        await asyncio.gather(first, last)
        assert engine.sizes == [5, 20]

    run(work)


def test_one_run_of_others_may_wait_however_full_large_ones_make_the_queue() -> None:
    """Five clients that sent 256 digits each, again and again, kept it full: a single one got 429, by an idle lane."""

    async def work() -> None:
        engine = HoldsLarge()
        batcher, first = await held(engine)
        waiting = batcher.submit(ones(20))
        futures = [batcher.submit(ones(1)), batcher.submit(ones(3))]  # in one turn: both wait
        with pytest.raises(QueueFull, match=r"24 pictures are waiting, .* than the 20 that may"):
            batcher.submit(ones(1))
        with pytest.raises(QueueFull, match="24 pictures are waiting"):
            batcher.submit(ones(5))
        await asyncio.gather(*futures)
        assert engine.sizes == [5, 4]
        several = batcher.submit_all([ones(3), ones(3, width=3)])  # of one caller, before whom none of them wait
        assert [len(one) for one in await asyncio.gather(*several)] == [3, 3]
        engine.gate.set()
        await asyncio.gather(first, waiting)

    run(work)


def test_while_overload_lasts_others_do_not_wait_behind_large_ones(clock: Clock) -> None:
    """All of them were refused for as long as a large one waited, which kept up the overload."""

    async def work() -> None:
        engine = HoldsLarge()
        batcher, first = await held(engine, overload=overloaded(clock))
        waiting = batcher.submit(ones(9))
        for _ in range(2):
            batcher.refuse_early()
            assert len(await batcher.submit(ones(4))) == 4
        with pytest.raises(QueueFull, match="VQSERVE_SHORT_QUEUE_IN_OVERLOAD"):
            batcher.submit(ones(5))
        several = [batcher.submit(ones(3)), batcher.submit(ones(1))]
        with pytest.raises(QueueFull, match="VQSERVE_SHORT_QUEUE_IN_OVERLOAD"):
            batcher.submit(ones(1))
        engine.gate.set()
        await asyncio.gather(first, waiting, *several)

    run(work)


def test_what_others_can_wait_for_is_not_large(clock: Clock) -> None:
    """Batches of 64 digits, which are eight runs of a hundredth of a second together, were: while overload lasted, the
    bodies of all of them were read before most were refused, for whoever looked before saw an idle engine."""

    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, LIMITS, overload=overloaded(clock))
        batcher.keep_with_others(16)
        first = await hold(batcher, recorder)
        large = batcher.submit(ones(9))
        await asyncio.sleep(0)
        assert (batcher.in_hand, batcher.queued) == (0, 0)  # it is under way in the other lane
        batcher.refuse_early()
        waiting = batcher.submit(ones(8))
        assert batcher.in_hand == 8
        with pytest.raises(QueueFull, match="VQSERVE_SHORT_QUEUE_IN_OVERLOAD"):
            batcher.refuse_early()
        recorder.gate.set()
        await asyncio.gather(first, waiting, large)
        assert sorted(recorder.shapes) == [(1, 2), (8, 2), (9, 2)]

    run(work)


def test_a_large_one_that_waits_is_no_company() -> None:
    """It made a batch full, so that what came beside it went one by one, whatever VQSERVE_MAX_WAIT_MS said."""

    async def work() -> None:
        engine = HoldsLarge()
        batcher, first = await held(engine, BatchLimits(max_batch=4, max_queued=20, max_wait_ms=60_000))
        waiting = batcher.submit(ones(9))
        others = [batcher.submit(ones(2))]
        for _ in range(3):
            await asyncio.sleep(0)
        assert batcher.queued == 11
        others.append(batcher.submit(ones(2)))
        await asyncio.gather(*others)
        assert engine.sizes == [5, 4]
        engine.gate.set()
        await asyncio.gather(first, waiting)

    run(work)


def test_a_closed_batcher_answers_whoever_waits_in_either_lane() -> None:
    async def work() -> None:
        engine = HoldsLarge()
        batcher, first = await held(engine)
        others = [batcher.submit(ones(9)), batcher.submit(ones(1))]
        batcher.close("It is over.")
        for future in (first, *others):
            with pytest.raises(NotReady, match=r"It is over\."):
                await future
        assert batcher.queued == 0
        engine.gate.set()

    run(work)


def test_a_digit_does_not_wait_for_a_large_picture(make_client: Callable[..., TestClient]) -> None:
    """It waited for its last window: of a photograph of 12 megapixels half a minute, and then for the next one."""
    client = make_client(inline_ms=0)
    engine = engine_of(client, "tiny_colour")
    engine._encode.keep_with_others(0)  # of a tiny network everything is brief
    gate, begun, encoder = threading.Event(), threading.Event(), engine._encoder

    class HoldsWindows:
        def run(self, names: None, given: dict[str, Any]) -> list[Any]:
            if given["images"].shape[2] > 200:
                begun.set()
                assert gate.wait(10)
            return encoder.run(names, given)

    engine._encoder = HoldsWindows()
    answers: list[int] = []

    def ask() -> None:
        large = bad.npy(np.zeros((1, 400, 400, 3), np.uint8))
        answers.append(client.post("/encode?model=tiny_colour", content=large, headers=NPY).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(10)
    small = bad.npy(np.zeros((1, 16, 16, 3), np.uint8))
    assert client.post("/encode?model=tiny_colour", content=small, headers=NPY).status_code == 200
    assert answers == []
    gate.set()
    thread.join(10)
    assert answers == [200]
