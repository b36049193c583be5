"""The benchmark of a large picture on a small one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from benchmarks.large_picture import meanwhile, page, run
from tests.conftest import PICTURES
from tests.tiny_bundle import tiny_prior, write_tiny_bundle


def test_what_fails_meanwhile_ends_the_measurement() -> None:
    """A small request that was refused ended its thread in silence, and the largest time left it out."""

    def fails(done: threading.Event) -> None:
        raise RuntimeError("503")

    with pytest.raises(RuntimeError, match="503"), meanwhile(fails):
        pass


def test_a_picture_goes_both_ways_and_the_page_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.large_picture.SMALL_ALONE_S", 0.5)
    write_tiny_bundle(tmp_path / "b", "b", any_size=True, prior=tiny_prior(label_count=0))
    found = run(PICTURES / "ladybird_crop.jpg", (132, 90), tmp_path / "b")
    assert found["size"] == [132, 90] and found["container_bytes"] > 10
    assert min(found[name]["peak_mb"] for name in ("encode", "decode")) >= found["idle_mb"] > 10
    small = found["small_pictures"]
    assert small["alone"]["requests"] > 2 and small["/decode"]["requests"] > 0
    assert all(0 < one["p50_ms"] <= one["largest_ms"] for one in small.values())
    facts = {"cpu": "x", "cpus": 2, "python": "3", "onnxruntime": "1", "load_average_1min": 0.0}
    text = page({**found, "command": "c", "machine": facts})
    assert "by `models/b`" in text
    assert f"| /encode | {found['encode']['seconds']} | {found['encode']['peak_mb']} |" in text
    beside = small["/encode"]
    assert f"| /encode | {beside['requests']} | {beside['p50_ms']} | {beside['largest_ms']} |" in text
    assert f"| nothing | {small['alone']['requests']} |" in text
