"""Continuous against static batching of generation, under Poisson arrivals: latency and goodput.

    python -m benchmarks.generation_load [--bundle models/mnist] [--seconds 60] [--record]

In: a bundle with a prior, or a prior with random weights where the folder holds none. Out: a Markdown table and one
JSON line; `--record` also writes docs/results/generation_load.json, a plot beside it and a section of
docs/benchmarks.md. Open loop: a request arrives when its time has come, whether or not the others are done, and its
latency counts from there. Both run in this process on the same row graph and the same arrivals, in turns, since the
machine is not equally fast at all times, and without HTTP, so that nothing but the batching differs. Static batches are
as large as the largest request at least.
Two mixes of requests, because which of them p99 belongs to decides what batching can do for it. Capacity is measured
first for each: what the better of the two answers of these arrivals while twice as many are offered as full batches
back to back would take. Before each turn full batches are timed again, and the rate of the turn is a share of what the
capacity would be then: else a machine that had been fast for a while would be overloaded at 60 % when it no longer is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.generation_load_report import DEADLINE_FACTOR, Mix, OneMix, Result, page, plot, plot_name, table
from benchmarks.report import RESULTS, command_line, machine, write_result, write_section
from benchmarks.static_batching import StaticBatching, Submit, draw_all, plain_draw
from service.bundle import MANIFEST_FILE, Bundle, load_bundle
from service.errors import QueueFull
from service.inference.sessions import CPU, SessionMaker
from service.prior.draws import Draw, uniforms
from service.prior.generator import SLOTS_ON_CPU, filled_beside_others
from service.prior.sampling import RowSampler
from service.prior.scheduler import Scheduler
from service.process.memory import spare_what_stays
from service.telemetry.metrics import Metrics

LOADS = (0.3, 0.6, 0.9)  # of the measured capacity
TIMED_BATCHES = 40  # full ones, about a second
OVERLOAD = 2.0  # times full batches back to back, while the capacity is measured
CAPACITY_S = 10.0
TURNS = 6  # of each way of batching, at each load

# One large request among many small ones; and so many large ones that p99 is theirs.
MIXES = (Mix(64, 0.005), Mix(32, 0.1))


@dataclass(frozen=True)
class Arrival:
    at_s: float
    draws: Sequence[Draw]


def arrivals(mix: Mix, samples_per_s: float, seconds: float, draw: Callable[[int], Draw], seed: int) -> list[Arrival]:
    """A Poisson process of requests whose samples come at this mean rate."""
    random = np.random.default_rng(seed)
    rate, now = samples_per_s / mix.mean, 0.0
    found: list[Arrival] = []
    while (now := now + random.exponential(1 / rate)) < seconds:
        found.append(Arrival(now, [draw(len(found) * mix.large + i) for i in range(mix.choose(random))]))
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
    seconds: float,
) -> Result:
    """`idle_s` is the latency on an idle machine, by the number of samples; the requests came within `seconds`."""
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
        goodput_samples_per_s=good / seconds,
        refused=len(requests) - len(done),
    )


class Bench:
    def __init__(self, bundle: Bundle, slots: int, threads: int) -> None:
        self._bundle = bundle
        self._maker = maker = SessionMaker(CPU, threads)
        whole = max(slots, *(mix.large for mix in MIXES))
        self.sampler = RowSampler(bundle, maker, slots, places=2 * slots)
        self.static_sampler = RowSampler(bundle, maker, whole, places=whole)

    def draw(self, seed: int) -> Draw:
        return plain_draw(self._bundle, uniforms(seed, 0, self.sampler.grid))

    def full_batches(self) -> float:
        """Samples a second, full batches back to back: what no mix of requests can reach."""
        draws = [self.draw(seed) for seed in range(self.static_sampler.max_batch)]
        draw_all(self.static_sampler, draws)
        started = perf_counter()
        for _ in range(TIMED_BATCHES):
            draw_all(self.static_sampler, draws)
        return TIMED_BATCHES * len(draws) / (perf_counter() - started)

    def capacity(self, mix: Mix, seconds: float) -> float:
        """Samples a second that are answered while too many are asked for, by the better way of batching."""
        requests = arrivals(mix, OVERLOAD * self.full_batches(), seconds, self.draw, seed=0)
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

    def compare(self, mix: Mix, seconds: float) -> OneMix:
        before = self.full_batches()
        capacity = self.capacity(mix, min(seconds, CAPACITY_S))
        of_full_batches = 2 * capacity / (before + self.full_batches())
        idle_s = {samples: self.idle_seconds(samples) for samples in mix.sizes}
        results = []
        for load in LOADS:

            def turn_of(number: int, load: float = load) -> list[Arrival]:
                rate = load * of_full_batches * self.full_batches()
                return arrivals(mix, rate, seconds / TURNS, self.draw, seed=int(100 * load) + number)

            requests, found = self._in_turns(turn_of)
            results += [
                summarise(name, load, requests, latencies, idle_s, seconds) for name, latencies in found.items()
            ]
        return OneMix(mix, capacity, idle_s, results)

    def _in_turns(
        self, turn_of: Callable[[int], Sequence[Arrival]]
    ) -> tuple[list[Arrival], dict[str, list[float | None]]]:
        """All requests, and their latencies by both ways; which of them is first changes from turn to turn."""
        all_requests: list[Arrival] = []
        ways = {"continuous": self._continuous, "static": self._static}
        found: dict[str, list[float | None]] = {name: [] for name in ways}
        for turn in range(TURNS):
            requests = turn_of(turn)
            all_requests += requests
            for name in reversed(ways) if turn % 2 else ways:
                spare_what_stays()  # as the service does: a collection of all these requests takes longer than one
                found[name] += asyncio.run(ways[name](requests))
        return all_requests, found

    async def _continuous(self, requests: Sequence[Arrival]) -> list[float | None]:
        metrics = Metrics().generation.of("benchmark")
        filled = filled_beside_others(self.sampler.max_batch, self._maker)
        scheduler = Scheduler(self.sampler, 1 << 30, stall_s=60, metrics=metrics, filled_beside_others=filled)
        latencies = await offer(scheduler.submit, requests)
        scheduler.close("done")
        return latencies

    async def _static(self, requests: Sequence[Arrival]) -> list[float | None]:
        return await offer(StaticBatching(self.static_sampler).submit, requests)


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
        bench = Bench(bundle, options.slots, options.threads)
        mixes = [bench.compare(mix, options.seconds) for mix in MIXES]
    for one in mixes:
        print(f"{one.mix.title}\n\n{table(one.results)}")
    settings = {"bundle": bundle.manifest.name, "seconds": options.seconds, "slots": options.slots}
    result = {
        "benchmark": "generation_load",
        "command": command,
        "machine": facts,
        **settings,
        "threads": options.threads,
        "turns": TURNS,
        "mixes": [asdict(one) for one in mixes],
        "goals": [one.goal for one in mixes],
    }
    if options.record:
        write_result("generation_load", result)
        for one in mixes:
            (RESULTS / plot_name(one)).write_text(plot(one), encoding="utf-8")
        write_section("generation_load", page(result))
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
