"""The page keeps what others wrote, and a goal that was not measured is not met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import goal, goal_table, table, with_section, write_result, write_section


def test_a_section_is_replaced_and_its_neighbours_stay(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    write_section("one", "first", page)
    write_section("two", "second", page)
    write_section("one", "changed", page)
    text = page.read_text()
    assert text.startswith("# Benchmarks\n")
    assert "<!-- begin: one -->\nchanged\n<!-- end: one -->" in text
    assert "<!-- begin: two -->\nsecond\n<!-- end: two -->" in text
    assert "first" not in text


def test_writing_the_same_section_twice_changes_nothing() -> None:
    once = with_section("# Page\n", "a", "text\n")
    assert with_section(once, "a", "text\n") == once


def test_a_section_without_its_end_is_refused() -> None:
    with pytest.raises(SystemExit, match="put it back"):
        with_section("<!-- begin: a -->\nlost", "a", "text")


def test_results_are_json_with_a_last_newline(tmp_path: Path) -> None:
    path = write_result("x", {"requests_per_s": 1.5}, tmp_path / "results")
    assert json.loads(path.read_text()) == {"requests_per_s": 1.5}
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("value", "limits", "met"),
    [
        (1.3, {"at_least": 1.3}, True),
        (1.29, {"at_least": 1.3}, False),
        (2.0, {"at_most": 2}, True),
        (2.01, {"at_most": 2}, False),
        (None, {"at_most": 2}, False),
        (0, {"at_most": 0}, True),
    ],
)
def test_goals_at_their_limit(value: float | None, limits: dict[str, float], met: bool) -> None:
    assert goal("figure", value, **limits)["met"] is met


def test_a_goal_that_was_not_measured_says_so() -> None:
    assert "| not measured | at least 3 | **no** |" in goal_table([goal("ratio", None, at_least=3)])


def test_table() -> None:
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"
