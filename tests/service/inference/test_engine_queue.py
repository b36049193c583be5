"""What may wait for an engine, and what it does without a thread."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from service.errors import QueueFull
from tests.service.inference.test_engine import MakeClient, Slow, engine_of


@pytest.mark.parametrize(("side", "refused"), [(16, False), (20, True)])
def test_the_largest_request_may_wait_behind_others(make_client: MakeClient, side: int, refused: bool) -> None:
    """64x64 pixels, and a quarter of them in other pictures. Four pictures of the model's size would have as many as
    this quarter, and the refusal named the setting of their number, which moved nothing."""
    client = make_client(inline_ms=0, max_queued_pictures=4, max_pixels_per_request=64 * 64)
    engine = engine_of(client, "tiny_colour")
    engine._encoder, engine._decoder = encoder, decoder = Slow(engine._encoder), Slow(engine._decoder)

    def arrays(*shape: int) -> tuple[Any, Any]:
        return np.zeros((1, *shape, 3), np.uint8), np.zeros((1, shape[0] // 4, shape[1] // 4), np.int64)

    async def work() -> None:
        async with asyncio.timeout(10):
            for submit, slow, which in ((engine.encode, encoder, 0), (engine.decode, decoder, 1)):
                futures = [submit(arrays(16, 16)[which])]
                while not slow.runs:
                    await asyncio.sleep(0.001)
                futures += [submit(arrays(*shape)[which]) for shape in ((16, 16), (48, side), (64, 64))[: 3 - refused]]
                if refused:
                    with pytest.raises(QueueFull, match=r"2 pictures are waiting, .* \(VQSERVE_MAX_PIXELS_PER_REQUEST"):
                        submit(arrays(64, 64)[which])
                slow.gate.set()
                await asyncio.gather(*futures)

    assert client.portal is not None
    client.portal.call(work)


def test_as_many_pictures_of_the_models_size_as_may_wait_do(make_client: MakeClient) -> None:
    """Also where they have more pixels than a request may have."""
    client = make_client(inline_ms=0, max_queued_pictures=6, max_pixels_per_request=16 * 16)
    engine = engine_of(client, "tiny_colour")
    engine._encoder = slow = Slow(engine._encoder)
    picture = np.zeros((1, 16, 16, 3), np.uint8)

    async def work() -> None:
        async with asyncio.timeout(10):
            futures = [engine.encode(picture)]
            while not slow.runs:
                await asyncio.sleep(0.001)
            futures += [engine.encode(picture) for _ in range(6)]
            with pytest.raises(QueueFull, match=r"than the 6 that may \(VQSERVE_MAX_QUEUED_PICTURES"):
                engine.encode(picture)
            slow.gate.set()
            await asyncio.gather(*futures)

    assert client.portal is not None
    client.portal.call(work)


@pytest.mark.parametrize("inline_ms", [0.5, 2.0])
def test_what_is_estimated_to_take_inline_ms_runs_on_the_event_loop(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, inline_ms: float
) -> None:
    """A picture of the model's size that takes 0.25 ms: two fit into half a millisecond, and not two thousand."""
    monkeypatch.setattr("service.inference.engine._timed", lambda call: 0.25e-3)
    engine = engine_of(make_client(inline_ms=inline_ms))
    assert engine._encode._batches.inline_elements == 4 * inline_ms * 28 * 28
    assert engine._decode._batches.inline_elements == 4 * inline_ms * 7 * 7


def test_a_request_that_is_estimated_to_take_a_tenth_of_a_second_goes_in_its_turn(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inference.engine._timed", lambda call: 0.25e-3)
    engine = engine_of(make_client())
    assert [engine._encode._is_large(np.zeros((n, 28, 28, 1))) for n in (400, 401)] == [False, True]
    assert [engine._decode._is_large(np.zeros((n, 7, 7))) for n in (400, 401)] == [False, True]
