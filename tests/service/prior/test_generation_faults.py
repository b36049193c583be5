"""What goes wrong around generation: clients that leave, deadlines, full queues, a dead sampler, shutdown."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from benchmarks.generation_kill import kill
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import Generating
from tests.service.serving import serving, until
from tests.tiny_bundle import tiny_prior, write_tiny_bundle

JSON = {"accept": "application/json"}
EVENTS = {"accept": "text/event-stream"}
MakeClient = Callable[..., TestClient]


def scheduler_of(app: Any, name: str = "digits") -> Any:
    return app.state.service.models.get(name).companions["generator"]


def slow_down(app: Any, row_s: float) -> list[int]:
    """Each row takes this long; the list grows by the number of samples of each."""
    sampler, rows = scheduler_of(app)._sampler, []
    advance = sampler.advance

    def slowly(places: list[int]) -> Any:
        rows.append(len(places))
        time.sleep(row_s)
        return advance(places)

    sampler.advance = slowly
    return rows


def pause_after(app: Any, first: int) -> tuple[threading.Event, list[int]]:
    """The rows after the first ones wait for the event; the list is as above."""
    sampler, go, rows = scheduler_of(app)._sampler, threading.Event(), []
    advance = sampler.advance

    def when_it_may(places: list[int]) -> Any:
        rows.append(len(places))
        assert len(rows) <= first or go.wait(20)
        return advance(places)

    sampler.advance = when_it_may
    return go, rows


async def all_left(app: Any) -> None:
    """Wait until no sample is inside."""
    while scheduler_of(app).samples_inside:
        await asyncio.sleep(0.005)


def metric(client: TestClient, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"vqserve_{name}")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'model="digits"' in line)


def counted(app: Any) -> dict[str, float]:
    """Requests to /generate by their status."""
    (family,) = app.state.service.metrics.requests.collect()
    found = [one for one in family.samples if one.labels["route"] == "/generate" and one.name.endswith("_total")]
    return {one.labels["status"]: one.value for one in found if one.value}


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def asgi(generating: Generating, work: Callable[[Any, Any], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run `work(app, call)` inside the app's lifespan; `call(body, leave, sent)` sends one /generate as a server would.

    The client of `call(..., most)` reads the head and the first `most - 1` events of the answer.
    """

    async def main() -> None:
        app = create_app(Settings(**{**generating.settings, **settings}))

        async def call(body: Any, leave: asyncio.Event, sent: list[bytes], most: int = 1000) -> None:
            messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

            async def receive() -> Any:
                if messages:
                    return messages.pop()
                await leave.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                if len(sent) == most:  # as a server, when its buffer is full and its client does not read
                    await asyncio.Event().wait()
                sent.append(message.get("body", b""))

            headers = [(b"content-type", b"application/json"), (b"accept", b"text/event-stream")]
            scope = {"type": "http", "method": "POST", "path": "/generate", "query_string": b"", "headers": headers}
            await app({**scope, "raw_path": b"/generate", "root_path": ""}, receive, send)

        async with app.router.lifespan_context(app):
            await asyncio.wait_for(work(app, call), 20)

    asyncio.run(main())


def test_a_client_that_leaves_frees_its_slots_within_one_row(generating: Generating) -> None:
    async def work(app: Any, call: Any) -> None:
        (go, rows), leave = pause_after(app, 1), asyncio.Event()
        sent: list[bytes] = []
        request = asyncio.create_task(call({"n": 8}, leave, sent))
        while not any(b"event: row" in chunk for chunk in sent) or len(rows) < 2:
            await asyncio.sleep(0.005)
        leave.set()
        await request
        assert counted(app) == {"499": 1}
        *read, last = sent
        assert last.startswith(b"event: error")
        sent_bytes = app.state.service.metrics.registry.get_sample_value("vqserve_sent_bytes_total")
        assert sent_bytes == len(b"".join(read))  # the last event reached nobody
        assert scheduler_of(app).samples_inside == 0
        go.set()
        while scheduler_of(app)._driving:
            await asyncio.sleep(0.005)
        assert len(rows) == 2
        assert scheduler_of(app)._sampler.free_places == 2 * scheduler_of(app)._sampler.max_batch

    asgi(generating, work)


def test_a_stream_whose_deadline_passes_ends_with_an_error_event(generating: Generating) -> None:
    async def work(app: Any, call: Any) -> None:
        go, _ = pause_after(app, 1)
        sent: list[bytes] = []
        await call({}, asyncio.Event(), sent)
        go.set()
        *rows, last, _ = [chunk for chunk in b"".join(sent).decode().split("\n\n")]
        assert len(rows) >= 1
        assert last.startswith("event: error\ndata: ")
        assert json.loads(last.split("data: ")[1])["type"] == "urn:vqserve:problem:deadline-passed"
        assert counted(app) == {"504": 1}  # the status that was sent is no error, and alerts look for 5xx
        await all_left(app)

    asgi(generating, work, request_deadline_ms=600)


def test_a_client_that_does_not_read_loses_its_place_at_the_deadline(generating: Generating) -> None:
    """The last event waited for it without end, and its place among the requests inside with it."""

    async def work(app: Any, call: Any) -> None:
        slow_down(app, 0.02)
        stuck: list[bytes] = []
        started = time.monotonic()
        await call({}, asyncio.Event(), stuck, most=2)
        assert 0.3 < time.monotonic() - started < 5
        assert len(stuck) == 2 and b"event: row" in stuck[1]
        assert scheduler_of(app).samples_inside == 0
        answered: list[bytes] = []
        await call({}, asyncio.Event(), answered)
        assert b"event: row" in b"".join(answered), "there is one place, and it is free"

    asgi(generating, work, request_deadline_ms=300, max_concurrent_requests=1)


def test_a_stream_that_shutdown_cuts_off_ends_with_an_error_event(generating: Generating) -> None:
    """The server cancels what is left after its grace, and would log what is raised then as a fault of the service."""

    async def work(app: Any, call: Any) -> None:
        slow_down(app, 0.05)
        sent: list[bytes] = []
        request = asyncio.create_task(call({}, asyncio.Event(), sent))
        while not any(b"event: row" in chunk for chunk in sent):
            await asyncio.sleep(0.005)
        request.cancel()
        await request
        assert counted(app) == {"503": 1}
        assert b"event: error" in sent[-1]
        assert b"urn:vqserve:problem:not-ready" in sent[-1]

    asgi(generating, work)


def test_a_failing_row_ends_every_stream_with_an_error_event(generating: Generating) -> None:
    async def work(app: Any, call: Any) -> None:
        def broken(places: list[int]) -> Any:
            raise RuntimeError("CUDA error 700 at 0xdeadbeef")

        scheduler_of(app)._sampler.advance = broken
        chunks: list[list[bytes]] = [[], [], []]
        await asyncio.gather(*(call({"n": 3}, asyncio.Event(), sent) for sent in chunks))
        for sent in chunks:
            assert b"event: error" in sent[-1]
            assert b"deadbeef" not in b"".join(sent)
        assert scheduler_of(app).why_not_ready() is None, "known input still works"

    asgi(generating, work)


def test_a_decoder_that_fails_ends_a_stream_with_an_error_event(generating: Generating) -> None:
    """It ended as if it were complete, without a word."""

    async def work(app: Any, call: Any) -> None:
        def broken(codes: Any) -> Any:
            raise RuntimeError("CUDA error 700 at 0xdeadbeef")

        app.state.service.models.get("digits").engine.decode = broken
        sent: list[bytes] = []
        await call({"preview": True}, asyncio.Event(), sent)
        assert b"event: error" in sent[-1] and b"urn:vqserve:problem:internal-error" in sent[-1]
        assert b"deadbeef" not in b"".join(sent)
        assert counted(app) == {"500": 1}
        await all_left(app)

    asgi(generating, work)


def test_a_stream_that_ends_before_its_first_event_gives_its_places_back(generating: Generating) -> None:
    """Its head waited behind an answer that nobody read: the job was drawn to its end for nobody."""

    async def work(app: Any, call: Any) -> None:
        rows = slow_down(app, 0.2)
        asking = asyncio.create_task(call({"n": 2}, asyncio.Event(), [], most=0))
        await asyncio.sleep(0.6)
        assert len(rows) < 7
        assert scheduler_of(app).samples_inside == 0
        asking.cancel()  # its 504 waits as well
        await asyncio.wait([asking])

    asgi(generating, work, request_deadline_ms=100)


def test_the_deadline_of_a_json_answer_gives_504(make_generator: MakeClient) -> None:
    client = make_generator(request_deadline_ms=400)
    slow_down(client.app, 0.2)
    assert client.post("/generate", json={}, headers=JSON).status_code == 504
    until(lambda: metric(client, "generate_samples_in_flight") == 0)
    assert metric(client, "generate_cancelled_samples_total") == 1


@pytest.mark.parametrize("headers", [JSON, EVENTS])
def test_a_full_queue_gives_429_with_retry_after(make_generator: MakeClient, headers: dict[str, str]) -> None:
    client = make_generator(max_queued_samples=4)
    slow_down(client.app, 0.05)
    first, answers = in_thread(lambda: client.post("/generate", json={"n": 4}, headers=JSON))
    until(lambda: metric(client, "generate_samples_in_flight") == 4)
    refused = client.post("/generate", json={}, headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:vqserve:problem:queue-full")
    assert int(refused.headers["retry-after"]) >= 1
    assert metric(client, "generate_rejected_samples_total") == 1
    first.join()
    assert answers[0].status_code == 200


def test_a_dead_sampler_turns_readiness_off_and_is_restarted(make_generator: MakeClient) -> None:
    client = make_generator()
    dead = scheduler_of(client.app)

    class Dead:
        def run(self, *arguments: object) -> None:
            raise RuntimeError("CUDA error 700")

    dead._sampler._unfiltered = dead._sampler._filtered = Dead()
    response = client.post("/generate", json={})
    assert (response.status_code, response.json()["type"]) == (503, "urn:vqserve:problem:not-ready")
    assert dead.why_not_ready() is not None
    until(lambda: client.get("/readyz").status_code == 200)
    assert scheduler_of(client.app) is not dead
    assert client.post("/generate", json={}).status_code == 200


def test_a_reload_leaves_no_thread_behind(make_generator: MakeClient) -> None:
    client = make_generator()
    client.post("/generate", json={})

    def samplers() -> int:
        return sum(thread.name.startswith("sampler") for thread in threading.enumerate())

    before = samplers()
    for _ in range(3):
        client.post("/models/digits/reload")
        assert client.post("/generate", json={"seed": 1}).status_code == 200
    until(lambda: samplers() <= before)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior whose rows take milliseconds, so that a client can leave in the middle."""
    folder = tmp_path_factory.mktemp("heavy") / "heavy"
    write_tiny_bundle(folder, "heavy", prior=tiny_prior(channels=128))
    return folder


def test_the_kill_test_in_small(heavy: Path) -> None:
    """40 streams of which half disconnect after the first row."""
    with serving(heavy) as (process, address):
        report = asyncio.run(kill(address, process.pid, requests=40, samples=16))
    assert (report.whole, report.broken) == (20, 20)
    assert report.cancelled_samples > 0
    assert report.leaks == []


def test_a_stream_in_flight_survives_sigterm(heavy: Path) -> None:
    with serving(heavy, VQSERVE_DRAIN_S="0") as (process, address):
        body = {"n": 64, "seed": 1}
        with httpx.stream("POST", f"{address}/generate", json=body, headers=EVENTS, timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: row"
            process.send_signal(signal.SIGTERM)
            assert "event: done" in list(lines)
        assert process.wait(10) is not None
