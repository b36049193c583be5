"""The simulated order of rows, where every time can be told by hand."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks.generation_load_report import Mix
from benchmarks.generation_simulation import compare, continuous, outcome, page, static

ROWS, SLOTS = 7, 8


def a_second(samples: int) -> float:
    return 1.0


def test_static_batching_draws_what_waits_to_its_end() -> None:
    assert static([(0.0, 1), (0.5, 1), (0.6, 8)], a_second, ROWS, SLOTS) == [(7.0, 1), (13.5, 1), (20.4, 8)]


def test_continuous_batching_begins_at_the_next_row() -> None:
    assert continuous([(0.0, 1), (0.5, 1)], a_second, ROWS, SLOTS, SLOTS, None) == [(7.0, 1), (7.5, 1)]


@pytest.mark.parametrize(("full_beyond", "slots_beside"), [(None, 3), (4, 7)])
def test_beside_others_a_large_request_fills_its_share(full_beyond: int | None, slots_beside: int) -> None:
    """Of 9 samples 8 begin; the request that comes then leaves it 3 of 4 slots, or 7 where more than 4 are inside."""
    found = continuous([(0.0, 9), (0.5, 1)], a_second, ROWS, SLOTS, 4, full_beyond)
    assert found == [(7.5, 1), (pytest.approx(large_request_s(slots_beside)), 9)]


def large_request_s(slots_beside: int) -> float:
    """Rows until 9 samples have 7 each: all 8 slots before the other comes, some beside it, all but one after it."""
    left = [ROWS] * 9
    rows = 0
    while any(left):
        slots = slots_beside if 1 <= rows <= ROWS else SLOTS
        for index in [i for i, rest in enumerate(left) if rest][:slots]:
            left[index] -= 1
        rows += 1
    return float(rows)


def test_percentiles_are_those_of_the_requests() -> None:
    found = outcome([(0.001, 1)] * 99 + [(1.0, 32)], share=0.5)
    assert (found.p50_ms, found.single_p99_ms, found.large_p99_ms) == (1.0, 1.0, 1000.0)


def test_the_page_has_every_order_beside_static_batching() -> None:
    mix = Mix(8, 0.1)
    outcomes = compare(mix, lambda samples: 1e-3 * (1 + samples), ROWS, SLOTS, seconds=2.0)
    head = {"command": "python -m x", "row_ms": {1: 2.0}, "slots": SLOTS}
    facts = {"cpu": "a", "cpus": 2, "python": "3", "onnxruntime": "1", "load_average_1min": 0}
    text = page({**head, "machine": facts, "mixes": [{"mix": asdict(mix), "outcomes": [asdict(o) for o in outcomes]}]})
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0].lstrip("| ") for row in rows[:3]] == ["static batching", "1 of all, earlier", "0.75 of all, earlier"]
    assert len(rows) == 11
    assert float(rows[1][-1].rstrip(" |")) == pytest.approx(outcomes[1].p99_ms / outcomes[0].p99_ms, abs=0.01)
