"""Several workers of one service: they serve the same version, and one that cannot start ends no other."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
from starlette.testclient import TestClient

from service.process.shared_port import SharedPort
from service.registry.served_stamps import ServedStamps
from tests.service.serving import answers, free_port, listeners, serving, until
from tests.tiny_bundle import write_tiny_bundle

TWO = {"VQSERVE_WORKERS": "2"}


def versions(address: str) -> set[str]:
    """Of either worker, as far as new connections find both: 12 that do not have a probability of 1 in 2048."""
    return {httpx.get(f"{address}/models/tiny").json()["version"] for _ in range(12)}


def workers_of(parent: int) -> list[int]:
    """Its children, but for the process that cleans up after multiprocessing."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in _command_line(pid)]


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has just been waited for, before the file is opened or after
        return b""


def test_a_reload_that_one_worker_was_asked_for_reaches_the_other_after_it_has_failed(own_bundle: Path) -> None:
    """A worker that saw the folder while it was being copied did not look at it again, and served the old version."""
    with serving(own_bundle, **TWO, VQSERVE_WATCH_BUNDLES_S="0.2") as (_, address):
        until(lambda: all(answers(f"{address}/readyz") for _ in range(12)))
        (before,) = versions(address)
        write_tiny_bundle(own_bundle, "tiny", seed=1)
        (own_bundle / "decoder.onnx").rename(own_bundle / "kept")
        failed = 'vqserve_reloads_total{model="tiny",outcome="failed"} 2.0'
        until(lambda: failed in httpx.get(f"{address}/metrics").text)
        (own_bundle / "kept").rename(own_bundle / "decoder.onnx")
        after = httpx.post(f"{address}/models/tiny/reload").json()["version"]
        until(lambda: versions(address) == {after})
        assert after != before


def test_without_a_watch_only_what_was_asked_for_is_reloaded_by_all(own_bundle: Path) -> None:
    with serving(own_bundle, **TWO) as (_, address):
        until(lambda: all(answers(f"{address}/readyz") for _ in range(12)))
        before = versions(address)
        write_tiny_bundle(own_bundle, "tiny", seed=1)
        time.sleep(1.2)  # twice as long as a worker takes to look
        assert versions(address) == before
        after = httpx.post(f"{address}/models/tiny/reload").json()["version"]
        until(lambda: versions(address) == {after})


def test_a_version_with_the_time_of_the_one_before_reaches_all_workers(own_bundle: Path) -> None:
    """As `cp -p`, tar and `rsync --inplace` may leave it: what one worker told was what the other served already, and
    it served the old version for good."""
    with serving(own_bundle, **TWO) as (_, address):
        until(lambda: all(answers(f"{address}/readyz") for _ in range(12)))
        manifest = own_bundle / "manifest.json"
        (before,), state = versions(address), manifest.stat()
        write_tiny_bundle(own_bundle, "tiny", seed=1)
        os.utime(manifest, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert manifest.stat().st_ino == state.st_ino
        after = httpx.post(f"{address}/models/tiny/reload").json()["version"]
        until(lambda: versions(address) == {after})
        assert after != before


def test_a_worker_that_cannot_start_again_leaves_the_other_serving(own_bundle: Path) -> None:
    with serving(own_bundle, **TWO) as (process, address):
        until(lambda: listeners(address) == 2, 60)
        (own_bundle / "decoder.onnx").rename(own_bundle / "kept")
        killed, other = workers_of(process.pid)
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(workers_of(process.pid)) == 2)  # a new one, which will fail
        until(lambda: workers_of(process.pid) == [other], 60)
        assert answers(f"{address}/readyz")
        (own_bundle / "kept").rename(own_bundle / "decoder.onnx")
        until(lambda: len(workers_of(process.pid)) == 2, 60)
        assert other in workers_of(process.pid)
        assert process.poll() is None


def test_workers_end_when_their_supervisor_was_killed(own_bundle: Path) -> None:
    """They served on, and the port stayed taken."""
    command = [sys.executable, "-m", "service", "--bundle", str(own_bundle), "--port", str(free_port())]
    variables = {**os.environ, **TWO, "VQSERVE_DEVICE": "cpu", "VQSERVE_DRAIN_S": "0"}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{command[-1]}"
    until(lambda: answers(f"{address}/readyz") and len(workers_of(process.pid)) == 2, 60)
    left = workers_of(process.pid)
    process.kill()
    process.wait()
    until(lambda: not any(_runs(pid) for pid in left))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("variable", ["WEB_CONCURRENCY", "PROMETHEUS_MULTIPROC_DIR"])
def test_variables_of_other_programs_change_nothing(own_bundle: Path, tmp_path: Path, variable: str) -> None:
    value = {"WEB_CONCURRENCY": "3", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing")}[variable]
    with serving(own_bundle, **{variable: value}) as (process, address):
        for _ in range(10):
            assert httpx.get(f"{address}/models").status_code == 200
        assert 'route="/models",status="200"} 10.0' in httpx.get(f"{address}/metrics").text
        assert not workers_of(process.pid)


def test_several_workers_listen_where_one_does() -> None:
    """On `::` one answers IPv6 only; several answered IPv4 too, until there was one again."""
    with SharedPort.bound(socket.AF_INET6, ("::1", 0)) as shared:
        assert shared.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


_TWO_ADDRESSES = """
import socket
from service.process.command_line import main

found = socket.getaddrinfo
socket.getaddrinfo = lambda _, *rest, **how: [one for n in (1, 2) for one in found(f"127.0.0.{n}", *rest, **how)]
main()
"""


def test_several_workers_listen_on_all_addresses_of_a_name(own_bundle: Path) -> None:
    """On the first only, where a single worker listens on all: `localhost` may be 127.0.0.1 and ::1."""
    port = free_port()
    variables = {"VQSERVE_BUNDLES": str(own_bundle), "VQSERVE_HOST": "two.example", "VQSERVE_PORT": str(port)}
    environment = {**os.environ, **TWO, **variables, "VQSERVE_DEVICE": "cpu", "VQSERVE_DRAIN_S": "0"}
    process = subprocess.Popen([sys.executable, "-c", _TWO_ADDRESSES], env=environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: all(answers(f"http://127.0.0.{n}:{port}/readyz") for n in (1, 2)), 60)
        until(lambda: listeners(f":{port}") == 4)
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_several_workers_on_any_port_have_the_same_on_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a copy, as a worker gets it, is on the same one."""
    two = [(int(socket.AF_INET), (f"127.0.0.{n}", 0)) for n in (1, 2)]
    monkeypatch.setattr("service.process.shared_port.addresses_of", lambda host, port: two)
    monkeypatch.setattr(SharedPort, "kept", SharedPort.bound)
    with ExitStack() as closing:
        kept = [closing.enter_context(one) for one in SharedPort.kept_on_all("two.example", 0)]
        copies = [closing.enter_context(copy(one)) for one in kept]  # by what pickle takes as well
        assert [one.getsockname()[0] for one in copies] == ["127.0.0.1", "127.0.0.2"]
        assert len({one.getsockname()[1] for one in (*kept, *copies)}) == 1


def test_what_one_process_has_told_the_others_read(tmp_path: Path) -> None:
    one, other, alone = ServedStamps(tmp_path), ServedStamps(tmp_path), ServedStamps(None)
    assert other.told("a") is None
    one.tell("a", (5, 7, 9, 11))
    alone.tell("a", (6, 8, 9, 11))
    assert other.told("a") == (5, 7, 9, 11)
    assert other.told("b") is None and alone.told("a") is None


def test_a_folder_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServedStamps(tmp_path / "missing").tell("a", (5, 7, 9, 11))
    assert "other workers are not told of the reload of a" in caplog.text


def test_what_cannot_be_read_is_logged_once_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the limit of open files it was two lines a second of each worker and model."""
    stamps = ServedStamps(tmp_path)
    stamps.tell("a", (5, 7, 9, 11))
    for _ in range(2):
        with monkeypatch.context() as full:
            full.setattr(Path, "read_text", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
            assert [stamps.told(name) for name in ("a", "a", "b")] == [None] * 3
        assert stamps.told("a") == (5, 7, 9, 11)
        assert stamps.told("b") is None
    said = "what other workers serve of {} cannot be read: [Errno 24] Too many open files"
    assert caplog.messages == [said.format(name) for name in ("a", "b", "a", "b")]


def test_after_a_failed_read_a_worker_looks_again_later(
    make_client: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an open file was to be had now and then, the line came as often."""
    models = make_client().app.state.service.models  # type: ignore[attr-defined]
    models._told = ServedStamps(tmp_path)
    monkeypatch.setattr("service.registry.models._FOLLOW_OTHER_WORKERS_S", 0.01)
    with monkeypatch.context() as full:
        full.setattr(Path, "read_text", reads := Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(models._follow("tiny"), 0.5))
    assert reads.call_count == 1
