"""Overload that lasts is told from a burst; while it lasts little waits, and answers do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.batching import Batcher, BatchLimits
from service.errors import NotReady, QueueFull
from service.overload import WHY_SHORT, Door, Overload
from tests.conftest import PICTURES
from tests.service.test_batching import Recorder, hold, ones, run
from tests.service.test_engine import MakeClient, engine_of

DIGIT = (PICTURES / "digit_7.png").read_bytes()


class Timer:
    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due, self.call = due, call

    def cancel(self) -> None:
        self.call = lambda: None


class Clock:
    """It stands still until `wait`, which runs what is due; also the event loop as far as this module needs one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.due <= self.now]
        self.timers = [timer for timer in self.timers if timer.due > self.now]
        for timer in due:
            timer.call()

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.overload.perf_counter", clock)
    monkeypatch.setattr("service.overload.get_running_loop", lambda: clock)
    return clock


class Waiting:
    """Queues, of which nothing is real but their number."""

    enough = 4

    def __init__(self) -> None:
        self.pictures = 0
        self.given_up = 0

    def in_hand(self) -> int:
        return self.pictures

    def give_up_waiting(self) -> None:
        self.given_up += 1


def come(overload: Overload | Door, clock: Clock, refusals: str, seconds: float) -> list[Any]:
    """One request for each letter, `r` where it is refused, evenly in so many seconds."""
    told = []
    for letter in refusals:
        clock.wait(seconds / len(refusals))
        told.append(overload.note(refused=letter == "r"))
    return told


def overloaded(clock: Clock) -> Overload:
    overload = Overload()
    come(overload, clock, "rrrrrrrr", 0.25)
    assert overload.lasts
    return overload


@pytest.mark.parametrize(
    ("refusals", "seconds", "lasts"),
    [
        ("arrarr" * 2, 0.25, True),
        ("arrarr", 0.25, False),  # more than a third of one window only, and half of the next
        ("aaar" * 3, 0.35, False),  # a quarter
        ("rrrr" * 3, 0.09, False),  # a burst
        ("rrrr" * 3, 1.6, False),  # each time after half a second of silence
        ("rrrr" * 3, 1.2, True),
        ("aaaarrrr", 0.25, False),
    ],
)
def test_refusals_of_two_windows_are_overload(clock: Clock, refusals: str, seconds: float, lasts: bool) -> None:
    changes: list[bool] = []
    overload = Overload(changes.append)
    told = come(overload, clock, refusals, seconds)
    assert overload.lasts is lasts
    assert changes == [True] * lasts
    assert sum(told) == lasts  # once, for what has to follow


def test_clients_that_are_refused_and_come_again_together_stay_a_burst(clock: Clock) -> None:
    overload = Overload()
    for _ in range(5):
        come(overload, clock, "aaaaarrrrrrrrrrrrrrr", 0.02)
        clock.wait(1.0)  # Retry-After
    assert not overload.lasts


def test_overload_ends_after_two_windows_without(clock: Clock) -> None:
    changes: list[bool] = []
    overload = Overload(changes.append)
    come(overload, clock, "rrrrrrrr", 0.25)
    come(overload, clock, "aaaa" + "rrrr" + "aaaa", 0.36)  # not in succession
    assert overload.lasts
    assert come(overload, clock, "aaar", 0.12) == [False] * 4  # it ends, and nothing has to be given up
    assert not overload.lasts
    assert changes == [True, False]


def test_overload_ends_where_nothing_comes_any_more(clock: Clock) -> None:
    """Metrics, and the autoscaler that reads them, had it last until the next requests came."""
    changes: list[bool] = []
    overload = Overload(changes.append)
    come(overload, clock, "rrrrrrrr", 0.25)
    for _ in range(8):
        come(overload, clock, "rrrr", 0.25)
    assert overload.lasts
    clock.wait(0.9)
    assert overload.lasts
    clock.wait(1.1)
    assert not overload.lasts
    clock.wait(2.0)
    assert changes == [True, False]
    come(overload, clock, "rrrrrrrrrrrr", 0.36)
    come(overload, clock, "aaaaaaaa", 0.25)
    clock.wait(0.2)
    come(overload, clock, "rrrrrrrrrrrr", 0.36)
    assert changes == [True, False] * 2 + [True]
    assert sum(timer.due > clock.now and timer.call.__name__ == "_end_if_silent" for timer in clock.timers) == 1


def test_the_door_lets_few_in_while_overload_lasts(clock: Clock) -> None:
    queues, changes = Waiting(), list[bool]()
    door = Door(100, on_change=changes.append)
    come(door, clock, "rrrrrrrr", 0.25)  # before the models are open
    door.open_to(queues)
    queues.pictures = 2
    assert door.why_closed(0) is None
    door.expect()
    assert door.why_closed(0) is None
    door.expect()
    assert door.why_closed(0) == WHY_SHORT  # two wait, two have come in this turn
    (none_just_in,) = clock.soon
    none_just_in()
    assert door.why_closed(99) is None
    assert door.why_closed(100) == door.why_full
    queues.pictures = 4
    assert door.why_closed(0) == WHY_SHORT
    come(door, clock, "aaaaaaaa", 0.25)
    assert door.why_closed(0) is None
    door.expect()  # without overload nobody counts
    queues.pictures = 3
    come(door, clock, "rrrrrrrr", 0.25)
    assert door.why_closed(0) is None
    assert queues.given_up == 1
    assert changes == [True, False, True]


def test_a_door_that_does_not_adapt_is_closed_by_number_only(clock: Clock) -> None:
    door, queues = Door(2, adapts=False), Waiting()
    door.open_to(queues)
    queues.pictures = 1000
    come(door, clock, "rrrrrrrr", 0.25)
    assert [door.why_closed(inside) for inside in range(3)] == [None, None, door.why_full]
    assert queues.given_up == 0


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


def test_a_queue_that_does_not_adapt_is_as_long_as_ever() -> None:
    async def work() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, BatchLimits(max_batch=1, max_queued=8))
        futures = [await hold(batcher, recorder), *(batcher.submit(ones(1)) for _ in range(8))]
        batcher.refuse_early()
        with pytest.raises(QueueFull, match="at most 8 may"):
            batcher.submit(ones(1))
        recorder.gate.set()
        await asyncio.gather(*futures)

    run(work)


@pytest.mark.parametrize("last", ["r", "a"])
def test_what_waits_when_overload_begins_is_given_up(clock: Clock, last: str) -> None:
    async def work() -> None:
        recorder, changes = Recorder(), list[int]()
        overload = Overload()
        batcher = Batcher(recorder, BatchLimits(1, 4), on_queue=changes.append, overload=overload)
        running = await hold(batcher, recorder)
        waiting = [batcher.submit(ones(1)) for _ in range(3)]
        come(overload, clock, "rrrr", 0.12)
        come(overload, clock, "rrr", 0.12)
        if last == "r":
            with pytest.raises(QueueFull, match="3 pictures are waiting, at most 4 may"):
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
        batcher.inline_elements = 100
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


def overload_of(client: TestClient) -> Door:
    """Makes what the service is asked more than it can answer, whatever it really is."""
    door: Door = client.app.user_middleware[2].args[0]  # type: ignore[attr-defined]
    assert door._overload is not None
    door._overload.lasts = True
    return door


def test_a_process_under_overload_lets_nothing_wait(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client()
    overload_of(client)
    engine = engine_of(client)
    assert client.post("/encode", content=DIGIT, headers={"Content-Type": "image/png"}).status_code == 200
    monkeypatch.setattr(type(engine), "in_hand", 4)
    answer = client.post("/encode", content=DIGIT, headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["detail"]) == (429, WHY_SHORT)
    assert client.get("/readyz").status_code == 200


def test_pictures_are_refused_before_their_body_is_read(make_client: MakeClient) -> None:
    client = make_client()
    batcher = engine_of(client)._encode
    assert batcher._overload is not None
    batcher._overload.lasts, batcher.queued = True, 8
    answer = client.post("/encode", content=b"no picture", headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["detail"]) == (429, WHY_SHORT)
    assert "vqserve_received_bytes_total 0.0" in client.get("/metrics").text
    batcher.queued = 0
    assert client.post("/encode", content=b"no picture", headers={"Content-Type": "image/png"}).status_code == 422


def test_queues_that_are_kept_short_are_counted(make_client: MakeClient, clock: Clock) -> None:
    client = make_client()
    engine = engine_of(client)
    for queue in (engine._encode._overload, engine._decode._overload):
        assert queue is not None
        come(queue, clock, "rrrrrrrr", 0.25)
    assert "vqserve_overloaded 2.0" in client.get("/metrics").text


def test_the_setting_leaves_queues_long(make_client: MakeClient) -> None:
    client = make_client(short_queue_in_overload=False)
    engine = engine_of(client)
    assert engine._encode._overload is None
    assert engine._decode._overload is None
    assert client.app.user_middleware[2].args[0]._overload is None  # type: ignore[attr-defined]


def test_models_tell_what_is_in_hand_and_give_it_up(make_client: MakeClient) -> None:
    client = make_client()
    models = client.app.state.service.models  # type: ignore[attr-defined]
    engine = engine_of(client)
    assert models.enough == 4  # half a run on a CPU
    engine._encode.queued, engine._decode._just_done = 3, 2
    assert models.in_hand() == 5
    engine._encode.queued = engine._decode._just_done = 0

    async def work() -> None:
        futures = [engine.encode(np.zeros((1, 28, 28, 1), np.uint8)), engine.decode(np.zeros((1, 7, 7), np.int64))]
        models.give_up_waiting()
        for future in futures:
            with pytest.raises(QueueFull):
                await future
        engine.close("closed")
        with pytest.raises(NotReady):
            engine.encode(np.zeros((1, 28, 28, 1), np.uint8))

    assert client.portal is not None
    client.portal.call(work)
