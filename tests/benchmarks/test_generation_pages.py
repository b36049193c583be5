"""What the generation benchmarks write into docs/benchmarks.md."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace

import pytest

from benchmarks import generation_kill, generation_load
from benchmarks.generation_kill import Report, State
from benchmarks.generation_load import Result, arrivals, summarise
from benchmarks.plot import svg

MACHINE = {"cpu": "x", "cpus": 2, "python": "3", "onnxruntime": "1", "load_average_1min": 0.0}
CONTINUOUS = Result("continuous", 0.6, 100, 5.0, 20.0, 4.0, 8.0, 300.0, 0)
STATIC = replace(CONTINUOUS, batching="static", p99_ms=50.0, single_p99_ms=40.0)


def test_the_page_of_the_load_compares_p99_at_each_load() -> None:
    head = {"command": "c", "machine": MACHINE, "seconds": 60.0, "capacity_samples_per_s": 1234.5}
    text = generation_load.page(head, [CONTINUOUS, STATIC])
    assert "| 60% | continuous | 100 | 5.0 | 20.0 | 4.0 | 8.0 | 300 |" in text
    assert "60% load 0.40 of all, 0.20 of singles" in text
    assert "capacity of 1,234 samples a second" in text


def test_the_plot_of_the_load_has_both_batchings() -> None:
    root = ElementTree.fromstring(generation_load.plot([CONTINUOUS, STATIC]))  # noqa: S314 - our own text
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"continuous, all", "static, all", "continuous, of one sample", "static, of one sample"} <= words


def test_decades_of_a_logarithmic_plot_are_ticks() -> None:
    text = svg("t", "x", "y", {"one": [(0, 2.0), (1, 3000.0)]}, y_log=True)
    root = ElementTree.fromstring(text)  # noqa: S314 - our own text
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"1", "10", "100", "1000", "10000"} <= words


def test_a_late_answer_is_no_goodput_and_a_refused_one_no_latency() -> None:
    requests = arrivals(100, 5, lambda seed: seed, seed=1)  # type: ignore[arg-type, return-value]
    latencies: list[float | None] = [0.1] * len(requests)
    latencies[0], latencies[1] = 9.0, None
    found = summarise("continuous", 0.6, requests, latencies, {1: 0.1, 32: 0.1})
    counts = [len(request.draws) for request in requests]
    assert found.refused == 1
    assert found.p50_ms == pytest.approx(100)
    assert found.goodput_samples_per_s == pytest.approx(sum(counts[2:]) / requests[-1].at_s)


def test_the_page_of_the_kill_says_what_stayed() -> None:
    idle = State(9, 100_000, 0, 0, 1)
    report = Report(idle, replace(idle, threads=11), 250, 250, 1750)
    result = {"command": "c", "machine": MACHINE, **asdict(report), "leaks": report.leaks}
    text = generation_kill.page(result)
    assert "| threads | 9 | 11 |" in text
    assert "500 streams" in text and "1750 samples were cancelled" in text
    assert "What stayed: threads." in text
