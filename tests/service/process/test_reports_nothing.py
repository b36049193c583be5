"""onnxruntime 1.32 reports to its maker, and writes what it will report below HOME, unless it is told not to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import Tiny
from tests.service.serving import serving

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user who has said nothing about it."""
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_service_writes_nothing_at_home(tiny: Tiny, home: Path, digit: bytes) -> None:
    with serving(tiny.grey) as (_, url):
        assert httpx.post(f"{url}/encode", content=digit, headers={"Content-Type": "image/png"}).status_code == 200
    assert list(home.iterdir()) == []


def test_nor_does_what_else_runs_graphs(tiny: Tiny, home: Path) -> None:
    run = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"
    for module in ("vqserve.offline", "export.sessions", "benchmarks.portability", "deploy.ray.shards"):
        command = [sys.executable, "-c", f"import {module}; {run}", str(tiny.grey / "decoder.onnx")]
        subprocess.run(command, cwd=ROOT, check=True)
        assert list(home.iterdir()) == [], module
