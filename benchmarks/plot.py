"""Curves as an SVG file, without a plotting library. In: named lines of (x, y). Out: the text of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 480, 64, 52, 40, 190
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8e5ea2", "#c77f1a", "#4d4d4d", "#17a2a2", "#a0522d")

Line = Sequence[tuple[float, float]]


def svg(title: str, x_label: str, y_label: str, lines: Mapping[str, Line], *, y_log: bool = False) -> str:
    """Linear axes over the range of the points (`y_log`: decades of y), a marker a point, a legend at the right."""
    points = [point for line in lines.values() for point in line]
    x_low, x_high, x_step = _range([x for x, _ in points])
    if y_log:
        lines = {name: [(x, math.log10(y)) for x, y in line] for name, line in lines.items()}
        points = [point for line in lines.values() for point in line]
    y_low, y_high, y_step = _range([y for _, y in points])
    if y_log:
        y_low, y_high, y_step = math.floor(y_low), math.ceil(y_high), 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 12}">{escape(x_label)}</text>',
        f'<text x="16" y="{HEIGHT - BOTTOM}" transform="rotate(-90 16 {HEIGHT - BOTTOM})">{escape(y_label)}</text>',
    ]
    for x in _ticks(x_low, x_high, x_step):
        across, foot = place(x, y_low)
        parts.append(f'<path d="M{across} {foot}V{TOP}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{across}" y="{foot + 16}" text-anchor="middle">{x:g}</text>')
    for y in _ticks(y_low, y_high, y_step):
        start, up = place(x_low, y)
        parts.append(f'<path d="M{start} {up}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{start - 6}" y="{up + 4}" text-anchor="end">{10**y if y_log else y:g}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(x, y) for x, y in sorted(line)]
        path = "L".join(f"{x} {y}" for x, y in placed)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in placed]
        height = TOP + 18 * number + 8
        parts.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{height}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 28}" y="{height + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    """Round limits around the values, and the distance of ticks: 1, 2 or 5 times a power of ten, 4 to 10 of them."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    steps = [base * 10.0**power for power in range(-6, 7) for base in (1, 2, 5)]
    step = next(step for step in steps if span / step <= 8)
    return step * (low // step), step * -(-high // step) + (step if high == low else 0), step


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [round(low + step * index, 9) for index in range(round((high - low) / step) + 1)]
