"""Altered containers: the hardest of a million (benchmarks/fuzz_container.py), and new ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_container
from benchmarks.fuzz_container import LIMITS, MUTATIONS, attempt, base_containers, new_state, run_batch
from benchmarks.report import write_result
from benchmarks.tiny_prior import draw_codes, tiny_model
from service.codec import Limits, decode, decode_tile, encode
from service.codec.container import Mode
from service.codec.container_errors import ContainerError

NASTY = json.loads(fuzz_container.FIXTURES.read_text(encoding="ascii"))
MODEL = tiny_model()
BASES = base_containers(MODEL)


def test_the_hardest_streams_fail_as_they_did() -> None:
    assert len(NASTY) == 200
    for entry in NASTY:
        with pytest.raises(ContainerError) as raised:
            decode(MODEL, bytes.fromhex(entry["bytes"]), LIMITS)
        assert raised.value.type == entry["error"], entry["bytes"]


def test_no_example_fails_because_the_machine_is_busy() -> None:
    """One decode of 0.3 s among hundreds was a `FlakyFailure`."""
    assert settings().deadline is None


@given(st.integers(0, 1 << 32), st.sampled_from(BASES), st.sampled_from(MUTATIONS))
def test_an_altered_container_is_never_answered(seed: int, base: bytes, mutation: object) -> None:
    assert callable(mutation)
    data = mutation(random.Random(seed), bytearray(base), BASES)
    assert (attempt(MODEL, data).error is None) == (data in BASES)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for start in (b"", b"\xf6Q", b"\xf6Q\x13" + MODEL.prefix):
        with pytest.raises(ContainerError):
            decode(MODEL, start + data, LIMITS)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("mode", [Mode.RAW, Mode.TABLE, Mode.PRIOR])
def test_no_single_bit_matters_little(mode: Mode, indexed: bool) -> None:
    """All bits of one container, one after the other: a CRC-32 finds every such change, by its construction."""
    data = encode(MODEL, draw_codes(MODEL, (1, 5, 6), 3), size=(18, 22), modes=[mode], indexed=indexed)
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ContainerError):
            decode(MODEL, bytes(altered), Limits(max_codes=1 << 16))  # some say that there are many


@pytest.mark.parametrize("mode", [Mode.RAW, Mode.TABLE, Mode.PRIOR])
def test_a_tile_of_an_altered_container_is_right_or_refused(mode: Mode) -> None:
    codes = draw_codes(MODEL, (1, 5, 6), 3)
    data = encode(MODEL, codes, size=(18, 22), modes=[mode], indexed=True)
    refused = 0
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        for index in range(4):
            try:
                found = decode_tile(MODEL, bytes(altered), index)
            except ContainerError:
                refused += 1
                continue
            assert np.array_equal(found.codes[0], codes[found.tile.where])
    assert refused > 8 * len(data)


def test_a_batch_of_the_fuzzer_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_container, "BATCH", 2_000)
    states: list[dict[str, Any]] = [new_state(seed=3) for _ in range(2)]
    for state in states:
        run_batch(MODEL, BASES, seed=3, batch=5, state=state)
    assert states[0]["outcomes"] == states[1]["outcomes"] and sum(states[0]["outcomes"].values()) == 2_000
    assert states[0]["nasty"] == states[1]["nasty"] and states[0]["silent"] == []


def test_a_finished_measurement_is_not_that_of_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of an earlier version was written again as that of the present one."""
    results = tmp_path / "results"
    monkeypatch.setattr(fuzz_container, "write_result", lambda name, found, *_: write_result(name, found, results))
    monkeypatch.setattr(fuzz_container, "FIXTURES", tmp_path / "nasty.json")
    monkeypatch.setattr(fuzz_container, "BATCH", 50)
    arguments = ["--streams", "100", "--state", str(tmp_path / "state.json")]
    assert fuzz_container.main(arguments) == 0
    result = json.loads((results / "fuzz_container.json").read_text())
    assert result["altered_streams"] > 90 and "command" in result and "machine" in result
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, "silent": ["00"]}))
    assert fuzz_container.main(arguments) == 1
    (tmp_path / "state.json").write_text(json.dumps({**state, "code": "another"}))
    with pytest.raises(SystemExit, match="other code"):
        fuzz_container.main(arguments)
