"""The picture of the dashboard: all of vqserve.json is in it, and nothing is drawn that nobody answered."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

import pytest
from PIL import Image

from docs.images.dashboard import BOARD, PICTURE, WINDOW, series
from docs.images.dashboard_page import WIDTH, EmptyPanel, Series, Span, expression, legend, page, quantity
from docs.images.draw import ROOT

SPAN = Span(1000.0, 1100.0, 1.0)
NAN = math.nan
LABELS = dict.fromkeys(
    ("route", "status", "reason", "stage", "model", "outcome", "family", "provider", "version"), "one<"
)


def board() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(BOARD.read_text(encoding="utf-8"))
    return read


def always(target: Mapping[str, Any]) -> list[Series]:
    """Two series a query; of one the middle is missing."""
    if target.get("instant"):
        return [Series(LABELS, [(SPAN.end, 3.0)])]
    points = [(SPAN.start + at, float(1 + at)) for at in range(100)]
    return [
        Series(LABELS, points),
        Series(LABELS, [*points[:20], *((at, NAN) for at, _ in points[20:40]), *points[40:]]),
    ]


def test_every_panel_is_drawn_with_its_title_and_legends() -> None:
    html = page(board(), always, SPAN, "the caption")
    panels = board()["panels"]
    assert re.findall(r"<h2>(.*?)</h2>", html) == [escape(panel["title"]) for panel in panels]
    for target in (target for panel in panels if panel["type"] != "table" for target in panel["targets"]):
        assert escape(legend(target["legendFormat"], LABELS)) in html
    assert "the caption" in html
    assert "one<" not in html


def test_a_gap_of_the_data_is_a_gap_of_the_line() -> None:
    """Two series, of which the second is in two parts, for each query of one panel."""
    first = {**board(), "panels": board()["panels"][:1]}
    assert page(first, always, SPAN, "").count('class="line"') == 3


def test_panels_lie_where_the_grid_says() -> None:
    places = re.findall(r"left:(\d+)px;top:(\d+)px;width:(\d+)px;height:(\d+)px", page(board(), always, SPAN, ""))
    boxes = [tuple(map(int, place)) for place in places]
    assert len(boxes) == len(board()["panels"])
    assert max(left + width for left, _, width, _ in boxes) <= WIDTH
    for box, panel in zip(boxes, board()["panels"], strict=True):
        same_row = [other for other in board()["panels"] if other["gridPos"]["y"] == panel["gridPos"]["y"]]
        assert {boxes[board()["panels"].index(other)][1] for other in same_row} == {box[1]}


@pytest.mark.parametrize(
    "target", [target for panel in board()["panels"] for target in panel["targets"]], ids=lambda one: one["expr"]
)
def test_no_variable_is_left_in_a_query(target: dict[str, Any]) -> None:
    asked = expression(target, WINDOW)
    assert "$" not in asked
    assert asked.count(f"[{WINDOW}]") == target["expr"].count("[$__rate_interval]")


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\$instance"):
        expression({"expr": 'up{instance="$instance"}'}, WINDOW)


@pytest.mark.parametrize("nothing", [[], [Series({}, [(SPAN.end, NAN)])]], ids=["no series", "no number"])
def test_a_query_without_a_value_names_its_panel(nothing: list[Series]) -> None:
    silent = "vqserve_traffic_divergence"
    with pytest.raises(EmptyPanel, match=rf"Traffic against the training set.*{silent}"):
        page(board(), lambda target: nothing if silent in target["expr"] else always(target), SPAN, "")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "s", "0 s"),
        (0.0123, "s", "12.3 ms"),
        (2e-5, "s", "20 µs"),
        (2, "s", "2 s"),
        (0, "reqps", "0 req/s"),
        (1500, "Bps", "1.5 kB/s"),
        (3200, "short", "3.2 K"),
        (0.25, "short", "0.25"),
    ],
)
def test_quantities_have_the_units_of_grafana(value: float, unit: str, shown: str) -> None:
    assert quantity(value, unit) == shown


def test_answers_of_prometheus_are_read() -> None:
    vector = {"resultType": "vector", "result": [{"metric": {"a": "b"}, "value": [5.5, "3"]}]}
    matrix = {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, "NaN"], [2, "4"]]}]}
    assert series({"status": "success", "data": vector}) == [Series({"a": "b"}, [(5.5, 3.0)])]
    (line,) = series({"status": "success", "data": matrix})
    assert math.isnan(line.points[0][1]) and line.points[1] == (2.0, 4.0)
    with pytest.raises(ValueError, match="parse error"):
        series({"status": "error", "error": "parse error"})


def test_the_readme_shows_the_picture() -> None:
    name = PICTURE.relative_to(ROOT).as_posix()
    assert f"({name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    with Image.open(PICTURE) as picture:
        assert picture.width == WIDTH
        assert picture.height > WIDTH
    assert PICTURE.stat().st_size < 300_000
