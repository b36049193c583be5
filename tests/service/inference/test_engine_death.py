"""An engine that fails on known input is dead: what callers, /readyz and the process do then, by setting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from service.errors import problem_type
from service.inference.sessions import DeviceError
from service.process.ending import ENGINE_DIED
from service.registry import models as models_module
from tests.conftest import PICTURES, Tiny
from tests.service.serving import answers, busy, free_port, serving, until

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PNG = {"content-type": "image/png"}
MakeClient = Callable[..., TestClient]


def engine_of(client: TestClient) -> Any:
    return client.app.state.service.models.get("tiny").engine  # type: ignore[attr-defined]


def encode(client: TestClient) -> Any:
    return client.post("/encode", content=DIGIT, headers=PNG)


class Dead:
    """A session whose device is gone."""

    def __init__(self, reason: str = "CUDA error 700 at 0xdeadbeef") -> None:
        self.reason = reason

    def run(self, *arguments: object) -> None:
        raise RuntimeError(self.reason)


def test_a_dead_engine_answers_503_and_is_restarted(make_client: MakeClient) -> None:
    client = make_client(on_engine_death="restart")
    before = engine_of(client)
    before._encoder = Dead()
    response = encode(client)
    assert response.status_code == 500
    assert "CUDA" not in response.text
    until(lambda: engine_of(client) is not before)
    until(lambda: client.get("/readyz").status_code == 200)
    assert encode(client).status_code == 200
    assert 'vqserve_engine_deaths_total{model="tiny"} 1.0' in client.get("/metrics").text


def test_an_engine_that_cannot_be_tried_is_not_dead(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no thread was left to try it in, one failed run was its death, and a process with no thread to open another
    in ended."""
    client = make_client(on_engine_death="restart")
    engine, plain = engine_of(client), threading.Thread.start

    def none_for_the_check(thread: threading.Thread) -> None:
        if thread.name.startswith("asyncio_"):
            raise RuntimeError("can't start new thread")
        plain(thread)

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", none_for_the_check)
        full.setattr(engine, "_encoder", Dead())
        assert encode(client).status_code == 500
        until(lambda: "whether the engine of tiny works cannot be tried: can't start new thread" in caplog.text)
    assert encode(client).status_code == 200
    assert engine_of(client) is engine
    assert 'vqserve_engine_deaths_total{model="tiny"} 0.0' in client.get("/metrics").text


def test_a_run_that_outlives_its_engine_is_no_second_death(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found dead, and counted, again when the last run that was under way had failed."""
    client, gate = make_client(inline_ms=0), threading.Event()
    engine = engine_of(client)
    lane, died = engine._decode._batches, list[Any]()
    decode = lane.run
    monkeypatch.setattr(engine, "_on_death", died.append)

    def fails_late(codes: Any) -> Any:
        gate.wait(10)
        return decode(codes)

    lane.run = fails_late
    codes = np.zeros((1, *np.shape(engine._known_input()[1])[1:]), np.int64)
    answers: list[Any] = []
    late = threading.Thread(target=lambda: answers.append(client.post("/decode", json={"codes": codes.tolist()})))
    late.start()
    until(lambda: busy(engine._decode))
    engine._encoder = engine._decoder = Dead()
    assert encode(client).status_code == 500
    until(lambda: len(died) == 1)
    gate.set()
    late.join()
    assert answers[0].status_code == 503
    until(lambda: not busy(engine._decode))
    until(lambda: engine._probing.done())
    time.sleep(0.2)
    assert died == [engine]


def test_the_death_of_an_engine_is_no_fault_of_its_bundle(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The log advised to export again what had run before."""
    client = make_client()
    before = engine_of(client)
    before._encoder = Dead("the session is broken")
    assert encode(client).status_code == 500
    until(lambda: engine_of(client) is not before)
    (said,) = (message for message in caplog.messages if "is dead" in message)
    assert said.endswith("encoder_quantizer cannot be run: the session is broken")


@pytest.mark.parametrize("setting", ["restart", "exit"])
def test_an_engine_and_a_sampler_that_die_of_one_fault_are_one_death(
    make_generator: MakeClient, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """The alert and the panel showed two, and each began a restart of its own."""
    client, ends, reloads = make_generator(on_engine_death=setting), list[str](), list[str]()
    monkeypatch.setattr(models_module, "end_for_dead_engine", lambda: ends.append("ended"))
    models = client.app.state.service.models  # type: ignore[attr-defined]
    model, reload = models.get("digits"), models.reload

    async def reload_seen(name: str) -> Any:
        reloads.append(name)
        return await reload(name)

    models.reload = reload_seen
    model.engine._encoder = Dead()
    sampler = model.companions["generator"]._sampler
    sampler.advance = sampler.check = Dead().run
    assert client.post("/generate", json={"n": 1}).status_code == 503
    assert encode(client).status_code == 500
    until(lambda: bool(model.engine._dead and model.why_not_ready()))
    until(lambda: bool(ends) if setting == "exit" else models.get("digits") is not model)
    until(lambda: 'vqserve_engine_deaths_total{model="digits"} 1.0' in client.get("/metrics").text)
    assert (len(ends), len(reloads)) == ((1, 0) if setting == "exit" else (0, 1))


def test_deaths_and_reloads_are_counted_from_zero(make_client: MakeClient) -> None:
    """Their series used to begin at 1, where increase() sees no increase: the alert of the first death never fired."""
    page = make_client().get("/metrics").text
    assert 'vqserve_engine_deaths_total{model="tiny"} 0.0' in page
    for outcome in ("swapped", "failed"):
        assert f'vqserve_reloads_total{{model="tiny",outcome="{outcome}"}} 0.0' in page


def test_a_dead_engine_turns_readiness_off(make_client: MakeClient) -> None:
    client = make_client()
    engine_of(client).close("The engine has failed.")
    assert client.get("/readyz").status_code == 503
    assert encode(client).json()["type"] == problem_type("not-ready")
    assert client.get("/healthz").status_code == 200


def test_a_restart_on_the_wrong_device_stays_not_ready_and_readyz_says_why(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is gone after a fault: serving on, much slower, on the CPU would be the silent fallback."""
    client = make_client()
    models = client.app.state.service.models  # type: ignore[attr-defined]
    reason = "decoder.onnx runs on CPUExecutionProvider instead of CUDAExecutionProvider"

    def wrong_device(*arguments: object) -> None:
        raise DeviceError(reason)

    with monkeypatch.context() as broken:
        broken.setattr(type(models._maker), "open", wrong_device)
        engine_of(client)._encoder = Dead()
        assert encode(client).status_code == 500
        until(lambda: reason in client.get("/readyz").json()["detail"])
        assert client.get("/readyz").status_code == 503
        assert encode(client).status_code == 503
        reload = client.post("/models/tiny/reload")
        assert (reload.status_code, reload.json()["type"]) == (503, problem_type("not-ready"))
    until(lambda: client.get("/readyz").status_code == 200)  # the device is back: so is the engine, at the next attempt
    assert encode(client).status_code == 200


@pytest.mark.parametrize(
    ("fault", "expected"), [(DeviceError("there is no CUDA"), False), (RuntimeError("broken"), True)]
)
def test_a_missing_device_is_waited_for_and_other_faults_end_the_process(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, fault: Exception, expected: bool
) -> None:
    """The process ended after 48 s in both cases, where the documentation said that /readyz stays at 503."""
    client, opens, ends = make_client(), [], list[bool]()
    monkeypatch.setattr(models_module, "_RESTART_PAUSES_S", (0.0, 0.001, 0.001))
    monkeypatch.setattr(models_module, "end_for_dead_engine", lambda: ends.append(True))
    models = client.app.state.service.models  # type: ignore[attr-defined]

    def broken(*arguments: object) -> None:
        opens.append(arguments)
        raise fault

    with monkeypatch.context() as missing:
        missing.setattr(type(models._maker), "open", broken)
        engine_of(client)._encoder = Dead()
        assert encode(client).status_code == 500
        until(lambda: bool(ends) if expected else len(opens) > 10)
        assert (len(opens) == 3) == expected and ends == [True] * expected
        assert client.get("/readyz").status_code == 503
    if not expected:
        until(lambda: client.get("/readyz").status_code == 200)


def test_a_load_that_hangs_in_place_of_a_dead_engine_ends_the_process(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was waited for without an end."""
    client, ends, gate = make_client(reload_deadline_s=0.1), list[bool](), threading.Event()
    monkeypatch.setattr(models_module, "end_for_dead_engine", lambda: ends.append(True))
    models = client.app.state.service.models  # type: ignore[attr-defined]
    models._open = lambda bundle: gate.wait(60)
    engine_of(client)._encoder = Dead()
    assert encode(client).status_code == 500
    until(lambda: bool(ends))
    gate.set()
    assert client.get("/readyz").status_code == 503


_DIES_AT_THE_SECOND_PICTURE = """
import sys
from service.inference import engine
from service.process.command_line import main

call, encode, runs = engine.Engine._call, engine.Engine.run_encode, []

def counting(self, pictures):
    runs.append(pictures)
    return encode(self, pictures)

def failing(self, session, name, array):
    if len(runs) > 1:
        raise RuntimeError("the device is gone")
    return call(self, session, name, array)

engine.Engine._call, engine.Engine.run_encode = failing, counting
if __name__ == "__main__":
    main(sys.argv[1:])
"""


@contextmanager
def dying(bundle: Path, folder: Path, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service, and its address, in which every process ends with its second picture. Its log is `folder`/log."""
    (folder / "dies.py").write_text(_DIES_AT_THE_SECOND_PICTURE)
    variables = {"VQSERVE_ON_ENGINE_DEATH": "exit", "VQSERVE_DRAIN_S": "0.5", "VQSERVE_DEVICE": "cpu"}
    port = free_port()
    command = [sys.executable, str(folder / "dies.py"), "--bundle", str(bundle), "--port", str(port)]
    environment = {**os.environ, **variables, "VQSERVE_WORKERS": str(workers), "PYTHONPATH": str(Path.cwd())}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{address}/readyz"), 60)
        yield process, address
    finally:
        process.terminate()
        process.wait(30)


def status_of_encode(address: str) -> int:
    return httpx.post(f"{address}/encode", content=DIGIT, headers=PNG).status_code


def test_a_dead_engine_ends_the_process_where_that_is_the_setting(tiny: Tiny, tmp_path: Path) -> None:
    """For an orchestrator that restarts it: the caller is answered, the process drains and ends by itself. Its status
    was SIGTERM's, with which systemd takes a service for one that was stopped on purpose."""
    with dying(tiny.grey, tmp_path, workers=1) as (process, address):
        assert status_of_encode(address) == 200
        started = time.monotonic()
        assert status_of_encode(address) == 500
        until(lambda: httpx.get(f"{address}/readyz").status_code == 503, 0.4)
        assert process.wait(10) == ENGINE_DIED
        assert time.monotonic() - started < 8
    assert "is dead" in (tmp_path / "log").read_text()


def test_a_dead_engine_ends_its_worker_and_another_takes_its_place(tiny: Tiny, tmp_path: Path) -> None:
    with dying(tiny.grey, tmp_path, workers=2) as (process, address):
        until(lambda: status_of_encode(address) == 500)
        until(lambda: f"ended with status {ENGINE_DIED}; another takes its place" in (tmp_path / "log").read_text())
        until(lambda: 'vqserve_engine_deaths_total{model="tiny"} 1.0' in httpx.get(f"{address}/metrics").text)
        assert process.poll() is None


def test_sigterm_from_elsewhere_keeps_its_status(tiny: Tiny) -> None:
    with serving(tiny.grey, VQSERVE_DRAIN_S="0") as (process, _):
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
