"""What the closed loop counts, and that a service of a tiny bundle is measured on the CPU."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.device_service import LOADS, Load, closed_loop, main
from tests.tiny_bundle import tiny_prior, write_tiny_bundle

pytestmark = pytest.mark.asyncio


async def test_callers_wait_for_their_answers_and_the_first_of_each_is_not_counted() -> None:
    sent: list[int] = []
    inside = most = 0

    async def call(number: int) -> None:
        nonlocal inside, most
        sent.append(number)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1

    row = await closed_loop(Load("generate", pictures=5, connections=3), call, seconds=0.2)
    assert most == 3
    assert len(set(sent)) == len(sent)  # no two requests draw from one seed
    at_least_s = 0.2  # longer where the machine is busy
    assert 0 < row["requests_per_s"] <= (len(sent) - 3) / at_least_s
    assert row["pictures_per_s"] == pytest.approx(5 * row["requests_per_s"], abs=1)
    assert 10 <= row["p50_ms"] <= row["p99_ms"]


async def test_a_failed_request_ends_the_measurement() -> None:
    async def call(number: int) -> None:
        if number >= 2:
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await closed_loop(Load("encode", 1, 1), call, seconds=5)


async def test_a_bundle_is_measured_over_http(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "digits", "digits", prior=tiny_prior())
    code = await asyncio.to_thread(main, [str(tmp_path / "digits"), "--devices", "cpu", "--seconds", "0.05"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert result["devices"]["cpu"]["provider"] == "CPUExecutionProvider"
    rows = result["devices"]["cpu"]["loads"]
    assert [(row["work"], row["pictures_a_request"], row["connections"]) for row in rows] == [
        (load.work, load.pictures, load.connections) for load in LOADS
    ]
    assert all(row["requests_per_s"] > 0 for row in rows)
