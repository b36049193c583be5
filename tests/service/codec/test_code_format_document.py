"""docs/code-format.md: its worked example is what the code does, and its decoder reads the golden files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.tiny_prior import FREQUENCY_TABLE, tiny_model
from service.codec import encode
from service.codec.codec_model import CodecModel
from service.codec.container import Mode
from service.codec.container_errors import ContainerError
from tests.service.codec.make_golden import GOLDEN

DOCUMENT = Path(__file__).parents[3] / "docs" / "code-format.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
EXAMPLE = CodecModel("example", "0123456789abcdef" * 4, 1, 4, (1, 3), 4, False, (5, 2, 1, 0), None)
STATIC = [entry for entry in json.loads(GOLDEN.read_text(encoding="ascii")) if not entry["indexed"]]


def documented_decoder() -> Any:
    block = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert block
    names: dict[str, Any] = {}
    exec(compile(block[1], str(DOCUMENT), "exec"), names)  # noqa: S102 - our own document
    return names["decode"]


def test_the_worked_containers_are_what_the_encoder_writes() -> None:
    codes = np.array([[[0, 0, 2]]])
    assert EXAMPLE.fingerprint.hex() in TEXT
    for mode in (Mode.TABLE, Mode.RAW):
        written = encode(EXAMPLE, codes, modes=[mode]).hex(" ")
        assert written in TEXT
        assert documented_decoder()(bytes.fromhex(written), EXAMPLE.version, 4, (1, 3), 4, (5, 2, 1, 0), ()) == [
            0,
            0,
            2,
        ]


def test_the_worked_table_follows_the_rule() -> None:
    rows = [
        [int(cell) for cell in row.split("|")[1:7]] for row in TEXT.splitlines() if re.match(r"\| [0-3] \| \d+ \|", row)
    ]
    rows = rows[-3:]
    low, range_ = 0, 1 << 56
    for symbol, cumulative, frequency, *state in rows:
        assert (cumulative, frequency) == {0: (0, 655361), 2: (917506, 131073)}[symbol]
        step = range_ // 1048580
        low, range_ = low + step * cumulative, step * frequency
        assert state[0] == step and TEXT.count(f"| {step} | {low} | {range_} |") == 1
    assert f"[{low}, {low + range_})" in TEXT
    assert low <= 0x58 << 48 < low + range_


@pytest.mark.parametrize("entry", [entry for entry in STATIC if entry["mode"] in ("RAW", "TABLE")])
def test_the_documented_decoder_reads_the_golden_files(entry: dict[str, Any]) -> None:
    model = tiny_model()
    codes = documented_decoder()(
        bytes.fromhex(entry["bytes"]), model.version, 12, (3, 4), 4, model.code_histogram, FREQUENCY_TABLE
    )
    assert codes == [int(digit, 16) for digit in entry["codes"]]


def test_the_fuzzers_figures_are_those_of_its_record() -> None:
    record = json.loads((DOCUMENT.parent / "results" / "fuzz_container.json").read_text())
    told = re.search(
        r"altered ([\d,]+) containers in every way it knows: none became other codes, and the slowest took\s"
        r"([\d.]+) ms",
        TEXT,
    )
    assert told
    assert told[1] == f"{record['altered_streams']:,}"
    assert float(told[2]) == round(record["slowest_decode_ms"], 1)
    assert record["silent_corruptions"] == 0


def test_every_error_is_a_problem_with_its_own_type() -> None:
    def below(error: type[ContainerError]) -> list[type[ContainerError]]:
        return [error, *(found for child in error.__subclasses__() for found in below(child))]

    types = [error.type for error in below(ContainerError)]
    assert len(types) == len(set(types)) == 9
