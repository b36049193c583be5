"""What is more than a run may be has a lane of its own: others of the same model do not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.batch_limits import BatchLimits
from service.batching import Batcher
from service.errors import NotReady, QueueFull
from service.lane import Array
from tests.service import bad_inputs as bad
from tests.service.test_batching import ones, run
from tests.service.test_engine import engine_of

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


async def held(engine: HoldsLarge) -> tuple[Batcher, asyncio.Future[Array]]:
    """A batcher with a large run under way."""
    batcher = Batcher(engine, LIMITS)
    large = batcher.submit(ones(5))
    await asyncio.to_thread(engine.started.wait, 10)
    return batcher, large


def test_others_are_answered_while_a_large_run_is_under_way() -> None:
    async def work() -> None:
        engine = HoldsLarge()
        batcher, large = await held(engine)
        for _ in range(3):
            assert (await batcher.submit(ones(1))).tolist() == [[2, 2]]
        assert not large.done() and batcher.busy_since is not None
        engine.gate.set()
        assert len(await large) == 5
        assert batcher.busy_since is None

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
