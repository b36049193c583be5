"""The format does not change: the same codes give the bytes in golden/containers.json, and those give the codes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.tiny_prior import tiny_model
from service.codec import Codes, decode, encode
from service.codec.container import Mode
from tests.service.codec.make_golden import CASES, GOLDEN

MODEL = tiny_model()
ENTRIES = json.loads(GOLDEN.read_text(encoding="ascii"))


def codes_of(entry: dict[str, Any]) -> Codes:
    flat = np.array([int(digit, 16) for digit in entry["codes"]])
    return flat.reshape(entry["pictures"], *MODEL.grid_of((entry["size"][0], entry["size"][1])))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['mode']}-{entry['pictures']}-{entry['size']}")
def test_bytes_are_those_of_the_first_release(entry: dict[str, Any]) -> None:
    data, codes = bytes.fromhex(entry["bytes"]), codes_of(entry)
    decoded = decode(MODEL, data)
    assert np.array_equal(decoded.codes, codes)
    assert decoded.mode.name == entry["mode"] and decoded.size == tuple(entry["size"])
    encoded = encode(
        MODEL,
        codes,
        size=(entry["size"][0], entry["size"][1]),
        labels=None if entry["labels"] is None else np.array(entry["labels"]),
        modes=[Mode[entry["mode"]]],
        indexed=entry["indexed"],
        named=entry["named"],
    )
    assert encoded == data


def test_every_mode_and_option_is_pinned() -> None:
    assert len(ENTRIES) == len(CASES)
    assert {entry["mode"] for entry in ENTRIES} == {mode.name for mode in Mode}
    assert {(entry["indexed"], entry["mode"]) for entry in ENTRIES} >= {(True, "RAW"), (True, "TABLE"), (True, "PRIOR")}
    assert {entry["pictures"] for entry in ENTRIES} >= {1, 64, 300}  # no count, a byte of count, two bytes
