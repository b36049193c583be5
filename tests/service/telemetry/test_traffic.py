"""The traffic's counts in the files that worker processes share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.telemetry.metric_files import forget_worker
from service.telemetry.traffic import CodeTraffic, divergence_bits, perplexity

DIGIT = (Path(__file__).parents[2] / "fixtures" / "pictures" / "digit_7.png").read_bytes()


def test_counts_survive_a_reload_of_the_same_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was made anew, so the old model wrote to memory that was gone: SIGBUS, or a page of short counts."""
    old = CodeTraffic("m", "v", 4, tmp_path)
    old.add(np.array([0, 1]))
    reloaded = CodeTraffic("m", "v", 4, tmp_path)
    old.add(np.array([3]))  # an answer that was on its way
    reloaded.add(np.array([3]))
    assert old.counts().tolist() == reloaded.counts().tolist() == [1, 1, 0, 2]
    monkeypatch.setattr("service.telemetry.traffic.WINDOW_CODES", 3)
    CodeTraffic("m", "v", 4, tmp_path).add(np.array([2, 2]))  # with the four of before more than a window
    assert old.counts().tolist() == [0, 0, 1, 1]


def test_a_reload_of_the_same_version_goes_on_counting(make_client: Callable[..., TestClient]) -> None:
    """In a service of one process the perplexity fell to 0, and an alert about drift ended."""
    client = make_client()
    perplexity = re.compile(r'^vqserve_traffic_codebook_perplexity\{model="tiny"\} (\S+)$', re.M)
    client.post("/encode", content=DIGIT, headers={"content-type": "image/png"})
    before = perplexity.findall(client.get("/metrics").text)
    assert client.post("/models/tiny/reload").status_code == 200
    assert perplexity.findall(client.get("/metrics").text) == before != ["0.0"]


def test_a_file_that_another_worker_is_making_counts_nothing_yet(tmp_path: Path) -> None:
    ours = CodeTraffic("m", "v", 4, tmp_path)
    ours.add(np.array([0]))
    (tmp_path / "codes_m_v_1.bin").write_bytes(bytes(8))
    assert ours.counts().tolist() == [1, 0, 0, 0]


def test_a_worker_that_has_ended_counts_no_longer(tmp_path: Path) -> None:
    """Its counts were never halved again, and hid the drift of all later traffic."""
    ours = CodeTraffic("m", "v", 4, tmp_path)
    ours.add(np.array([0]))
    np.array([0, 9, 9, 9], np.int64).tofile(tmp_path / "codes_m_v_1.bin")
    assert ours.counts().tolist() == [1, 9, 9, 9]
    forget_worker(tmp_path, 1)
    assert ours.counts().tolist() == [1, 0, 0, 0]


def test_counts_are_halved_once_a_window_and_not_with_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.telemetry.traffic.WINDOW_CODES", 7)
    traffic = CodeTraffic("m", "v", 4)
    traffic.add(np.array([0] * 4 + [1] * 4))
    halved = traffic.counts()
    assert halved.tolist() == [2, 2, 0, 0]
    traffic.add(np.array([3, 3]))
    assert traffic.counts().tolist() == [2, 2, 0, 2]
    assert halved.tolist() == [2, 2, 0, 0], "what was read does not change"


def test_nothing_counted_is_no_drift() -> None:
    nothing, some = np.zeros(3, np.int64), np.array([1, 2, 0])
    assert perplexity(nothing) == 0
    assert divergence_bits(nothing, (1, 2, 3)) == divergence_bits(some, (0, 0, 0)) == 0
