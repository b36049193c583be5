"""Freed blocks leave the process, also after a large one has been freed; the collector leaves out what stays."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.process.memory import Replaced
from tests.service.overload_clock import Clock
from tests.service.serving import until
from tests.tiny_bundle import write_tiny_bundle

CHURN = """
import random, sys
from pathlib import Path
from service.process.memory import give_freed_memory_back

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

assert sys.argv[1] == "default" or give_freed_memory_back()
source = random.Random(0)
small = []
before = resident_mib()
for _ in range(200):
    block = bytearray(source.randrange(1 << 20, 30 << 20))
    small.append(bytearray(500))  # what a request leaves behind, above the block where that came from the heap
    del block
print(resident_mib() - before)
"""


def grown_mib(mode: str) -> float:
    command = [sys.executable, "-c", CHURN, mode]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_large_blocks_are_given_back() -> None:
    assert grown_mib("fixed") < 4 < grown_mib("default")


def test_the_collector_is_spared_what_stays_until_the_next_time() -> None:
    """In a process of its own: pytest's objects shall not stay."""
    code = """
import gc, weakref
from service.process.memory import spare_what_stays
class Part: pass
part = Part()
part.whole, gone = part, weakref.ref(part)
spare_what_stays()
frozen = gc.get_freeze_count()
del part
gc.collect()
print(frozen > 1000, gone() is not None, len(gc.get_objects()) < frozen)
spare_what_stays()
print(gone() is None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\nTrue\n"


def test_nothing_keeps_a_model_that_was_replaced(make_client: Callable[..., TestClient], tmp_path: Path) -> None:
    """Regression: the frame of the app's lifespan kept the last one that was opened at the start, with its sessions."""
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    client = make_client(bundles=str(tmp_path / "tiny"))
    models = client.app.state.service.models  # type: ignore[attr-defined]
    first = weakref.ref(models.get("tiny"))
    assert client.post("/models/tiny/reload").status_code == 200
    gc.collect()
    assert first() is None and models.get("tiny") is not None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_what_lies_between_blocks_that_stay_is_given_back() -> None:
    """Of a model that was replaced, the process kept most of the memory: the heap is cut at its end only."""
    code = f"""{CHURN.partition("assert")[0]}
from service.process.memory import spare_what_stays
give_freed_memory_back()
freed, stays = [], []
for _ in range(2000):
    freed.append(bytearray(50_000))
    stays.append(bytearray(600))
freed.clear()
full = resident_mib()
spare_what_stays()
print(full - resident_mib() > 50)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_model_that_was_replaced_is_collected_once_its_requests_have_ended(
    make_client: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made before the collector was told to leave everything out."""
    calls: list[float] = []
    monkeypatch.setattr("service.process.memory.gc.get_freeze_count", lambda: 1)
    monkeypatch.setattr("service.process.memory.spare_what_stays", lambda: calls.append(time.monotonic()))
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    client = make_client(bundles=str(tmp_path / "tiny"), request_deadline_ms=500)
    began = time.monotonic()
    assert client.post("/models/tiny/reload").status_code == 200
    until(lambda: bool(calls))
    assert calls[0] - began > 1.4


def test_models_that_were_replaced_do_not_pile_up(
    make_client: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten reloads within a deadline held ten models, with their memory and their threads."""
    calls: list[int] = []
    monkeypatch.setattr("service.process.memory.gc.get_freeze_count", lambda: 1)
    monkeypatch.setattr("service.process.memory.spare_what_stays", lambda: calls.append(1))
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    client = make_client(bundles=str(tmp_path / "tiny"))
    for earlier in range(3):
        assert client.post("/models/tiny/reload").status_code == 200
        assert len(calls) == earlier


def test_a_model_that_is_replaced_meanwhile_puts_the_collector_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), list[float]()
    monkeypatch.setattr("service.process.memory.asyncio.get_running_loop", lambda: clock)
    monkeypatch.setattr("service.process.memory.gc.get_freeze_count", lambda: 1)
    monkeypatch.setattr("service.process.memory.spare_what_stays", lambda: calls.append(clock.now))
    replaced = Replaced(10)
    for _ in range(2):
        replaced.add()
        clock.wait(6)
    assert calls == []
    clock.wait(6)
    assert calls == [18]
    replaced.free_early()  # there is none left
    assert calls == [18]
