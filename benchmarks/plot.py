"""Curves as an SVG file, without a plotting library. In: named lines of (x, y). Out: the text of the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 480, 64, 52, 40, 190
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8e5ea2", "#c77f1a", "#4d4d4d", "#17a2a2", "#a0522d")

Line = Sequence[tuple[float, float]]


Range = tuple[float, float, float]  # the lowest and the highest value of an axis, and the distance of its ticks


@dataclass(frozen=True)
class Axes:
    """Both axes are linear; with `y_log` y is the power of ten."""

    x: Range
    y: Range
    y_log: bool

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where in the picture: pixels from the left and from the top."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        up = (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)


def svg(title: str, x_label: str, y_label: str, lines: Mapping[str, Line], *, y_log: bool = False) -> str:
    """Linear axes over the range of the points (`y_log`: decades of y), a marker a point, a legend at the right."""
    if y_log:
        lines = {name: [(x, math.log10(y)) for x, y in line] for name, line in lines.items()}
    points = [point for line in lines.values() for point in line]
    low, high, step = _range([y for _, y in points])
    y_range = (math.floor(low), math.ceil(high), 1) if y_log else (low, high, step)
    axes = Axes(_range([x for x, _ in points]), y_range, y_log)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 12}">{escape(x_label)}</text>',
        f'<text x="16" y="{HEIGHT - BOTTOM}" transform="rotate(-90 16 {HEIGHT - BOTTOM})">{escape(y_label)}</text>',
    ]
    parts += _grid(axes)
    for number, (name, line) in enumerate(lines.items()):
        parts += _curve(axes, number, name, line)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(axes: Axes) -> Iterator[str]:
    for x in _ticks(*axes.x):
        across, foot = axes.place(x, axes.y[0])
        yield f'<path d="M{across} {foot}V{TOP}" stroke="#e4e4e4"/>'
        yield f'<text x="{across}" y="{foot + 16}" text-anchor="middle">{x:g}</text>'
    for y in _ticks(*axes.y):
        start, up = axes.place(axes.x[0], y)
        yield f'<path d="M{start} {up}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>'
        yield f'<text x="{start - 6}" y="{up + 4}" text-anchor="end">{10**y if axes.y_log else y:g}</text>'


def _curve(axes: Axes, number: int, name: str, line: Line) -> Iterator[str]:
    """The line, its markers and its entry in the legend."""
    colour = COLOURS[number % len(COLOURS)]
    placed = [axes.place(x, y) for x, y in sorted(line)]
    path = "L".join(f"{x} {y}" for x, y in placed)
    yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in placed:
        yield f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>'
    height = TOP + 18 * number + 8
    yield f'<circle cx="{WIDTH - RIGHT + 18}" cy="{height}" r="4" fill="{colour}"/>'
    yield f'<text x="{WIDTH - RIGHT + 28}" y="{height + 4}">{escape(name)}</text>'


def _range(values: Sequence[float]) -> Range:
    """Round limits around the values, and the distance of ticks: 1, 2 or 5 times a power of ten, 4 to 10 of them."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    steps = [base * 10.0**power for power in range(-6, 7) for base in (1, 2, 5)]
    step = next(step for step in steps if span / step <= 8)
    return step * (low // step), step * -(-high // step) + (step if high == low else 0), step


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [round(low + step * index, 9) for index in range(round((high - low) / step) + 1)]
