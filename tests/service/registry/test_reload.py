"""Reloads that take their time: who waits for them, how many there are, and what becomes of them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.bundle import BundleError, load_bundles
from service.registry.loads import LoadHangs, Loads
from service.registry.served_stamps import stamp_of
from service.telemetry.logs import JsonFormatter
from service.threads import NoThread
from tests.service.serving import until
from tests.tiny_bundle import tiny_prior, write_tiny_bundle

MakeClient = Callable[..., TestClient]


class Opening:
    """Opens a bundle's sessions when its gate is open."""

    def __init__(self, opens: Callable[[Any], Any]) -> None:
        self.opens, self.gate, self.runs, self.looks = opens, threading.Event(), 0, 0

    def __call__(self, bundle: Any) -> Any:
        self.runs += 1
        self.gate.wait(60)
        return self.opens(bundle)


def slow_reloads(client: TestClient) -> Opening:
    """A reload has read its bundle and waits for the gate before it opens sessions. `looks`: how many who asked for one
    have seen the folder, and wait for that reload."""
    models = client.app.state.service.models  # type: ignore[attr-defined]
    look, slow = models._look, Opening(models._open)

    async def counted(name: str) -> Any:
        stamp = await look(name)
        slow.looks += 1
        return stamp

    models._open, models._look = slow, counted
    return slow


class ReloadInThread(threading.Thread):
    """One who asks for a reload; `answered` waits for what came back."""

    def __init__(self, client: TestClient) -> None:
        super().__init__()
        self.client = client
        self.start()

    def run(self) -> None:
        self.answer = self.client.post("/models/tiny/reload")

    def answered(self) -> Any:
        self.join()
        return self.answer


def reloads(client: TestClient) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("vqserve_reloads_total")]
    return {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in lines if '"tiny"' in line}


@pytest.mark.parametrize("good", [True, False])
def test_a_reload_outlives_the_deadline_of_who_asked(make_client: MakeClient, own_bundle: Path, good: bool) -> None:
    """It was thrown away with its request, neither swapped nor counted, so a slow bundle could never be loaded."""
    client = make_client(bundles=(own_bundle,), request_deadline_ms=500)
    old = client.get("/models/tiny").json()["version"]
    write_tiny_bundle(own_bundle, "tiny", seed=1)
    slow = slow_reloads(client)
    assert client.post("/models/tiny/reload").status_code == 504
    assert client.get("/models/tiny").json()["version"] == old
    if not good:
        (own_bundle / "decoder.onnx").write_bytes(b"damaged")
    slow.gate.set()
    counted: dict[str, float] = {}
    until(lambda: counted.update(reloads(client)) or sum(counted.values()) == 1)
    assert counted == {"swapped": float(good), "failed": float(not good)}
    assert (client.get("/models/tiny").json()["version"] != old) == good


def test_reloads_at_once_are_one(make_client: MakeClient, own_bundle: Path) -> None:
    """Each opened all sessions of its own, all of them at the same time."""
    client = make_client(bundles=(own_bundle,))
    slow = slow_reloads(client)
    asked = [ReloadInThread(client) for _ in range(4)]
    until(lambda: slow.looks == 4)
    slow.gate.set()
    assert [reload.answered().status_code for reload in asked] == [200] * 4
    assert (slow.runs, reloads(client)["swapped"]) == (1, 1)


def test_a_bundle_that_comes_during_a_reload_is_loaded_too(make_client: MakeClient, own_bundle: Path) -> None:
    """Who asks after it came must not be answered with the reload of the one before, whose files are gone."""
    client = make_client(bundles=(own_bundle,))
    slow = slow_reloads(client)
    first = ReloadInThread(client)
    until(lambda: slow.runs == 1)
    write_tiny_bundle(own_bundle, "tiny", seed=1)
    second = ReloadInThread(client)
    until(lambda: "vqserve_requests_in_flight 3.0" in client.get("/metrics").text)
    slow.gate.set()
    expected = json.loads((own_bundle / "manifest.json").read_text())["version"]
    assert [reload.answered().status_code for reload in (first, second)] == [422, 200]
    assert "changed while the bundle was opened" in first.answered().text
    assert second.answered().json()["version"] == expected
    assert client.get("/models/tiny").json()["version"] == expected


def test_a_load_that_hangs_is_given_up(make_client: MakeClient, own_bundle: Path) -> None:
    """Every later reload of the model waited for it, without an end."""
    client = make_client(bundles=(own_bundle,), reload_deadline_s=0.2)
    models = client.app.state.service.models  # type: ignore[attr-defined]
    opens, slow = models._open, slow_reloads(client)
    answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:vqserve:problem:not-ready")
    assert "has not been loaded within 0.2 s (VQSERVE_RELOAD_DEADLINE_S)" in answer.json()["detail"]
    models._open = opens
    models._loads._deadline_s = 60
    write_tiny_bundle(own_bundle, "tiny", seed=1)
    assert client.post("/models/tiny/reload").status_code == 200
    newest = client.get("/models/tiny").json()["version"]
    slow.gate.set()
    until(lambda: not models._loads._given_up)
    assert client.get("/models/tiny").json()["version"] == newest
    assert client.get("/readyz").status_code == 200
    assert reloads(client) == {"failed": 1, "swapped": 1}


def test_what_is_loaded_too_late_is_closed(make_client: MakeClient, own_bundle: Path) -> None:
    """And freed: it stayed in memory until another reload had ended."""
    client = make_client(bundles=(own_bundle,), reload_deadline_s=0.2)
    models, freed = client.app.state.service.models, list[str]()  # type: ignore[attr-defined]
    models._loads._on_late = lambda: freed.append("it will be")
    opens, late, slow = models._open, list[Any](), slow_reloads(client)
    slow.opens = lambda bundle: late.append(opens(bundle)) or late[0]  # type: ignore[func-returns-value]
    assert client.post("/models/tiny/reload").status_code == 503
    slow.gate.set()
    until(lambda: bool(late) and late[0].why_not_ready() == "It was loaded too late.")
    until(lambda: freed == ["it will be"])
    assert client.get("/readyz").status_code == 200


def test_slots_are_those_of_what_is_served(make_client: MakeClient, tmp_path: Path) -> None:
    """A bundle without a prior that was loaded too late took the slots of the one that went on serving."""
    write_tiny_bundle(tmp_path / "tiny", "tiny", prior=tiny_prior(0))
    client = make_client(bundles=(tmp_path / "tiny",), reload_deadline_s=0.2)

    def slots() -> float:
        (found,) = re.findall(r'^vqserve_generate_slots{model="tiny"} (.+)$', client.get("/metrics").text, re.M)
        return float(found)

    served = slots()
    assert served > 0
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    models = client.app.state.service.models  # type: ignore[attr-defined]
    opens, late, slow = models._open, list[Any](), slow_reloads(client)
    slow.opens = lambda bundle: late.append(opens(bundle)) or late[0]  # type: ignore[func-returns-value]
    assert client.post("/models/tiny/reload").status_code == 503
    slow.gate.set()
    until(lambda: bool(late))
    assert slots() == served
    models._loads._deadline_s = 60
    assert client.post("/models/tiny/reload").status_code == 200
    assert slots() == 0


def test_a_load_that_hangs_does_not_keep_the_process_from_ending() -> None:
    script = (
        "import asyncio, time; from service.registry.loads import Loads; "
        "asyncio.run(Loads(0.1).run(lambda: time.sleep(60)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert "LoadHangs: it has not been loaded within 0.1 s" in done.stderr


def test_a_load_that_fails_after_it_was_given_up_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    gate, threads, closed = threading.Event(), list[threading.Thread](), list[object]()

    def load() -> None:
        threads.append(threading.current_thread())
        gate.wait(10)
        raise BundleError("bad")

    with pytest.raises(LoadHangs):
        asyncio.run(Loads(0.05, closed.append).run(load))
    gate.set()
    threads[0].join(10)
    assert caplog.messages == ["a load that was given up has ended"] and closed == []


def test_a_load_that_was_given_up_is_not_waited_for_at_the_end() -> None:
    gate, loads = threading.Event(), Loads[bool](0.05)
    with pytest.raises(LoadHangs):
        asyncio.run(loads.run(lambda: gate.wait(10)))
    started = time.monotonic()
    loads.close()
    assert time.monotonic() - started < 1
    gate.set()


def test_few_loads_hang_at_once(make_client: MakeClient, own_bundle: Path) -> None:
    """Each keeps a thread, and perhaps the memory of a model."""
    client = make_client(bundles=(own_bundle,), reload_deadline_s=0.05)
    slow = slow_reloads(client)
    for _ in range(5):
        answer = client.post("/models/tiny/reload")
        assert answer.status_code == 503
    assert "4 loads that took too long have not ended yet: restart the service" in answer.json()["detail"]
    assert slow.runs == 4
    slow.gate.set()
    until(lambda: client.post("/models/tiny/reload").status_code == 200)


def hang(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """From now on no look at a folder ends before the event is set."""
    gate = threading.Event()
    monkeypatch.setattr("service.registry.models.stamp_of", lambda folder: stamp_of(folder) if gate.wait(30) else None)
    return gate


def test_a_folder_whose_disk_hangs_holds_up_nobody(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The event loop itself asked the disk when the manifest was written, and every request waited with it."""
    client = make_client(bundles=(own_bundle,), watch_bundles_s=0.1, reload_deadline_s=1.0)
    gate = hang(monkeypatch)
    write_tiny_bundle(own_bundle, "tiny", seed=1)
    asked = ReloadInThread(client)
    assert client.get("/healthz").status_code == 200
    assert asked.answered().status_code == 503
    assert "the folder of tiny does not answer: it has not been loaded within 1 s" in caplog.text
    gate.set()
    expected = json.loads((own_bundle / "manifest.json").read_text())["version"]
    until(lambda: client.get("/models/tiny").json()["version"] == expected)


def test_a_folder_whose_disk_hangs_takes_few_threads(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that asked for a reload took one, for as long as the disk hung."""
    client = make_client(bundles=(own_bundle,), request_deadline_ms=500)
    gate = hang(monkeypatch)
    asked = [ReloadInThread(client) for _ in range(10)]
    assert {reload.answered().status_code for reload in asked} <= {503, 504}
    assert sum(thread.name == "load" for thread in threading.enumerate()) <= 4
    gate.set()
    until(lambda: client.post("/models/tiny/reload").status_code == 200)


def test_the_watch_does_not_fill_the_log_while_a_disk_hangs(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once as many looks had been given up as may be, each period was a line."""
    client = make_client(bundles=(own_bundle,), watch_bundles_s=0.1, reload_deadline_s=0.5)
    gate = hang(monkeypatch)
    client.app.state.service.models._looks["tiny"]._deadline_s = 0.01  # type: ignore[attr-defined]
    time.sleep(2.5)
    assert 2 <= caplog.text.count("the folder of tiny does not answer") <= 6
    gate.set()


def test_a_manifest_that_is_written_during_the_start_is_seen(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch took it for the one that had been read, and the old one was served until the next change."""
    manifest = own_bundle / "manifest.json"

    def written_once_it_is_read(*arguments: Any) -> Any:
        bundles = load_bundles(*arguments)
        manifest.write_text(manifest.read_text() + "\n")
        return bundles

    with monkeypatch.context() as starting:
        starting.setattr("service.registry.models.load_bundles", written_once_it_is_read)
        client = make_client(bundles=(own_bundle,), watch_bundles_s=0.1)
    until(lambda: reloads(client)["swapped"] == 1)


def test_those_who_wait_for_a_reload_ask_for_what_is_there_then(make_client: MakeClient, own_bundle: Path) -> None:
    """Each loaded once more what its own manifest had been, or rather what was there by then."""
    client = make_client(bundles=(own_bundle,))
    slow, manifest = slow_reloads(client), own_bundle / "manifest.json"
    asked = [ReloadInThread(client)]
    until(lambda: slow.runs == 1)
    for looks in (2, 3, 4):
        manifest.write_text(manifest.read_text() + "\n")
        asked.append(ReloadInThread(client))
        until(lambda looks=looks: slow.looks == looks)  # type: ignore[misc]
    opens = slow.opens

    def when_all_have_looked_again(bundle: Any) -> Any:
        """Else the second load may be over before the last of them asks for it."""
        until(lambda: slow.runs == 1 or slow.looks == 7, 60)
        return opens(bundle)

    slow.opens = when_all_have_looked_again
    slow.gate.set()
    assert [reload.answered().status_code for reload in asked] == [200] * 4
    assert slow.runs == 2


def test_a_load_for_which_there_is_no_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the process waited for it, for five seconds."""

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    loads = Loads[None](10)
    with monkeypatch.context() as full, pytest.raises(NoThread, match="new thread: allow more"):
        full.setattr(threading.Thread, "start", none_left)
        asyncio.run(loads.run(lambda: None))
    started = time.monotonic()
    loads.close()
    assert time.monotonic() - started < 1


def test_a_reload_for_which_there_is_no_thread_says_so(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a bare 500 and a traceback; of a watch no line said that it saw nothing, and no metric either."""
    client, plain = make_client(bundles=(own_bundle,)), threading.Thread.start

    def no_load(thread: threading.Thread) -> None:
        if thread.name == "load":
            raise RuntimeError("can't start new thread")
        plain(thread)

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_load)
        answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:vqserve:problem:not-ready")
    why = "can't start new thread: allow more threads (pids) or memory"
    assert answer.json()["detail"] == f"The old version goes on serving. {why}"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"the folder of tiny cannot be looked at: {why}"
    ]
    assert reloads(client) == {"failed": 1, "swapped": 0}
    assert client.post("/models/tiny/reload").status_code == 200


def test_a_reload_that_was_asked_for_is_not_done_again_by_the_watch(make_client: MakeClient, own_bundle: Path) -> None:
    client = make_client(bundles=str(own_bundle), watch_bundles_s=0.1)
    os.utime(own_bundle / "manifest.json", (1, 1))
    assert client.post("/models/tiny/reload").status_code == 200
    time.sleep(0.5)
    assert 'vqserve_reloads_total{model="tiny",outcome="swapped"} 1.0' in client.get("/metrics").text


def test_the_watch_sees_what_only_the_ctime_tells_and_loads_it_once(make_client: MakeClient, own_bundle: Path) -> None:
    """A folder that `rm -rf` and `cp -a` had put in the place of another was never loaded: on ext4 its manifest may
    have the inode of the one before. Other rights look the same, and must not be loaded again and again."""
    client = make_client(bundles=str(own_bundle), watch_bundles_s=0.1)
    (own_bundle / "manifest.json").chmod(0o600)
    until(lambda: reloads(client)["swapped"] == 1)
    time.sleep(0.5)
    assert reloads(client) == {"failed": 0, "swapped": 1}


def test_the_watch_goes_on_after_a_disk_that_did_not_answer(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error of a network disk, or a manifest replaced at the wrong moment, ended it for good."""
    plain, failures = Path.stat, iter([True, True])

    def failing(path: Path, **options: Any) -> os.stat_result:
        if path.name == "manifest.json" and next(failures, False):
            raise OSError(errno.ESTALE, "Stale file handle")
        return plain(path, **options)

    client = make_client(bundles=str(own_bundle), watch_bundles_s=0.1)
    monkeypatch.setattr(Path, "stat", failing)
    until(lambda: next(failures, False) is False)
    os.utime(own_bundle / "manifest.json", (1, 1))
    swapped = 'vqserve_reloads_total{model="tiny",outcome="swapped"} 1.0'
    until(lambda: swapped in client.get("/metrics").text)


def point(link: Path, target: str) -> None:
    """As `ln -sfn`: at no time without a target."""
    link.with_name("new").symlink_to(target)
    link.with_name("new").replace(link)


@pytest.mark.parametrize("watched", [False, True])
def test_a_link_that_leads_to_another_bundle_is_followed(
    make_client: MakeClient, tmp_path: Path, watched: bool
) -> None:
    """The folder that it led to at the start was loaded for ever."""
    for seed, name in enumerate(("v1", "v2")):
        write_tiny_bundle(tmp_path / name, "tiny", seed=seed)
    point(tmp_path / "current", "v1")
    client = make_client(bundles=(tmp_path / "current",), watch_bundles_s=0.1 if watched else 0)
    old = client.get("/models/tiny").json()["version"]
    point(tmp_path / "current", "v2")
    shutil.rmtree(tmp_path / "v1")
    if not watched:
        assert client.post("/models/tiny/reload").status_code == 200
    until(lambda: client.get("/models/tiny").json()["version"] != old)
    expected = json.loads((tmp_path / "v2" / "manifest.json").read_text())["version"]
    assert client.get("/models/tiny").json()["version"] == expected


def test_a_file_that_cannot_be_read_leaves_the_old_version(make_client: MakeClient, own_bundle: Path) -> None:
    """The answer was a bare 500."""
    client = make_client(bundles=(own_bundle,))
    (own_bundle / "decoder.onnx").unlink()
    (own_bundle / "decoder.onnx").symlink_to("/proc/self/mem")
    answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:vqserve:problem:reload-failed")
    assert f"{own_bundle}/decoder.onnx cannot be read" in answer.json()["detail"]
    assert client.get("/models/tiny").status_code == 200


def test_a_folder_whose_name_is_not_utf_8_is_named_in_answer_and_log(
    make_client: MakeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """JSON cannot hold the name: the answer was a bare 500 without an id, and the log had a traceback of its own."""
    folder = tmp_path / os.fsdecode(b"m\xff")
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    (tmp_path / "tiny").rename(folder)
    client = make_client(bundles=str(folder))
    (folder / "decoder.onnx").unlink()
    answer = client.post("/models/tiny/reload")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:vqserve:problem:reload-failed")
    assert "x-request-id" in answer.headers
    assert r"/m\udcff/decoder.onnx does not exist" in answer.json()["detail"]
    (line,) = (JsonFormatter().format(record) for record in caplog.records if "failed" in record.message)
    assert r"/m\udcff/decoder.onnx does not exist" in json.loads(line)["message"]


def test_a_reload_that_fails_half_way_leaves_nothing_open(make_client: MakeClient, own_bundle: Path) -> None:
    """Each took its sessions' memory and threads with it, until the collector came by; a watch tries again for ever."""
    client = make_client(bundles=(own_bundle,))
    models = client.app.state.service.models  # type: ignore[attr-defined]
    closed: list[str] = []

    class Part:
        slots = 0

        def why_not_ready(self) -> None: ...

        def close(self, reason: str) -> None:
            closed.append(reason)

    def fails(*_: Any) -> None:
        raise BundleError("no")

    models._open_companion = {"first": lambda *_: Part(), "second": fails}
    assert client.post("/models/tiny/reload").status_code == 422
    assert closed == ["Another part of the model could not be opened."]
    assert client.get("/readyz").status_code == 200


def test_what_a_failed_reload_has_opened_is_collected(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = threading.Event()
    client = make_client(bundles=(own_bundle,), request_deadline_ms=100)  # with 1 the reload may not even begin
    monkeypatch.setattr("service.process.memory.spare_what_stays", collected.set)
    monkeypatch.setattr("service.process.memory.gc.get_freeze_count", lambda: 1)  # as where the service runs by itself
    (own_bundle / "decoder.onnx").write_bytes(b"no graph")
    assert client.post("/models/tiny/reload").status_code >= 400
    assert collected.wait(5)


def test_the_watch_of_one_bundle_does_not_wait_for_another(
    make_client: MakeClient, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that did not answer kept all others from their reload for ten minutes."""
    write_tiny_bundle(own_bundle.parent / "other", "other")
    client = make_client(bundles=f"{own_bundle},{own_bundle.parent / 'other'}", watch_bundles_s=0.1)
    asked: list[str] = []

    async def hanging(name: str) -> None:
        asked.append(name)
        await asyncio.Event().wait()

    monkeypatch.setattr(client.app.state.service.models, "reload", hanging)  # type: ignore[attr-defined]
    for folder in (own_bundle, own_bundle.parent / "other"):
        os.utime(folder / "manifest.json", (1, 1))
    until(lambda: sorted(asked) == ["other", "tiny"])
