"""The engine behind HTTP: stalls, reload, deadline, a client that leaves, and real processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.bundle import BundleError, sha256_file
from service.bundle.fields import GraphName, GraphSpec
from service.bundle.manifest import version_of
from service.errors import problem_type
from service.inference.sessions import DeviceError, cpu_limit, session_maker
from service.settings import Settings
from service.telemetry.traffic import CodeTraffic, divergence_bits, perplexity
from tests.conftest import DEVICE, PICTURES, Tiny, running
from tests.service.bad_inputs import saved
from tests.service.serving import answers, busy, listeners, serving, until
from tests.tiny_bundle import write_tiny_bundle

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PNG = {"content-type": "image/png"}
MakeClient = Callable[..., TestClient]


def engine_of(client: TestClient, name: str = "tiny") -> Any:
    return client.app.state.service.models.get(name).engine  # type: ignore[attr-defined]


def encode(client: TestClient) -> Any:
    return client.post("/encode", content=DIGIT, headers=PNG)


class Slow:
    """A session that waits for a gate."""

    def __init__(self, session: Any) -> None:
        self.session, self.gate, self.runs = session, threading.Event(), 0

    def run(self, *arguments: Any) -> Any:
        self.runs += 1
        self.gate.wait(10)
        return self.session.run(*arguments)


def test_a_run_that_stalls_turns_readiness_off(make_client: MakeClient) -> None:
    client = make_client(inline_ms=0, engine_stall_s=0.05)
    engine = engine_of(client)
    engine._encoder = slow = Slow(engine._encoder)
    thread = threading.Thread(target=encode, args=(client,))
    thread.start()
    until(lambda: client.get("/readyz").status_code == 503)
    slow.gate.set()
    thread.join()
    assert client.get("/readyz").status_code == 200


def test_a_run_that_has_just_begun_does_not_hide_one_that_stalls(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(inline_ms=0, engine_stall_s=60)
    engine, now = engine_of(client), [0.0]
    monkeypatch.setattr("service.inference.engine.perf_counter", lambda: now[0])
    engine._encoder, engine._decoder = slow = Slow(engine._encoder), Slow(engine._decoder)
    calls = [lambda: encode(client), lambda: client.post("/decode", json={"codes": [[0] * 7] * 7})]
    threads = [threading.Thread(target=call) for call in calls]
    for thread, session in zip(threads, slow, strict=True):
        thread.start()
        until(lambda session=session: session.runs == 1)
        now[0] += 50
    assert client.get("/readyz").status_code == 503
    for session, thread in zip(slow, threads, strict=True):
        session.gate.set()
        thread.join()
    assert client.get("/readyz").status_code == 200


def test_the_deadline_gives_504_and_the_work_is_given_up(make_client: MakeClient) -> None:
    client = make_client(inline_ms=0, request_deadline_ms=100)
    engine = engine_of(client)
    engine._encoder = slow = Slow(engine._encoder)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(encode(client))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(a.status_code, a.json()["type"]) for a in answers} == {(504, problem_type("deadline-passed"))}
    slow.gate.set()
    until(lambda: not busy(engine._encode))
    assert slow.runs == 1 + (slow.runs > 1)  # at most those that were running: the waiting ones never ran
    assert encode(client).status_code == 200


def test_a_full_queue_gives_429_with_retry_after(make_client: MakeClient) -> None:
    client = make_client(inline_ms=0, max_queued_pictures=2)
    engine = engine_of(client)
    engine._encoder = slow = Slow(engine._encoder)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(encode(client))) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: any(a.status_code == 429 for a in answers))
    slow.gate.set()
    for thread in threads:
        thread.join()
    refused = [a for a in answers if a.status_code == 429]
    assert refused
    assert all(1 <= int(a.headers["retry-after"]) <= 60 for a in refused)
    assert all(a.status_code == 200 for a in answers if a not in refused)


class Shapes:
    """A session that remembers the shape of each run."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.shapes: list[tuple[int, ...]] = []

    def run(self, outputs: Any, given: dict[str, Any]) -> Any:
        self.shapes += [array.shape for array in given.values()]
        return self.session.run(outputs, given)


@pytest.mark.skipif(DEVICE == "cuda", reason="three are padded to four there")
def test_pictures_of_four_times_the_models_size_go_one_by_one_where_four_of_it_go_together(
    make_client: MakeClient,
) -> None:
    client = make_client(inline_ms=0, max_batch=4)
    engine = engine_of(client, "tiny_colour")
    engine._encoder, engine._decoder = encoder, decoder = Shapes(engine._encoder), Shapes(engine._decoder)

    async def work() -> None:
        native, large = ((1, side, side) for side in (16, 32))
        pictures = [np.zeros((*shape, 3), np.uint8) for shape in (native, native, native, large, large)]
        codes = await asyncio.gather(*map(engine.encode, pictures))
        await asyncio.gather(*map(engine.decode, codes))

    assert client.portal is not None
    client.portal.call(work)
    assert encoder.shapes == [(3, 16, 16, 3), (1, 32, 32, 3), (1, 32, 32, 3)]
    assert decoder.shapes == [(3, 4, 4), (1, 8, 8), (1, 8, 8)]


def test_pictures_of_several_sizes_in_one_request_may_all_wait(make_client: MakeClient) -> None:
    """They queue one after the other, and are more than 4 pictures of 16x16 may be."""
    client = make_client(max_queued_pictures=4)
    files = [("img", saved(Image.new("RGB", (side, side)))) for side in (32, 64, 128, 256)]
    answer = client.post("/encode?model=tiny_colour", files=files)
    assert [item["width"] for item in answer.json()["items"]] == [32, 64, 128, 256]


def test_concurrent_requests_above_the_limit_get_429(make_client: MakeClient) -> None:
    client = make_client(inline_ms=0, max_concurrent_requests=2)
    engine = engine_of(client)
    engine._encoder = slow = Slow(engine._encoder)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(encode(client))) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: "vqserve_requests_in_flight 3.0" in client.get("/metrics").text)  # two, and /metrics itself
    assert encode(client).status_code == 429
    assert client.get("/healthz").status_code == 200
    slow.gate.set()
    for thread in threads:
        thread.join()
    assert [a.status_code for a in answers] == [200, 200]


def test_reload_swaps_in_a_new_version(make_client: MakeClient, own_bundle: Path) -> None:
    client = make_client(bundles=(own_bundle,))
    old = client.get("/models/tiny").json()["version"]
    write_tiny_bundle(own_bundle, "tiny", seed=1)
    assert encode(client).json()["version"] == old
    answer = client.post("/models/tiny/reload")
    assert answer.status_code == 200
    assert answer.json()["version"] != old
    assert encode(client).json()["version"] == answer.json()["version"]


def test_reload_of_a_bad_bundle_leaves_the_old_one_serving(make_client: MakeClient, own_bundle: Path) -> None:
    client = make_client(bundles=(own_bundle,))
    old = client.get("/models/tiny").json()["version"]
    (own_bundle / "decoder.onnx").write_bytes(b"damaged")
    answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["type"]) == (422, problem_type("reload-failed"))
    assert encode(client).json()["version"] == old
    assert client.get("/readyz").status_code == 200
    assert client.post("/models/none/reload").status_code == 404


def test_reload_of_a_graph_that_cannot_run_leaves_the_old_one_serving(
    make_client: MakeClient, own_bundle: Path
) -> None:
    """The hashes are right, so only onnxruntime can tell."""
    client = make_client(bundles=(own_bundle,))
    (own_bundle / "decoder.onnx").write_bytes(b"not a graph")
    path = own_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["graphs"]["decoder"]["sha256"] = sha256_file(own_bundle / "decoder.onnx")
    graphs = {name: GraphSpec.model_validate(spec) for name, spec in manifest["graphs"].items()}
    manifest["version"] = version_of(cast(dict[GraphName, GraphSpec], graphs))
    path.write_text(json.dumps(manifest))
    assert client.post("/models/tiny/reload").status_code == 422
    assert encode(client).status_code == 200
    with pytest.raises(BundleError, match="cannot be run"), running(Settings(bundles=(own_bundle,), device="cpu")):
        pass


def test_a_watched_folder_reloads_by_itself(make_client: MakeClient, own_bundle: Path) -> None:
    client = make_client(bundles=(own_bundle,), watch_bundles_s=0.1)
    old = client.get("/models/tiny").json()["version"]
    write_tiny_bundle(own_bundle, "tiny", seed=2)
    until(lambda: client.get("/models/tiny").json()["version"] != old)


@pytest.mark.skipif(DEVICE == "cuda", reason="there is one")
def test_cuda_that_is_not_there_fails_at_start(tiny: Tiny) -> None:
    """This machine's onnxruntime has no CUDA: `cuda` must say so instead of running on the CPU."""
    graph = tiny.grey / "decoder.onnx"
    with pytest.raises(DeviceError, match="CUDAExecutionProvider"):
        session_maker(Settings(device="cuda"), graph)
    assert session_maker(Settings(device="auto"), graph).provider == "CPUExecutionProvider"


@pytest.mark.parametrize(("text", "cpus"), [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1)])
def test_cpu_limit_comes_from_the_container(tmp_path: Path, text: str, cpus: int | None) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(text)
    assert cpu_limit(limit) == (cpus or len(os.sched_getaffinity(0)))


def test_perplexity_and_divergence_against_closed_forms(tmp_path: Path) -> None:
    assert perplexity(np.array([5, 0, 0])) == pytest.approx(1)
    assert perplexity(np.array([3, 3, 3, 0])) == pytest.approx(3)
    assert divergence_bits(np.array([4, 4]), (1, 1)) == pytest.approx(0)
    assert divergence_bits(np.array([4, 0]), (0, 1)) == pytest.approx(1)
    alone, shared = CodeTraffic("m", "v", 4), CodeTraffic("m", "v", 4, tmp_path)
    for traffic in (alone, shared):
        traffic.add(np.array([[0, 1], [1, 3]]))
        assert traffic.counts().tolist() == [1, 2, 0, 1]
    np.array([10, 0, 0, 0]).tofile(tmp_path / "codes_m_v_1.bin")  # another worker's
    assert shared.counts().tolist() == [11, 2, 0, 1]


def test_sigterm_drains_and_exits(tiny: Tiny) -> None:
    """Readiness goes at once; a request that is on its way is answered; the process ends within its grace."""
    with serving(tiny.grey, VQSERVE_DRAIN_S="1", VQSERVE_GRACE_S="5") as (process, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as upload:
            head = (
                f"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(DIGIT)}\r\n\r\n"
            )
            upload.sendall(head.encode() + DIGIT[:100])
            until(lambda: "vqserve_requests_in_flight 2.0" in httpx.get(f"{address}/metrics").text)
            process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{address}/readyz").status_code == 503, 0.9)
            assert httpx.post(f"{address}/encode", content=DIGIT, headers=PNG).status_code == 503
            upload.sendall(DIGIT[100:])
            assert upload.recv(65536).startswith(b"HTTP/1.1 200")
        process.wait(8)


def test_several_workers_have_one_truthful_metrics_page(tiny: Tiny) -> None:
    """20 requests on 20 connections go to both workers; whichever answers /metrics knows of all 20."""
    with serving(tiny.grey, VQSERVE_WORKERS="2") as (_, address):
        for _ in range(20):
            assert httpx.post(f"{address}/encode", content=DIGIT, headers=PNG).status_code == 200
        for _ in range(5):
            page = httpx.get(f"{address}/metrics").text
            assert 'vqserve_requests_total{route="/encode",status="200"} 20.0' in page
            assert page.count("vqserve_model_info{") == 1


def test_who_is_inside_at_the_end_of_the_grace_gets_503(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    """The server cancels what is left: that was a bare 500 in plain text, and a traceback in the log."""
    with serving(tiny.grey, VQSERVE_DRAIN_S="0", VQSERVE_GRACE_S="1") as (process, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as upload:
            upload.sendall(
                b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nabc"
            )
            until(lambda: "vqserve_requests_in_flight 2.0" in httpx.get(f"{address}/metrics").text)
            process.send_signal(signal.SIGTERM)
            head, _, body = b"".join(iter(lambda: upload.recv(65536), b"")).partition(b"\r\n\r\n")
        process.wait(8)
    assert head.startswith(b"HTTP/1.1 503") and b"x-request-id: " in head
    assert json.loads(body)["type"] == problem_type("not-ready")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel deals connections on Linux only")
def test_connections_are_dealt_to_all_workers(tiny: Tiny) -> None:
    """64 opened at once went to one worker in every tenth run, and stayed there."""
    with serving(tiny.grey, VQSERVE_WORKERS="2") as (process, address):
        port = int(address.rpartition(":")[2])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        until(lambda: all(sockets_of(pid) & listening(port) for pid in workers), 20)
        assert len(listening(port)) == 2 and not sockets_of(str(process.pid)) & listening(port)
        before = [len(sockets_of(pid)) for pid in workers]
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
        until(lambda: sum(len(sockets_of(pid)) for pid in workers) >= sum(before) + 64)
        taken = [len(sockets_of(pid)) - was for pid, was in zip(workers, before, strict=True)]
        for connection in connections:
            connection.close()
    assert min(taken) >= 10, taken  # the chance of this is below one in 10^8


def sockets_of(pid: str) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was read
            kind, _, inode = path.readlink().name.partition(":")
            if kind == "socket":
                found.add(inode.strip("[]"))
    return found


def listening(port: int) -> set[str]:
    """The inodes of all sockets that listen on an IPv4 port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


def test_a_killed_worker_is_replaced(tiny: Tiny) -> None:
    with serving(tiny.grey, VQSERVE_WORKERS="2") as (process, address):
        until(lambda: listeners(address) == 2, 60)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        victim = next(pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(int(victim), signal.SIGKILL)
        until(lambda: not Path(f"/proc/{victim}").exists(), 10)
        until(lambda: answers(f"{address}/readyz"), 10)
        assert httpx.post(f"{address}/encode", content=DIGIT, headers=PNG).status_code == 200


def test_a_worker_killed_while_it_is_asked_is_replaced_at_once(tiny: Tiny) -> None:
    """The supervisor awaited its answer for five seconds."""
    with serving(tiny.grey, VQSERVE_WORKERS="2") as (process, address):
        until(lambda: listeners(address) == 2, 60)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [
            pid for pid in children.read_text().split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(int(workers[0]), signal.SIGSTOP)
        time.sleep(1)  # two questions a second
        os.kill(int(workers[0]), signal.SIGKILL)
        until(lambda: len(set(children.read_text().split()) - set(workers)) >= 2, 2.5)  # the new one, and the helper
        assert answers(f"{address}/readyz")


def test_a_bundle_that_does_not_match_is_refused_at_start(tiny: Tiny, tmp_path: Path) -> None:
    bundle = tmp_path / "bad"
    shutil.copytree(tiny.grey, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["decoder"]["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", "0"]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert result.returncode != 0
    assert b"version is" in result.stderr


def test_a_client_that_leaves_frees_its_place(make_client: MakeClient) -> None:
    """Straight ASGI: the client disconnects while its picture waits behind a slow run; the picture never runs."""
    client = make_client(inline_ms=0)
    engine = engine_of(client)
    engine._encoder = slow = Slow(engine._encoder)

    async def leaves() -> None:
        messages = [{"type": "http.request", "body": DIGIT}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            return None

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/encode",
            "raw_path": b"/encode",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
            "state": {},
        }
        await client.app(scope, receive, send)

    portal = client.portal
    assert portal is not None
    first = threading.Thread(target=encode, args=(client,))
    first.start()
    until(lambda: slow.runs == 1)
    portal.call(leaves)  # ends, although the gate is still closed
    slow.gate.set()
    first.join()
    asyncio.run(asyncio.sleep(0.05))
    assert slow.runs == 1
    assert 'vqserve_refused_requests_total{reason="client-closed"} 1.0' in client.get("/metrics").text
