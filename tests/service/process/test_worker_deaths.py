"""Workers that die: the log says how, what they leave is removed, and none is started again without a pause."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from uvicorn.config import STARTUP_FAILURE, Config

from service.process import supervisor as supervisor_of_workers
from service.process.supervisor import Supervisor, Worker
from service.telemetry.metrics import Metrics
from tests.service.process.test_workers import workers_of
from tests.service.serving import answers, free_port, listeners, until
from tests.tiny_bundle import write_tiny_bundle

_SERVES = """
import os, signal, sys
from service.process import supervisor
from service.process.command_line import main

supervisor._START_AGAIN_S = {pause_s}
supervisor._ENDS_S = {ends_s}
if not {kills}:  # as while its disk does not answer
    supervisor.Worker.kill = lambda worker: None
if __name__ == "__main__":
    main(sys.argv[1:])
elif {dies}:
    os.kill(os.getpid(), signal.SIGBUS)
"""


@contextmanager
def two_workers(
    folder: Path, pause_s: float = 0.1, ends_s: float = 8.0, dies: bool = False, kills: bool = True, **given: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service of `folder`/tiny, and its address; its log is `folder`/log, its temporary files are in `folder`."""
    write_tiny_bundle(folder / "tiny", "tiny")
    (folder / "serves.py").write_text(_SERVES.format(pause_s=pause_s, ends_s=ends_s, dies=dies, kills=kills))
    variables = {
        "VQSERVE_WORKERS": "2",
        "VQSERVE_DEVICE": "cpu",
        "VQSERVE_THREADS": "1",
        "VQSERVE_DRAIN_S": "0",
        **given,
    }
    environment = {**os.environ, **variables, "TMPDIR": str(folder), "PYTHONPATH": str(Path.cwd())}
    port = free_port()
    command = [sys.executable, str(folder / "serves.py"), "--bundle", str(folder / "tiny"), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def logged(folder: Path, words: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    return [line for line in lines if words in line["message"]]


def places_with(folder: Path, pattern: str) -> set[int]:
    """Of workers of which there are such files of metrics."""
    return {int(path.stem.rpartition("_")[2]) for path in folder.glob(f"vqserve-metrics-*/{pattern}")}


def shown(address: str, metric: str) -> float:
    (line,) = [line for line in httpx.get(f"{address}/metrics").text.splitlines() if line.startswith(f"{metric} ")]
    return float(line.split()[1])


def test_workers_that_are_killed_before_they_serve_end_the_service(tmp_path: Path) -> None:
    """They were started again without a pause and without an end, and no line said why."""
    with two_workers(tmp_path, pause_s=0.1, dies=True) as (process, _):
        assert process.wait(60) == STARTUP_FAILURE
    deaths = logged(tmp_path, "was ended by signal 7 (Bus error) before it served")
    assert 3 <= len(deaths) <= 6
    assert {line["level"] for line in deaths} == {"error"}
    assert "no other ever has; the service ends" in deaths[-1]["message"]
    (folder,) = {line["message"].rpartition(" ")[2] for line in logged(tmp_path, "a bus error comes of a full disk")}
    assert folder.startswith(f"{tmp_path}/vqserve-metrics-")


def test_what_a_dead_worker_leaves_is_removed(tmp_path: Path) -> None:
    """The bundle is bad while one is gone: every attempt left files in /tmp, which may lie in memory, until it was full
    and those that served died of it. So did every worker that had served. What it has counted is counted on."""
    with two_workers(tmp_path, pause_s=0.1) as (process, address):
        until(lambda: listeners(address) == 2, 60)
        killed, other = workers_of(process.pid)
        assert places_with(tmp_path, "gauge_*.db") == {0, 1}
        for _ in range(20):  # of both, with each connection of its own
            httpx.get(f"{address}/unknown")
        counted = 'vqserve_requests_total{route="other",status="404"}'
        until(lambda: shown(address, counted) == 20)  # each is counted when its answer has been sent
        (started,) = {shown(address, "vqserve_start_time_seconds") for _ in range(20)}  # of both
        (tmp_path / "tiny" / "decoder.onnx").rename(tmp_path / "kept")
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(logged(tmp_path, "ended with status 3 before it served")) >= 2, 30)
        assert logged(tmp_path, f"worker {killed} was ended by signal 9 (Killed); another takes its place")
        assert {line["process"] for line in logged(tmp_path, "serving tiny")} == {killed, other}
        until(lambda: shown(address, "vqserve_workers") == 1)
        assert shown(address, "vqserve_configured_workers") == 2
        assert shown(address, "vqserve_worker_deaths_total") == 0
        (tmp_path / "kept").rename(tmp_path / "tiny" / "decoder.onnx")
        until(lambda: listeners(address) == 2, 30)
        until(lambda: shown(address, "vqserve_workers") == 2)
        until(lambda: shown(address, "vqserve_worker_deaths_total") == 1 + len(logged(tmp_path, "before it served")))
        assert places_with(tmp_path, "*_*.db") == places_with(tmp_path, "codes_*.bin") == {0, 1}
        assert shown(address, counted) == 20
        assert {shown(address, "vqserve_start_time_seconds") for _ in range(20)} == {started}, "a death is no restart"


def test_a_worker_without_a_folder_to_count_in_says_so(tmp_path: Path) -> None:
    """Its traceback stood in the log, which is JSON else."""
    with two_workers(tmp_path, pause_s=0.1) as (process, address):
        until(lambda: listeners(address) == 2, 60)
        (folder,) = tmp_path.glob("vqserve-metrics-*")
        shutil.rmtree(folder)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        until(lambda: bool(logged(tmp_path, "cannot start: the workers count in files, and ")), 30)
        until(lambda: bool(logged(tmp_path, f"ended with status {STARTUP_FAILURE} before it served")), 30)
        (line, *_) = logged(tmp_path, "cannot start: the workers count in files, and ")
        assert (line["level"], str(folder) in line["message"]) == ("critical", True)


def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """There was no descriptor for its pipe. The supervisor ended with a traceback, and then waited, deaf to SIGTERM,
    for the worker that was left."""
    with two_workers(tmp_path, pause_s=0.1) as (process, address):
        until(lambda: listeners(address) == 2, 60)
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        taken = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (taken, hard))
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        until(lambda: len(logged(tmp_path, "a worker cannot be started: Too many open files")) >= 2, 30)
        assert process.poll() is None and answers(f"{address}/readyz")
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: listeners(address) == 2, 30)
        until(lambda: shown(address, "vqserve_worker_deaths_total") == 1)
        process.terminate()
        assert process.wait(30) == 0


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """The supervisor waited for it without end, deaf to SIGTERM."""
    with two_workers(tmp_path, ends_s=0.5, VQSERVE_GRACE_S="1") as (process, address):
        until(lambda: listeners(address) == 2, 60)
        stopped = workers_of(process.pid)[0]
        os.kill(stopped, signal.SIGSTOP)
        process.terminate()
        try:
            assert process.wait(30) == 0
        finally:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
    assert logged(tmp_path, f"worker {stopped} did not answer and was killed at the end")


def test_a_worker_that_cannot_be_killed_is_not_waited_for(tmp_path: Path) -> None:
    """The supervisor did, while it served and at the end: no other was replaced, and SIGTERM was not heard."""
    with two_workers(tmp_path, ends_s=0.5, kills=False, VQSERVE_GRACE_S="1") as (process, address):
        until(lambda: listeners(address) == 2, 60)
        first, second = workers_of(process.pid)
        try:
            os.kill(first, signal.SIGSTOP)
            said = f"worker {first} did not answer and cannot be killed; another takes its place"
            until(lambda: bool(logged(tmp_path, said)), 30)
            until(lambda: listeners(address) == 3, 30)
            os.kill(second, signal.SIGSTOP)
            process.terminate()
            assert process.wait(30) == 0
        finally:
            for stopped in (first, second):
                with suppress(ProcessLookupError):
                    os.kill(stopped, signal.SIGKILL)
    assert logged(tmp_path, f"worker {second} did not answer and cannot be killed at the end")
    assert not [*tmp_path.glob("vqserve-metrics-*")]


def test_a_service_without_a_worker_that_can_be_started_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither served nor ended: each attempt was logged, and counted as no failure."""
    supervisor = Supervisor.__new__(Supervisor)
    supervisor.processes = [SimpleNamespace(again_at=0.0, failures=0, deaths=1)]  # type: ignore[list-item]
    supervisor._has_served, supervisor.should_exit = True, threading.Event()
    monkeypatch.setattr(supervisor_of_workers, "_START_AGAIN_S", 0.0)
    monkeypatch.setattr(supervisor, "_started", lambda *_: None)
    for _ in range(9):  # others may serve
        supervisor.keep_subprocess_alive()
    assert not supervisor.should_exit.is_set()
    supervisor.processes[0].failures, supervisor._has_served = 0, False
    for _ in range(3):
        assert not supervisor.should_exit.is_set()
        supervisor.keep_subprocess_alive()
    assert supervisor.should_exit.is_set() and supervisor.failed_to_start
    assert caplog.messages == ["no worker has ever served, and none can be started; the service ends"]


def test_a_dead_worker_keeps_no_descriptors(tmp_path: Path) -> None:
    """Until another took its place: where they were short none could be started."""
    worker = Worker(Config("service.app:create_app"), [])
    gone = SimpleNamespace(pid=1, exitcode=-signal.SIGKILL, join=lambda timeout=None: None, kill=lambda: None)
    worker.process = gone  # type: ignore[assignment]
    worker._says.send_bytes(b"serves")
    supervisor = Supervisor.__new__(Supervisor)
    supervisor._metrics_folder = tmp_path
    supervisor._bury(worker)
    assert worker.deaths == 1 and worker.again_at is not None, "it has served"
    assert all(end.closed for end in (worker._hears, worker._says, worker.parent_conn, worker.child_conn))


def test_a_worker_that_takes_long_to_begin_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python took five seconds for its imports, on a busy machine or a part of a CPU, the next one did too."""
    worker = Worker(Config("service.app:create_app"), [])
    monkeypatch.setattr(worker, "process", SimpleNamespace(is_alive=lambda: True))
    assert worker.is_alive(timeout=0) and worker.is_alive(timeout=0)
    assert worker.child_conn.recv() == b"ping"
    assert not worker.child_conn.poll(), "it was asked twice, and would answer twice"
    worker.child_conn.send(False)
    assert worker.is_alive(timeout=0)
    assert not worker.is_alive(timeout=0), "from now on it has to answer"
    worker.close_pipes()


def test_a_worker_that_never_begins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_of_workers, "_BEGINS_S", 0.0)
    worker = Worker(Config("service.app:create_app"), [])
    monkeypatch.setattr(worker, "process", SimpleNamespace(is_alive=lambda: True))
    assert not worker.is_alive(timeout=0)
    worker.close_pipes()


@pytest.mark.parametrize("started", [0, 1])
def test_a_service_without_all_its_workers_does_not_start(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    """With one of two it hung, as above."""
    supervisor = Supervisor.__new__(Supervisor)
    supervisor.processes, supervisor.processes_num, supervisor.should_exit = [], 2, threading.Event()
    workers = [object()] * started
    monkeypatch.setattr(supervisor, "_started", lambda place: workers.pop() if workers else None)
    supervisor.init_processes()
    assert (len(supervisor.processes), supervisor.failed_to_start) == (started, True)
    assert supervisor.should_exit.is_set()


def test_a_worker_that_is_taken_away_counts_no_longer_and_the_last_one_stays(tmp_path: Path) -> None:
    """SIGTTOU asks for one worker less."""
    supervisor = Supervisor.__new__(Supervisor)
    supervisor._metrics_folder, supervisor.processes_num = tmp_path, 2
    supervisor.processes = [SimpleNamespace(terminate=list, join=list) for _ in range(2)]  # type: ignore[misc]
    for place in range(2):
        (tmp_path / f"gauge_livesum_{place}.db").touch()
    for _ in range(2):
        supervisor.handle_ttou()
        assert [path.name for path in tmp_path.iterdir()] == ["gauge_livesum_0.db"]


def test_nothing_is_logged_while_a_failed_worker_waits(tmp_path: Path) -> None:
    """Twice a second it was killed and waited for again, with a line each time."""
    with two_workers(tmp_path, pause_s=2.5) as (process, address):
        until(lambda: listeners(address) == 2, 60)
        (tmp_path / "tiny" / "decoder.onnx").rename(tmp_path / "kept")
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        until(lambda: len(logged(tmp_path, "before it served")) == 2, 60)
        first, second = (line["message"].split()[1] for line in logged(tmp_path, "before it served"))
        assert first != second
        assert not logged(tmp_path, "Waiting for child process")


def test_a_file_that_is_removed_while_the_page_is_made_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The page was a 500: between the list of the files and their reading the supervisor may remove some."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    lists = [[tmp_path / "counter_1.db"], []]
    monkeypatch.setattr(Path, "iterdir", lambda folder: lists.pop(0))
    assert b"vqserve_model_info" in Metrics().render()
    assert not lists
