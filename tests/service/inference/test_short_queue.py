"""What a short queue does to a batcher and to the service, while overload lasts."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from service.errors import QueueFull
from service.inference.batch_limits import BatchLimits
from service.inference.batching import Batcher
from service.inference.engine import Engine
from service.inference.overload import WHY_SHORT, Door, Overload
from service.wire.npy import write_npy
from tests.conftest import PICTURES
from tests.service.conftest import Generating
from tests.service.inference.test_batching import Recorder, hold, ones, run
from tests.service.inference.test_engine import MakeClient, engine_of
from tests.service.overload_clock import Clock, clock, come, overloaded
from tests.service.serving import serving, until

__all__ = ["clock"]  # a fixture

DIGIT = (PICTURES / "digit_7.png").read_bytes()


def test_one_run_waits_while_overload_lasts(clock: Clock) -> None:
    async def work() -> None:
        recorder = Recorder()
        limits = BatchLimits(max_batch=4, max_queued=100, max_batch_elements=8)
        batcher = Batcher(recorder, limits, overload=overloaded(clock))
        futures = [await hold(batcher, recorder)]
        batcher.refuse_early()
        futures += batcher.submit_all([ones(1), ones(2)])
        batcher.refuse_early()
        for too_much in (ones(2), ones(1, width=3)):  # five pictures; nine elements
            with pytest.raises(QueueFull, match="VQSERVE_SHORT_QUEUE_IN_OVERLOAD"):
                batcher.submit(too_much)
        futures.append(batcher.submit(ones(1)))
        with pytest.raises(QueueFull, match="VQSERVE_SHORT_QUEUE_IN_OVERLOAD"):
            batcher.refuse_early()
        recorder.gate.set()
        await asyncio.gather(*futures)
        assert recorder.shapes == [(1, 2), (4, 2)]
        large = batcher.submit(ones(9, width=3))  # nothing waits: it may be larger than a run
        assert (await large).shape == (9, 3)

    run(work)


def test_nobody_waits_for_company_while_overload_lasts(clock: Clock) -> None:
    async def work() -> None:
        batcher = Batcher(Recorder(), BatchLimits(64, 100, max_wait_ms=60_000), overload=overloaded(clock))
        assert (await batcher.submit(ones(1))).tolist() == [[2, 2]]

    run(work)


def test_a_queue_that_does_not_adapt_is_as_long_as_ever() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=1, max_queued=8))
        futures = [await hold(batcher, recorder), *(batcher.submit(ones(1)) for _ in range(8))]
        batcher.refuse_early()
        with pytest.raises(QueueFull, match="more than the 8 that may"):
            batcher.submit(ones(1))
        futures.append(batcher.submit(ones(1), late=True))
        recorder.gate.set()
        await asyncio.gather(*futures)

    run(work)


@pytest.mark.parametrize("last", ["r", "a"])
def test_what_waits_when_overload_begins_is_given_up(clock: Clock, last: str) -> None:
    async def work() -> None:
        recorder, changes = Recorder(), list[int]()
        overload = Overload(adapts=True)
        batcher = Batcher(recorder, BatchLimits(1, 4), on_queue=changes.append, overload=overload)
        running = await hold(batcher, recorder)
        waiting = [batcher.submit(ones(1)) for _ in range(3)]
        come(overload, clock, "rrrr", 0.12)
        come(overload, clock, "rrr", 0.12)
        if last == "r":
            with pytest.raises(QueueFull, match=r"3 pictures are waiting, with these .* more than the 4 that may"):
                batcher.submit(ones(2))
        else:
            waiting[0].cancel()  # its own affair
            newest = batcher.submit(ones(1))
        for future in waiting[last == "a" :]:
            with pytest.raises(QueueFull, match="VQSERVE_SHORT_QUEUE_IN_OVERLOAD") as caught:
                await future
            assert caught.value.headers["Retry-After"] == "1"
        await asyncio.sleep(0)
        assert batcher.queued == (last == "a")
        recorder.gate.set()
        await running
        if last == "a":
            assert (await newest).tolist() == [[2, 2]]
        assert recorder.shapes == [(1, 2)] * (2 if last == "a" else 1)
        assert sum(changes) == 0

    run(work)


def test_a_picture_is_in_hand_until_its_caller_has_gone_on() -> None:
    async def work() -> None:
        batcher = Batcher(Recorder(), BatchLimits(64, 100))
        batcher.run_inline(100)
        seen: list[int] = []

        async def call() -> None:
            future = batcher.submit(ones(3))
            seen.append(batcher.in_hand)
            await future
            seen.append(batcher.in_hand)

        await call()
        await asyncio.sleep(0)
        assert [*seen, batcher.in_hand] == [3, 3, 0]

    run(work)


@pytest.fixture
def adapting(make_client: MakeClient) -> TestClient:
    return make_client(short_queue_in_overload=True)


def door_of(client: TestClient) -> Door:
    door: Door = client.app.user_middleware[2].args[0]  # type: ignore[attr-defined]
    return door


def test_a_process_under_overload_lets_nothing_wait(adapting: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    door_of(adapting)._overload.lasts = True
    assert adapting.post("/encode", content=DIGIT, headers={"Content-Type": "image/png"}).status_code == 200
    monkeypatch.setattr(Engine, "in_hand", 4)
    answer = adapting.post("/encode", content=DIGIT, headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["detail"]) == (429, WHY_SHORT)
    assert answer.headers["Retry-After"] == "1"
    assert adapting.get("/readyz").status_code == adapting.get("/models").status_code == 200


def test_the_middleware_tells_overload_too(clock: Clock, adapting: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone refuses where every request is logged."""
    monkeypatch.setattr(Engine, "in_hand", 4)
    door = door_of(adapting)
    monkeypatch.setattr(door, "_most", 0)
    for _ in range(8):
        clock.wait(0.05)
        assert adapting.post("/encode", content=DIGIT).status_code == 429
    assert "vqserve_overloaded 1.0" in adapting.get("/metrics").text
    monkeypatch.setattr(Engine, "in_hand", 0)
    monkeypatch.setattr(door, "_most", 1)
    for _ in range(8):
        clock.wait(0.05)
        assert adapting.post("/encode", content=DIGIT, headers={"Content-Type": "image/png"}).status_code == 200
    assert "vqserve_overloaded 0.0" in adapting.get("/metrics").text


def test_pictures_are_refused_before_their_body_is_read(adapting: TestClient) -> None:
    batcher = engine_of(adapting)._encode
    batcher._overload.lasts, batcher._batches.queued = True, 8
    answer = adapting.post("/encode", content=b"no picture", headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["detail"]) == (429, WHY_SHORT)
    assert "vqserve_received_bytes_total 0.0" in adapting.get("/metrics").text
    assert batcher._overload._refused == 1
    batcher._batches.queued = 0
    assert adapting.post("/encode", content=b"no picture", headers={"Content-Type": "image/png"}).status_code == 422


def test_queues_that_are_kept_short_are_counted(clock: Clock, adapting: TestClient) -> None:
    engine = engine_of(adapting)
    for queue in (engine._encode._overload, engine._decode._overload):
        come(queue, clock, "rrrrrrrr", 0.25)
    assert "vqserve_overloaded 2.0" in adapting.get("/metrics").text


def test_by_default_queues_stay_long(clock: Clock, make_client: MakeClient) -> None:
    client = make_client()
    engine = engine_of(client)
    for overload in (engine._encode._overload, engine._decode._overload, door_of(client)._overload):
        come(overload, clock, "rrrrrrrr", 0.25)
        assert not overload.lasts


def test_what_the_door_lets_in_is_counted_by_model(make_client: MakeClient) -> None:
    client = make_client()
    models = client.app.state.service.models  # type: ignore[attr-defined]
    tiny, colour = engine_of(client), engine_of(client, "tiny_colour")
    encode, others = tiny._encode._batches, colour._encode._batches
    encode.queued, tiny._decode._just_done, others.queued = 3, 2, 1
    asked = [b"", b"model=tiny", b"fit=pad&model=tiny%5Fcolour", b"model=none", b"submodel=tiny_colour"]
    assert [models.in_hand(query) for query in asked] == [5, 5, 1, 0, 5]
    encode.queued = tiny._decode._just_done = others.queued = 0


@pytest.mark.parametrize(("settings", "enough"), [({}, 4), ({"max_batch": 1}, 1), ({"max_wait_ms": 5}, 8)])
def test_half_a_run_is_enough_in_hand(make_client: MakeClient, settings: dict[str, Any], enough: int) -> None:
    """A whole one where an idle engine waits for one."""
    assert make_client(**settings).app.state.service.models.enough == enough  # type: ignore[attr-defined]


def test_models_give_up_what_waits(make_client: MakeClient) -> None:
    client = make_client()
    models = client.app.state.service.models  # type: ignore[attr-defined]
    tiny, colour = engine_of(client), engine_of(client, "tiny_colour")

    async def work() -> None:
        futures = [
            tiny.encode(np.zeros((1, 28, 28, 1), np.uint8)),
            tiny.decode(np.zeros((1, 7, 7), np.int64)),
            colour.encode(np.zeros((1, 16, 16, 3), np.uint8)),
        ]
        drawn = tiny.decode(np.zeros((1, 7, 7), np.int64), late=True)
        models.give_up_waiting()
        for future in futures:
            with pytest.raises(QueueFull):
                await future
        assert (await drawn).shape == (1, 28, 28, 1)

    assert client.portal is not None
    client.portal.call(work)


def test_overload_of_a_real_service_begins_and_ends(generating: Generating) -> None:
    batch = np.zeros((64, 28, 28, 1), np.uint8)
    settings = {"VQSERVE_SHORT_QUEUE_IN_OVERLOAD": "true", "VQSERVE_MAX_QUEUED_PICTURES": "64"}
    with serving(*generating.folders, **settings) as (_, url):
        ended = threading.Event()

        def ask() -> set[int]:
            with httpx.Client(base_url=url) as client:
                statuses = set()
                while not ended.is_set():
                    headers = {"Content-Type": "application/x-npy"}
                    statuses.add(client.post("/encode", content=write_npy(batch), headers=headers).status_code)
                return statuses

        def shown() -> str:
            return httpx.get(f"{url}/metrics").text.partition("\nvqserve_overloaded ")[2].partition("\n")[0]

        with ThreadPoolExecutor(8) as threads:
            asking = [threads.submit(ask) for _ in range(8)]
            try:
                until(lambda: shown() == "1.0")
            finally:
                ended.set()
        assert set().union(*(one.result() for one in asking)) == {200, 429}
        until(lambda: shown() == "0.0")
