"""The folder in which several workers count: who removes it, and what a start or a reload says that finds no room."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.app import ENDPOINTS, open_service, routes_of
from service.bundle import load_bundles
from service.errors import PROBLEMS
from service.http.middleware import OTHER
from service.settings import Settings
from service.telemetry.metric_files import CountsError, forget_worker, hold, reserve, shared_folder, take_place
from service.telemetry.metrics import Metrics
from service.telemetry.traffic import CodeTraffic
from service.threads import LARGE, PRIOR, SMALL
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import write_tiny_bundle

MakeClient = Callable[..., TestClient]
_KILLED = """
import os, signal
from service.telemetry.metric_files import shared_folder

with shared_folder() as folder:
    (folder / "counter_1.db").touch()
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed(temporary: Path) -> Path:
    """The folder of a service that was killed."""
    variables = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", _KILLED], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Path(done.stdout.strip())


def test_what_a_killed_service_has_left_is_removed_at_the_next_start(temporary: Path) -> None:
    """Each left a folder, until /tmp, which may lie in memory, was full."""
    left = killed(temporary)
    assert left.is_dir()
    with shared_folder() as ours:
        assert [*temporary.iterdir()] == [ours]
    assert not [*temporary.iterdir()]


def test_what_may_be_in_use_is_left(temporary: Path) -> None:
    """A folder that a process holds, also one whose number means nothing here; one of a release that held none; a link,
    and a file."""
    held = killed(temporary)
    assert hold(held)  # as a worker that has outlived its supervisor
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    for name in ("vqserve-metrics-abcdefgh", "other.held"):
        (temporary / name).mkdir()
    (temporary / "vqserve-metrics-link.held").symlink_to(elsewhere)
    (temporary / "vqserve-metrics-file.held").touch()
    before = {*temporary.iterdir()}
    with shared_folder() as first, shared_folder() as second:
        assert {*temporary.iterdir()} == before | {first, second}
    assert {*temporary.iterdir()} == before


@pytest.fixture
def _first_place() -> Iterator[None]:
    yield
    take_place(0)


@pytest.mark.usefixtures("_first_place")
def test_a_file_that_is_being_made_is_no_part_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk each attempt of a worker left an empty file for a moment, and whoever asked another worker for
    metrics then got a bare 500."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = Metrics()
    take_place(1)  # so that this process is a new worker
    begun: list[bytes] = []

    def no_room(path: Path, content: bytes) -> int:
        path.touch()
        begun.append(metrics.render())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(CountsError, match="No space left on device"):
        reserve(tmp_path, 1)
    assert [b"vqserve_model_info" in page for page in begun] == [True]
    assert not [*tmp_path.glob("*_1.*")]


def test_a_folder_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `TMPDIR` has brackets the page had no counter. Without the folder there is no page, rather than one of no
    worker."""
    folder = tmp_path / "tmp[1]"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    metrics = Metrics()
    metrics.sent.inc(7)
    assert b"vqserve_sent_bytes_total 7.0" in metrics.render()
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        metrics.render()


def test_another_users_folder_is_left(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed(temporary)
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    with shared_folder():
        assert left.is_dir()


def test_counts_without_a_file_prevent_the_start_with_a_sentence(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a traceback."""
    metrics = Metrics()
    metrics.shared_folder = tmp_path / "gone"
    with pytest.raises(CountsError):
        open_service(Settings(bundles=(tiny.grey,)), metrics)
    said = f"cannot start: the workers count in files, and {tmp_path}/gone takes none: No such file or directory: "
    assert caplog.messages[-1].startswith(said)


def test_counts_without_a_file_fail_a_reload_and_the_old_version_serves_on(
    make_client: MakeClient, tmp_path: Path
) -> None:
    """On a full disk the answer was a bare 500."""
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    client = make_client(bundles=(tmp_path / "tiny",))
    before = client.get("/models/tiny").json()["version"]
    metrics = client.app.state.service.metrics  # type: ignore[attr-defined]
    metrics.shared_folder = tmp_path / "gone"
    write_tiny_bundle(tmp_path / "tiny", "tiny", seed=1)
    answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:vqserve:problem:not-ready")
    said = f"The old version goes on serving. the workers count in files, and {tmp_path}/gone takes none: "
    assert answer.json()["detail"].startswith(said)
    digit = (PICTURES / "digit_7.png").read_bytes()
    assert client.post("/encode", content=digit, headers={"content-type": "image/png"}).json()["version"] == before
    metrics.shared_folder = None
    page = client.get("/metrics").text
    assert 'vqserve_reloads_total{model="tiny",outcome="failed"} 1.0' in page


def test_a_reload_to_another_version_forgets_the_counts_of_the_one_before(
    make_client: MakeClient, tmp_path: Path
) -> None:
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    client = make_client(bundles=(tmp_path / "tiny",))
    client.app.state.service.metrics.shared_folder = tmp_path  # type: ignore[attr-defined]
    for seed in (1, 2, 3):
        write_tiny_bundle(tmp_path / "tiny", "tiny", seed=seed)
        version = client.post("/models/tiny/reload").json()["version"]
        assert [path.name for path in tmp_path.glob("codes_*")] == [f"codes_tiny_{version[:12]}_0.bin"]


def test_each_version_that_was_served_before_leaves_no_file(tmp_path: Path) -> None:
    """A service that was reloaded with every new training run filled its /tmp, of 64 MB in a container."""
    other = CodeTraffic("m_a", "v" * 12, 4, tmp_path)
    kept = {*tmp_path.iterdir()}
    old = CodeTraffic("m", "v" * 12, 4, tmp_path)
    new = CodeTraffic("m", "w" * 12, 4, tmp_path)
    new.forget_other_versions()
    old.add(np.array([1]))  # an answer that was on its way
    assert {path.name for path in {*tmp_path.iterdir()} - kept} == {f"codes_m_{'w' * 12}_0.bin"}
    other.add(np.array([2]))
    assert other.counts().tolist() == [0, 0, 1, 0]
    assert CodeTraffic("m", "v" * 12, 4, tmp_path).counts().tolist() == [0] * 4


def test_what_cannot_be_removed_ends_no_supervision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a disk that was read-only since it had failed, the supervisor's loop ended with a traceback: no worker was
    replaced any more, and it was deaf to SIGTERM."""
    plain, kept = Path.unlink, {"gauge_livesum_0.db", "codes_m_v_0.bin"}

    def read_only(path: Path, missing_ok: bool = False) -> None:
        if path.name in kept:
            raise OSError(errno.EROFS, "Read-only file system")
        plain(path, missing_ok)

    def unreadable(folder: Path, pattern: str) -> list[Path]:
        raise OSError(errno.EIO, "Input/output error")

    for name in (*kept, "codes_o_v_0.bin"):
        (tmp_path / name).touch()
    monkeypatch.setattr(Path, "unlink", read_only)
    forget_worker(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == kept
    monkeypatch.setattr(Path, "glob", unreadable)
    forget_worker(tmp_path, 0)
    said = f"what a worker has left in {tmp_path} cannot be removed: "
    assert caplog.messages == [f"{said}Read-only file system", f"{said}Input/output error"]


def test_files_have_no_holes_and_those_of_a_dead_worker_are_counted_on(tmp_path: Path) -> None:
    """On a full disk the first count in a hole of a file was a bus error: all workers died while they served."""
    (tmp_path / "counter_0.db").write_bytes(b"counted")
    reserve(tmp_path, 1)
    sizes = {path.name.rpartition("_")[0]: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"counter": 7, "gauge_livesum": 9 << 10, "histogram": 280 << 10}
    with pytest.raises(CountsError, match=f"{tmp_path}/gone takes none: No such file or directory"):
        reserve(tmp_path / "gone", 1)


@pytest.mark.parametrize("models", [1, 6, 20])
def test_files_have_room_for_all_that_is_counted(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: int
) -> None:
    """From five models on a file became twice as large while the service served, by a hole: see above."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics, (bundle,) = Metrics(models=models), load_bundles([tiny.grey])
    before = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert len(before) == 3
    for n in range(models):
        name = f"{n:064}"  # none is longer
        metrics.open_model(bundle.manifest.model_copy(update={"name": name}), "cpu")
        metrics.generation.of(name)
    statuses = {200, *(problem.status for problem in PROBLEMS)}
    for route in {OTHER, *routes_of(ENDPOINTS).values()}:
        metrics.request_seconds.labels(route)
        for status in statuses:
            metrics.requests.labels(route, str(status))
    for problem in PROBLEMS:
        metrics.refused.labels(problem.slug)
    for size in (SMALL, LARGE, PRIOR):
        metrics.queued_work.labels(size)
    assert {path.name: path.stat().st_size for path in tmp_path.glob("*.db")} == before
