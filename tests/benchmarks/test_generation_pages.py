"""What the generation benchmarks write into docs/benchmarks.md."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import generation_kill, generation_load_report
from benchmarks.generation_kill import Report, State
from benchmarks.generation_load import TURNS, Bench, arrivals, summarise
from benchmarks.generation_load_report import Mix, OneMix, Result
from benchmarks.plot import svg

MACHINE = {"cpu": "x", "cpus": 2, "python": "3", "onnxruntime": "1", "load_average_1min": 0.0}
CONTINUOUS = Result("continuous", 0.6, 100, 5.0, 20.0, 4.0, 8.0, 300.0, 0)
STATIC = replace(CONTINUOUS, batching="static", p99_ms=50.0, single_p99_ms=40.0)
MIX = OneMix(Mix(64, 0.005), 1234.4, {1: 0.1}, [CONTINUOUS, STATIC])
ONLY_SINGLES = OneMix(Mix(1, 0.0), 1234.4, {1: 0.1}, [CONTINUOUS, replace(CONTINUOUS, batching="static")])


def test_the_page_of_the_load_compares_p99_at_each_load() -> None:
    head = {"command": "c", "machine": MACHINE, "seconds": 60.0, "turns": 3}
    text = generation_load_report.page({**head, "mixes": [asdict(MIX), asdict(ONLY_SINGLES)]})
    assert "| 60% | continuous | 100 | 5.0 | 20.0 | 4.0 | 8.0 | 300 |" in text
    assert "60% load 0.40 of all, 0.20 of singles" in text
    assert "Poisson arrivals for 60 s a cell, 3 turns of each way" in text
    assert "Capacity 1,234 samples a second" in text
    assert "| 0.5% ask for 64: p99 at 60% load, continuous / static | 0.4 | at most 0.5 | yes |" in text
    assert "| all ask for one: p99 at 60% load, continuous / static | 1 | at most 0.5 | **no** |" in text


def words_of(picture: str) -> set[str | None]:
    root = ElementTree.fromstring(picture)  # noqa: S314 - SVG that `benchmarks.plot` has just drawn
    return {element.text for element in root.iter() if element.tag.endswith("text")}


def test_the_plot_of_the_load_has_both_batchings() -> None:
    words = words_of(generation_load_report.plot(MIX))
    assert {"continuous, all", "static, all", "continuous, of one sample", "static, of one sample"} <= words


@pytest.mark.parametrize("mix", [Mix(64, 0.005), Mix(32, 0.1), Mix(1, 0.0)])
def test_arrivals_ask_for_what_the_mix_says_at_the_rate(mix: Mix) -> None:
    found = arrivals(mix, 10_000, 20, lambda seed: seed, seed=1)  # type: ignore[arg-type, return-value]
    counts = np.array([len(request.draws) for request in found])
    assert set(counts) == set(mix.sizes)
    assert (counts > 1).mean() == pytest.approx(mix.share, rel=0.2)
    assert counts.sum() / 20 == pytest.approx(10_000, rel=0.1)
    seeds = [seed for request in found for seed in request.draws]
    assert len(set(seeds)) == len(seeds)


def test_decades_of_a_logarithmic_plot_are_ticks() -> None:
    words = words_of(svg("t", "x", "y", {"one": [(0, 2.0), (1, 3000.0)]}, y_log=True))
    assert {"1", "10", "100", "1000", "10000"} <= words


def test_a_late_answer_is_no_goodput_and_a_refused_one_no_latency() -> None:
    requests = arrivals(Mix(32, 0.1), 100, 5, lambda seed: seed, seed=1)  # type: ignore[arg-type, return-value]
    latencies: list[float | None] = [0.1] * len(requests)
    latencies[0], latencies[1] = 9.0, None
    found = summarise("continuous", 0.6, requests, latencies, {1: 0.1, 32: 0.1}, 10.0)
    counts = [len(request.draws) for request in requests]
    assert found.refused == 1
    assert found.p50_ms == pytest.approx(100)
    assert found.goodput_samples_per_s == pytest.approx(sum(counts[2:]) / 10)


def test_the_page_of_the_kill_says_what_stayed() -> None:
    idle = State(9, 100_000, 0, 0, 1)
    report = Report(idle, replace(idle, threads=11), 250, 250, 1750)
    result = {"command": "c", "machine": MACHINE, **asdict(report), "leaks": report.leaks}
    text = generation_kill.page(result)
    assert "| threads | 9 | 11 |" in text
    assert "500 streams" in text and "1750 samples were cancelled" in text
    assert "What stayed: threads." in text


def test_both_ways_of_batching_take_turns() -> None:
    """One after the other, each met another machine: p99 of one of them differed by a factor of two within a run."""
    bench, begun = object.__new__(Bench), []

    async def way(name: str, requests: list[float]) -> list[float]:
        begun.append(name)
        return requests

    bench._continuous = lambda requests: way("continuous", requests)  # type: ignore[method-assign, assignment, arg-type, return-value]
    bench._static = lambda requests: way("static", requests)  # type: ignore[method-assign, assignment, arg-type, return-value]
    turns = [[0.0, 1.0], *([float(2 + turn)] for turn in range(TURNS - 1))]
    requests, found = bench._in_turns(turns.__getitem__)  # type: ignore[arg-type]
    assert begun == ["continuous", "static", "static", "continuous"] * (TURNS // 2)
    assert requests == [float(turn) for turn in range(TURNS + 1)]  # type: ignore[comparison-overlap]
    assert found == {"continuous": requests, "static": requests}
