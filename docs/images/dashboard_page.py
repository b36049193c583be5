"""A Grafana dashboard as a page, without Grafana. In: the dashboard's JSON and what Prometheus answered to each of its
queries. Out: HTML with the panels where `gridPos` puts them, with their titles, units and legends.

It draws what vqserve.json uses, `timeseries`, `stat` and `table` without options, and refuses anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

WIDTH, COLUMNS, ROW, GAP, TOP = 1400, 24, 30, 8, 48  # pixels but COLUMNS; ROW and GAP are Grafana's
HEADER, LEGEND_ROW, PADDING, AXIS, FOOT, LETTER = 34, 20, 8, 62, 22, 6.3  # pixels; LETTER is the mean of the font
GRID = "#26292f"
# Grafana's "classic palette"
COLOURS = (
    "#7EB26D",
    "#EAB839",
    "#6ED0E0",
    "#EF843C",
    "#E24D42",
    "#1F78C1",
    "#BA43A9",
    "#705DA0",
    "#508642",
    "#CCA300",
    "#447EBC",
    "#C15C17",
)
_SCALES = {  # unit -> (from which value, what one is called)
    "short": ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1.0, "")),
    "reqps": ((1e3, "K req/s"), (1.0, " req/s")),
    "Bps": ((1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")),
    "s": ((1.0, " s"), (1e-3, " ms"), (1e-6, " µs")),
}
_STYLE = f"""
body {{ margin: 0; width: {WIDTH}px; background: #111217; color: #ccccdc; position: relative;
  font: 12px Inter, sans-serif }}
header {{ position: absolute; left: 16px; right: 16px; top: 14px; font-size: 15px; display: flex; gap: 16px }}
header span, footer, th, svg text {{ color: #9898a5; fill: #9898a5; font-size: 12px }}
.line {{ fill: none; stroke-width: 1.5px; stroke-linecap: round; stroke-linejoin: round }}
header .range {{ margin-left: auto }}
section {{ position: absolute; background: #181b1f; border: 1px solid #2a2d33; border-radius: 2px; overflow: hidden }}
h2 {{ font-size: 14px; font-weight: 500; margin: 8px; line-height: 18px; white-space: nowrap }}
.legend {{ margin: 0 {PADDING}px; display: flex; flex-wrap: wrap }}
.legend span {{ line-height: {LEGEND_ROW}px; margin-right: 12px; white-space: nowrap }}
.legend i {{ display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin: 0 6px 2px 0 }}
table {{ border-collapse: collapse; width: calc(100% - 16px); margin: 0 8px; table-layout: fixed }}
td, th {{ text-align: left; padding: 8px; border-bottom: 1px solid #2a2d33; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; font-weight: 500 }}
td {{ font-weight: 400 }}
.stat {{ display: grid; grid-template-columns: 1fr 1fr; gap: 2px 6px; margin: 0 8px }}
.stat b {{ display: block; color: #73bf69; font-size: 20px; line-height: 22px }}
footer {{ position: absolute; left: 16px; right: 16px; bottom: 10px }}
"""


class EmptyPanel(ValueError):
    """The message names the panel and the query that has no value."""


@dataclass(frozen=True)
class Series:
    """What one series of an answer holds. `points` are (unix seconds, value), one of them for an instant query."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Span:
    """Unix seconds, and those between two points."""

    start: float
    end: float
    step: float


@dataclass(frozen=True)
class Axis:
    ticks: Sequence[float]
    log: bool

    def part(self, value: float) -> float:
        """Of the height, from 0 at the first tick to 1 at the last."""
        low, high, at = (math.log10(one) if self.log else one for one in (self.ticks[0], self.ticks[-1], value))
        return (at - low) / (high - low)


Json = Mapping[str, Any]
Answer = Callable[[Json], list[Series]]  # of a panel's target
Line = list[list[tuple[float, float]]]  # runs of points without a gap


def expression(target: Json, window: str) -> str:
    """The target's PromQL with Grafana's intervals replaced. A variable that is not known is refused."""
    text = re.sub(r"\$(__rate_interval|__interval)\b", window, target["expr"])
    if "$" in text:
        raise ValueError(f"{text}: holds a variable that is not replaced here; add it to docs/images/dashboard_page.py")
    return text


def legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda name: labels.get(name[1], ""), template)


def quantity(value: float, unit: str, decimals: int | None = None) -> str:
    """Three digits and a unit, as an axis of Grafana has them."""
    scales = _SCALES[unit]
    size, name = next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])
    if value == 0:
        name = next(name for scale, name in scales if scale == 1.0)
    return (f"{value / size:.3g}" if decimals is None else f"{value / size:.{decimals}f}") + name


def page(board: Json, answer: Answer, span: Span, caption: str) -> str:
    """The whole dashboard.

    Raises:
        EmptyPanel: a query has no value at all.
    """
    panels = [_panel(panel, answer, span) for panel in board["panels"]]
    bottom = max(at["y"] + at["h"] for at in (panel["gridPos"] for panel in board["panels"])) * (ROW + GAP)
    times = " to ".join(f"{_clock(at):%H:%M:%S}" for at in (span.start, span.end))
    return (
        f'<!doctype html><meta charset="utf-8"><title>{escape(board["title"])}</title><style>{_STYLE}</style>'
        f'<body style="height:{TOP + bottom + 24}px"><header>{escape(board["title"])}'
        f'<span class="range">{times} UTC</span></header>{"".join(panels)}<footer>{escape(caption)}</footer>'
    )


def _panel(panel: Json, answer: Answer, span: Span) -> str:
    at, inside = panel["gridPos"], WIDTH - 2 * GAP
    left, width = (round(cells * (inside + GAP) / COLUMNS) for cells in (at["x"], at["w"]))
    height = at["h"] * (ROW + GAP) - GAP
    draw = _PANELS[panel["type"]]
    body = draw(panel, _answers(panel, answer), width - GAP - 2, height - HEADER, span)
    style = f"left:{GAP + left}px;top:{TOP + at['y'] * (ROW + GAP)}px;width:{width - GAP - 2}px;height:{height - 2}px"
    return f'<section style="{style}"><h2>{escape(panel["title"])}</h2>{body}</section>'


def _answers(panel: Json, answer: Answer) -> list[tuple[str, Series]]:
    """The series of all targets with their names, those without any value left out, as Grafana does."""
    found = []
    for target in panel["targets"]:
        series = [one for one in answer(target) if any(math.isfinite(value) for _, value in one.points)]
        if not series:
            raise EmptyPanel(f"panel {panel['title']!r}: {target['expr']} has no value")
        found += [(legend(target["legendFormat"], one.labels), one) for one in series]
    return found


def _timeseries(panel: Json, named: Sequence[tuple[str, Series]], width: int, height: int, span: Span) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    rows = _legend_rows([name for name, _ in named], width - 2 * PADDING)
    runs = [_runs(one, span.step) for _, one in named]
    values = [value for line in runs for run in line for _, value in run]
    axis = _log_axis(values) if _is_log(defaults) else _linear_axis(values)
    plot = _plot(runs, axis, defaults["unit"], width, height - rows * LEGEND_ROW - PADDING, span)
    names = (
        f'<span><i style="background:{_colour(place)}"></i>{escape(name)}</span>'
        for place, (name, _) in enumerate(named)
    )
    return f'{plot}<div class="legend">{"".join(names)}</div>'


def _is_log(defaults: Json) -> bool:
    return bool(defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log")


def _legend_rows(names: Sequence[str], width: int) -> int:
    """How many rows the browser will need: nearly, since only it knows the letters' widths."""
    rows, left = 1, float(width)
    for need in (len(name) * LETTER + 32 for name in names):
        if need > left:
            rows, left = rows + 1, float(width)
        left -= need
    return rows


def _plot(lines: Sequence[Line], axis: Axis, unit: str, width: int, height: int, span: Span) -> str:
    """The grid with its numbers, time below, and the lines."""

    def place(at: float, part: float) -> str:
        across = AXIS + (at - span.start) / (span.end - span.start) * (width - AXIS - 2 * PADDING)
        return f"{across:.1f} {PADDING + (1 - part) * (height - FOOT - PADDING):.1f}"

    parts = [f'<svg width="{width}" height="{height}">']
    for tick in axis.ticks:
        y = place(span.start, axis.part(tick)).split()[1]
        parts.append(f'<path d="M{AXIS} {y}H{width - 2 * PADDING}" stroke="{GRID}"/>')
        parts.append(f'<text x="{AXIS - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{quantity(tick, unit)}</text>')
    every = 30 if width > 400 else 60  # seconds
    for at in range(math.ceil(span.start / every) * every, math.floor(span.end) + 1, every):
        x, foot = place(at, 0).split()
        parts.append(f'<path d="M{x} {foot}V{PADDING}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x}" y="{height - 5}" text-anchor="middle">{_clock(at):%H:%M:%S}</text>')
    for number, line in enumerate(lines):
        for run in line:
            path = "L".join(place(at, axis.part(value)) for at, value in run)
            drawn = "h0" if len(run) == 1 else ""  # a dot
            parts.append(f'<path class="line" d="M{path}{drawn}" stroke="{_colour(number)}"/>')
    return "".join([*parts, "</svg>"])


def _linear_axis(values: Sequence[float]) -> Axis:
    """From 0, as `min` says: ticks 1, 2 or 5 times a power of ten apart and at most five of them above 0."""
    highest = max(values)
    if highest <= 0:
        return Axis((0.0, 1.0), log=False)
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(base * power for base in (1, 2, 5, 10) if base * power * 5 >= highest * (1 - 1e-9))
    return Axis([step * number for number in range(math.ceil(highest / step * (1 - 1e-9)) + 1)], log=False)


def _log_axis(values: Sequence[float]) -> Axis:
    """Whole powers of ten around the values, all of which are positive."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return Axis([10.0**power for power in range(low, max(high, low + 1) + 1)], log=True)


def _runs(line: Series, step: float) -> Line:
    """The points without gaps between them: neither NaN (0/0 while nothing happens) nor a missing step."""
    runs: Line = []
    for at, value in line.points:
        if math.isfinite(value):
            if not runs or at - runs[-1][-1][0] > 1.5 * step:
                runs.append([])
            runs[-1].append((at, value))
    return runs


def _stat(panel: Json, named: Sequence[tuple[str, Series]], width: int, height: int, span: Span) -> str:
    """The last value of each series."""
    defaults = panel["fieldConfig"]["defaults"]
    shown = ((name, quantity(one.points[-1][1], defaults["unit"], defaults.get("decimals"))) for name, one in named)
    return f'<div class="stat">{"".join(f"<span>{escape(name)}<b>{value}</b></span>" for name, value in shown)}</div>'


def _table(panel: Json, named: Sequence[tuple[str, Series]], width: int, height: int, span: Span) -> str:
    """A row a series: its labels and its value, renamed, ordered and left out as the panel's `organize` says."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    rows = [{"Time": "", **one.labels, "Value": quantity(one.points[-1][1], unit)} for _, one in named]
    organize = panel["transformations"][0]["options"]
    columns = [name for name in rows[0] if not organize["excludeByName"].get(name)]
    columns.sort(key=lambda name: organize["indexByName"].get(name, len(rows[0])))
    head = "".join(f"<th>{escape(organize['renameByName'].get(name, name))}</th>" for name in columns)
    cells = ("".join(f"<td>{escape(row[name])}</td>" for name in columns) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _clock(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


_PANELS = {"timeseries": _timeseries, "stat": _stat, "table": _table}
