"""The figure of the small end: the fewest bytes among the settings that keep the error."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.mnist_small_end import NAME, page, smallest_within
from benchmarks.report import RESULTS


def row(size: float, mse: float) -> dict[str, Any]:
    return {"bytes_per_picture": size, "mse": mse}


def test_the_fewest_bytes_are_of_a_setting_that_keeps_the_error() -> None:
    found = smallest_within([row(9.0, 0.0037), row(8.4, 0.0042), row(7.0, 0.0043)])
    assert (found["value"], found["met"]) == (8.4, True)


def test_no_setting_that_keeps_the_error_does_not_meet_the_goal() -> None:
    assert smallest_within([row(7.0, 0.005)])["met"] is False
    assert smallest_within([row(8.6, 0.004)])["met"] is False


def test_the_page_says_what_the_committed_result_says() -> None:
    result = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    assert result["goals"] == [smallest_within(result["rows"])]
    assert all(row["pictures"] == 10_000 for row in result["rows"])
    assert f"at most 0.0042: {result['goals'][0]['value']:.2f} (goal: at most 8.5)" in page(result)
