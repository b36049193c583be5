"""What `benchmarks.generation_load` has found, as a table, a plot and a section of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.plot import svg
from benchmarks.report import goal, goal_table, machine_line

DEADLINE_FACTOR = 5  # goodput counts what is done within this many times its latency on an idle machine
GOAL_LOAD, GOAL = 0.6, 0.5  # p99 of continuous / static batching


@dataclass(frozen=True)
class Mix:
    """Most requests ask for one sample, a `share` of them for `large`."""

    large: int
    share: float

    @property
    def title(self) -> str:
        return f"{self.share:.1%} ask for {self.large}" if self.share else "all ask for one"

    @property
    def sizes(self) -> tuple[int, ...]:
        return (1, self.large) if self.share else (1,)

    @property
    def mean(self) -> float:
        return 1 + self.share * (self.large - 1)

    def choose(self, random: np.random.Generator) -> int:
        return self.large if random.random() < self.share else 1


@dataclass(frozen=True)
class Result:
    """Latencies in milliseconds, of whole requests: all of them, and those for one sample."""

    batching: str
    load: float
    requests: int
    p50_ms: float
    p99_ms: float
    single_p50_ms: float
    single_p99_ms: float
    goodput_samples_per_s: float  # of requests that were done before their deadline
    refused: int


@dataclass(frozen=True)
class OneMix:
    """Continuous and static batching in turn, at each load."""

    mix: Mix
    capacity_samples_per_s: float
    idle_seconds_by_samples: Mapping[int, float]
    results: Sequence[Result]

    @property
    def pairs(self) -> list[tuple[Result, Result]]:
        return list(zip(self.results[::2], self.results[1::2], strict=True))

    @property
    def goal(self) -> dict[str, Any]:
        ratio = next(one.p99_ms / other.p99_ms for one, other in self.pairs if one.load == GOAL_LOAD)
        what = f"{self.mix.title}: p99 at {GOAL_LOAD:.0%} load, continuous / static"
        return goal(what, ratio, at_most=GOAL)


def read_mix(found: Mapping[str, Any]) -> OneMix:
    """What `asdict` wrote."""
    results = [Result(**row) for row in found["results"]]
    return OneMix(Mix(**found["mix"]), found["capacity_samples_per_s"], found["idle_seconds_by_samples"], results)


def table(results: Sequence[Result]) -> str:
    lines = [
        "| load | batching | requests | p50 ms | p99 ms | p50 of singles | p99 of singles | goodput samples/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        quantiles = " | ".join(f"{ms:.1f}" for ms in (r.p50_ms, r.p99_ms, r.single_p50_ms, r.single_p99_ms))
        goodput = r.goodput_samples_per_s
        lines.append(f"| {r.load:.0%} | {r.batching} | {r.requests} | {quantiles} | {goodput:.0f} |")
    return "\n".join(lines) + "\n"


def plot(one: OneMix) -> str:
    """p99 by load as SVG."""
    lines = {}
    for batching in ("continuous", "static"):
        found = [result for result in one.results if result.batching == batching]
        lines[f"{batching}, all"] = [(100 * r.load, r.p99_ms) for r in found]
        lines[f"{batching}, of one sample"] = [(100 * r.load, r.single_p99_ms) for r in found]
    title = f"p99 of a request under Poisson arrivals: {one.mix.title}"
    return svg(title, "load, % of capacity", "ms, logarithmic", lines, y_log=True)


def plot_name(one: OneMix) -> str:
    return f"generation_load_{one.mix.large}.svg"


def page(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    mixes = [read_mix(found) for found in result["mixes"]]
    return "\n\n".join(
        (
            "## Generation: continuous against static batching",
            f"`{result['command']}` on {machine_line(result['machine'])}.",
            f"Poisson arrivals for {result['seconds']:g} s a cell, {result['turns']} turns of each way, at shares of "
            "the capacity, which is the most that either way answers of such requests, as fast as the machine is "
            "before the turn. Goodput counts requests that "
            f"took at most {DEADLINE_FACTOR} times as long as alone.",
            *(part for one in mixes for part in parts(one)),
            goal_table([one.goal for one in mixes]),
        )
    )


def parts(one: OneMix) -> tuple[str, ...]:
    ratios = [
        f"{ours.load:.0%} load {ours.p99_ms / other.p99_ms:.2f} of all, "
        f"{ours.single_p99_ms / other.single_p99_ms:.2f} of singles"
        for ours, other in one.pairs
    ]
    return (
        f"**Of the requests, {one.mix.title}.** Capacity {one.capacity_samples_per_s:,.0f} samples a second.",
        table(one.results),
        f"![p99 of a request by load and batching, {one.mix.title}](results/{plot_name(one)})",
        f"p99, continuous / static: {'; '.join(ratios)}.",
    )
