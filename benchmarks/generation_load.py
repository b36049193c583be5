"""Continuous against static batching of generation, under Poisson arrivals: latency and goodput.

    python -m benchmarks.generation_load [--bundle models/mnist] [--seconds 60] [--record]

In: a bundle with a prior, or a prior with random weights where the folder holds none. Out: a Markdown table and one
JSON line; `--record` also writes docs/results/generation_load.json, a plot beside it and a section of
docs/benchmarks.md. Open loop: a request arrives when its time has come, whether or not the others are done, and its
latency counts from there. Both run in this process on the same row graph and the same arrivals, one after the other,
without HTTP, so that nothing but the batching differs. Static batches are as large as the largest request at least.
Capacity is measured first: what the better of the two answers of these arrivals while twice as many are offered as full
batches back to back would take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.plot import svg
from benchmarks.report import RESULTS, command_line, machine, machine_line, write_result, write_section
from service.bundle import MANIFEST_FILE, Bundle, load_bundle
from service.draws import Codes, Draw, uniforms
from service.errors import QueueFull
from service.generator import SLOTS_ON_CPU
from service.metrics import Metrics
from service.sampling import RowSampler
from service.scheduler import Scheduler
from service.sessions import CPU, SessionMaker

LOADS = (0.3, 0.6, 0.9)  # of the measured capacity
DEADLINE_FACTOR = 5  # goodput counts what is done within this many times its latency on an idle machine
SIZES = (1,) * 9 + (32,)  # samples of a request, each as likely as the others: many small ones, some large ones
CAPACITY_BATCHES = 5
OVERLOAD = 2.0  # times full batches back to back, while the capacity is measured
CAPACITY_S = 10.0

Submit = Callable[[Sequence[Draw]], asyncio.Future[Codes]]


class StaticBatching:
    """The usual alternative: gather what waits, draw that batch to its end, then gather again. First come first served.

    Same graph and same order; a request's samples stay together.
    """

    def __init__(self, sampler: RowSampler) -> None:
        self._sampler = sampler
        self._waiting: deque[tuple[Sequence[Draw], asyncio.Future[Codes]]] = deque()
        self._running = False
        self._executor = ThreadPoolExecutor(1)

    def submit(self, draws: Sequence[Draw]) -> asyncio.Future[Codes]:
        future: asyncio.Future[Codes] = asyncio.get_running_loop().create_future()
        self._waiting.append((draws, future))
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._next)
        return future

    def _next(self) -> None:
        batch: list[tuple[Sequence[Draw], asyncio.Future[Codes]]] = []
        while self._waiting and sum(len(d) for d, _ in batch) + len(self._waiting[0][0]) <= self._sampler.max_batch:
            batch.append(self._waiting.popleft())
        self._running = bool(batch)
        if batch:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(
                self._executor, draw_all, self._sampler, [d for draws, _ in batch for d in draws]
            )
            work.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _finish(self, batch: list[tuple[Sequence[Draw], asyncio.Future[Codes]]], codes: Codes) -> None:
        start = 0
        for draws, future in batch:
            future.set_result(codes[start : start + len(draws)])
            start += len(draws)
        self._next()


def draw_all(sampler: RowSampler, draws: Sequence[Draw]) -> Codes:
    places = [sampler.open(draw) for draw in draws]
    codes = np.stack([sampler.advance(places) for _ in range(sampler.grid[0])], axis=1)
    for place in places:
        sampler.close(place)
    return codes


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
class Arrival:
    at_s: float
    draws: Sequence[Draw]


def arrivals(samples_per_s: float, seconds: float, draw: Callable[[int], Draw], seed: int) -> list[Arrival]:
    """A Poisson process of requests whose samples come at this mean rate."""
    random = np.random.default_rng(seed)
    rate, now = samples_per_s / np.mean(SIZES), 0.0
    found: list[Arrival] = []
    while (now := now + random.exponential(1 / rate)) < seconds:
        found.append(Arrival(now, [draw(len(found) * max(SIZES) + i) for i in range(random.choice(SIZES))]))
    return found


async def offer(submit: Submit, requests: Sequence[Arrival]) -> list[float | None]:
    """Seconds from each request's arrival to its answer; None where it was refused."""
    latencies: list[float | None] = [None] * len(requests)
    started = perf_counter()

    async def one(index: int, arrival: Arrival) -> None:
        with suppress(QueueFull):
            await submit(arrival.draws)
            latencies[index] = perf_counter() - started - arrival.at_s

    async with asyncio.TaskGroup() as tasks:
        for index, arrival in enumerate(requests):
            await asyncio.sleep(max(0.0, started + arrival.at_s - perf_counter()))
            tasks.create_task(one(index, arrival))
    return latencies


def summarise(
    batching: str,
    load: float,
    requests: Sequence[Arrival],
    latencies: Sequence[float | None],
    idle_s: Mapping[int, float],
) -> Result:
    """`idle_s` is the latency on an idle machine, by the number of samples."""
    done = [(len(r.draws), took) for r, took in zip(requests, latencies, strict=True) if took is not None]
    good = sum(count for count, took in done if took <= DEADLINE_FACTOR * idle_s[count])
    every, single = ([1e3 * took for count, took in done if count == 1 or not only] for only in (False, True))
    return Result(
        batching,
        load,
        len(requests),
        p50_ms=float(np.percentile(every, 50)),
        p99_ms=float(np.percentile(every, 99)),
        single_p50_ms=float(np.percentile(single, 50)),
        single_p99_ms=float(np.percentile(single, 99)),
        goodput_samples_per_s=good / requests[-1].at_s,
        refused=len(requests) - len(done),
    )


class Bench:
    def __init__(self, bundle: Bundle, slots: int, threads: int) -> None:
        prior, codes = bundle.manifest.prior, bundle.manifest.codes
        assert prior is not None
        self._label, self._size = prior.label_count, codes.codebook_size
        maker, whole = SessionMaker(CPU, threads), max(slots, *SIZES)
        self.sampler = RowSampler(bundle, maker, slots, places=4 * slots)
        self.static_sampler = RowSampler(bundle, maker, whole, places=whole)

    def draw(self, seed: int) -> Draw:
        grid, one = self.sampler.grid, np.float32(1)
        known = np.zeros(grid, np.int64), np.zeros(grid, np.bool_)
        return Draw(uniforms(seed, 0, grid), self._label, one, self._size, one, *known)

    def full_batches(self) -> float:
        """Samples a second, full batches back to back: what no mix of requests can reach."""
        draws = [self.draw(seed) for seed in range(self.static_sampler.max_batch)]
        draw_all(self.static_sampler, draws)
        started = perf_counter()
        for _ in range(CAPACITY_BATCHES):
            draw_all(self.static_sampler, draws)
        return CAPACITY_BATCHES * len(draws) / (perf_counter() - started)

    def capacity(self, seconds: float) -> float:
        """Samples a second that are answered while too many are asked for, by the better way of batching."""
        requests = arrivals(OVERLOAD * self.full_batches(), seconds, self.draw, seed=0)
        answered = []
        for run in (self._continuous, self._static):
            done = zip(requests, asyncio.run(run(requests)), strict=True)
            in_time = sum(len(r.draws) for r, took in done if took is not None and r.at_s + took <= seconds)
            answered.append(in_time / seconds)
        return max(answered)

    def idle_seconds(self, samples: int) -> float:
        draws = [self.draw(seed) for seed in range(samples)]
        draw_all(self.static_sampler, draws)
        started = perf_counter()
        draw_all(self.static_sampler, draws)
        return perf_counter() - started

    def compare(self, seconds: float) -> tuple[dict[str, object], list[Result]]:
        capacity = self.capacity(min(seconds, CAPACITY_S))
        idle_s = {samples: self.idle_seconds(samples) for samples in sorted(set(SIZES))}
        results = []
        for load in LOADS:
            requests = arrivals(load * capacity, seconds, self.draw, seed=int(100 * load))
            for name, run in (("continuous", self._continuous), ("static", self._static)):
                latencies = asyncio.run(run(requests))
                results.append(summarise(name, load, requests, latencies, idle_s))
        return {"capacity_samples_per_s": capacity, "idle_seconds_by_samples": idle_s}, results

    async def _continuous(self, requests: Sequence[Arrival]) -> list[float | None]:
        metrics = Metrics().generation.of("benchmark")
        scheduler = Scheduler(self.sampler, max_samples=1 << 30, stall_s=60, metrics=metrics)
        latencies = await offer(scheduler.submit, requests)
        scheduler.close("done")
        return latencies

    async def _static(self, requests: Sequence[Arrival]) -> list[float | None]:
        return await offer(StaticBatching(self.static_sampler).submit, requests)


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


def plot(results: Sequence[Result]) -> str:
    """p99 by load as SVG."""
    lines = {}
    for batching in ("continuous", "static"):
        found = [result for result in results if result.batching == batching]
        lines[f"{batching}, all"] = [(100 * r.load, r.p99_ms) for r in found]
        lines[f"{batching}, of one sample"] = [(100 * r.load, r.single_p99_ms) for r in found]
    return svg("p99 of a request under Poisson arrivals", "load, % of capacity", "ms, logarithmic", lines, y_log=True)


def page(result: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The section of docs/benchmarks.md."""
    ratios = [
        f"{one.load:.0%} load {one.p99_ms / other.p99_ms:.2f} of all, "
        f"{one.single_p99_ms / other.single_p99_ms:.2f} of singles"
        for one, other in zip(results[::2], results[1::2], strict=True)
    ]
    return "\n\n".join(
        (
            "## Generation: continuous against static batching",
            f"`{result['command']}` on {machine_line(result['machine'])}.",
            f"Poisson arrivals for {result['seconds']:g} s a cell at shares of the capacity of "
            f"{result['capacity_samples_per_s']:,.0f} samples a second, the most that either way answers of such "
            f"requests; nine of ten ask for one sample, the tenth for {max(SIZES)}. Goodput counts requests that took "
            f"at most {DEADLINE_FACTOR} times as long as alone.",
            table(results),
            "![p99 of a request by load and batching](results/generation_load.svg)",
            f"p99, continuous / static: {'; '.join(ratios)}. The goal was half of it at 60 % load.",
        )
    )


def main() -> None:
    options = parse()
    facts, command = machine(), command_line()
    with tempfile.TemporaryDirectory() as temporary:
        if (options.bundle / MANIFEST_FILE).is_file():
            bundle = load_bundle(options.bundle)
        else:
            from benchmarks.random_prior import PriorSize, random_prior, write_prior  # needs torch, a bundle does not

            size = PriorSize(7, 7, label_count=10)
            bundle, _ = write_prior(random_prior(size), size, Path(temporary))
        found, results = Bench(bundle, options.slots, options.threads).compare(options.seconds)
    print(table(results))
    settings = {"bundle": bundle.manifest.name, "seconds": options.seconds, "slots": options.slots}
    result = {
        "benchmark": "generation_load",
        "command": command,
        "machine": facts,
        **settings,
        "threads": options.threads,
        **found,
        "results": [asdict(one) for one in results],
    }
    if options.record:
        write_result("generation_load", result)
        (RESULTS / "generation_load.svg").write_text(plot(results), encoding="utf-8")
        write_section("generation_load", page(result, results))
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation_load", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/mnist"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load and batching")
    parser.add_argument("--slots", type=int, default=SLOTS_ON_CPU, help="of continuous batching")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write docs/results/generation_load.json and the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
