"""How many slots a large request should have: the order of `service.prior.turns`, simulated with measured times.

    python -m benchmarks.generation_simulation [--bundle models/mnist] [--seconds 120] [--record]

In: a bundle with a prior. Out: a Markdown table and one JSON line; `--record` also writes
docs/results/generation_simulation.json and a section of docs/benchmarks.md. Requests arrive as in
`benchmarks.generation_load`, at 60 % of what full batches take; time passes only while a row is drawn. So it tells what
an order can reach at best, and runs of two orders differ by nothing but the order.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

from benchmarks.generation_load import MIXES, Bench
from benchmarks.generation_load_report import GOAL_LOAD, Mix
from benchmarks.report import command_line, machine, machine_line, write_result, write_section
from benchmarks.report import table as markdown
from service.bundle import load_bundle
from service.prior.generator import SLOTS_ON_CPU
from service.prior.turns import Job, Sample, choose

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)  # of the slots, for large requests beside others
TIMED_ROWS = 30
BATCHES = 2  # an earlier rule: all slots where more samples than this many batches have are inside

Request = tuple[float, int]  # when it arrives, in seconds, and how many samples it wants
RowTime = Callable[[int], float]  # seconds, by the number of samples
Latencies = list[tuple[float, int]]  # seconds, and how many samples


@dataclass(frozen=True)
class Outcome:
    """Latencies in milliseconds. `share` None: static batching."""

    share: float | None
    full_beyond: int | None
    p50_ms: float
    p99_ms: float
    single_p99_ms: float
    large_p99_ms: float


def arrivals(mix: Mix, samples_per_s: float, seconds: float) -> list[Request]:
    """A Poisson process whose samples come at this mean rate."""
    random = np.random.default_rng(0)
    now, found = 0.0, list[Request]()
    while (now := now + random.exponential(mix.mean / samples_per_s)) < seconds:
        found.append((now, mix.choose(random)))
    return found


def static(requests: Sequence[Request], row_s: RowTime, rows: int, slots: int) -> Latencies:
    """What waits is drawn to its end, first come first served."""
    waiting, now, found = deque(requests), 0.0, Latencies()
    while waiting:
        now = max(now, waiting[0][0])
        batch: list[Request] = []
        while waiting and waiting[0][0] <= now and sum(n for _, n in batch) + waiting[0][1] <= slots:
            batch.append(waiting.popleft())
        now += rows * row_s(sum(n for _, n in batch))
        found += [(now - at, count) for at, count in batch]
    return found


def continuous(
    requests: Sequence[Request], row_s: RowTime, rows: int, slots: int, filled: int, full_beyond: int | None
) -> Latencies:
    """As `service.prior.scheduler.Scheduler`: who advances is chosen anew before each row."""
    waiting, now, found, jobs = deque(requests), 0.0, Latencies(), list[Job]()
    while waiting or jobs:
        if not jobs:
            now = max(now, waiting[0][0])
        while waiting and waiting[0][0] <= now:
            jobs.append(_job(*waiting.popleft()))
        inside = sum(len(job.unfinished) for job in jobs)
        full = len(jobs) == 1 or (full_beyond is not None and inside > full_beyond)
        batch = choose(jobs, slots, slots if full else filled)
        now += row_s(len(batch))
        for sample in batch:
            sample.row += 1
            if sample.row == rows:
                sample.job.unfinished.remove(sample)
        found += [(now - job.submitted, len(job.codes)) for job in jobs if not job.unfinished]
        jobs = [job for job in jobs if job.unfinished]
    return found


def _job(at: float, count: int) -> Job:
    """With samples that draw nothing, and nobody who waits."""
    nothing = cast(Any, None)
    job = Job(nothing, nothing, np.empty((count, 0, 0), np.int64), None, at)
    job.unfinished = [Sample(job, index, nothing) for index in range(count)]
    return job


def outcome(latencies: Latencies, share: float | None = None, full_beyond: int | None = None) -> Outcome:
    took, counts = 1e3 * np.array([s for s, _ in latencies]), np.array([count for _, count in latencies])
    p99 = [float(np.percentile(took[part], 99)) for part in (counts > 0, counts == 1, counts > 1)]
    return Outcome(share, full_beyond, float(np.median(took)), *p99)


def compare(mix: Mix, row_s: RowTime, rows: int, slots: int, seconds: float) -> list[Outcome]:
    """Static batching first, then continuous batching by share, with the earlier rule and without."""
    requests = arrivals(mix, GOAL_LOAD * slots / (rows * row_s(slots)), seconds)
    return [
        outcome(static(requests, row_s, rows, slots)),
        *(
            outcome(continuous(requests, row_s, rows, slots, math.ceil(share * slots), beyond), share, beyond)
            for beyond in (BATCHES * slots, None)
            for share in SHARES
        ),
    ]


def measured_row_s(bench: Bench, slots: int) -> dict[int, float]:
    """The median seconds of a row, by the number of samples."""
    sizes = sorted({size for size in (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, slots) if size <= slots})
    return {size: _row_s(bench, size) for size in sizes}


def _row_s(bench: Bench, size: int) -> float:
    sampler, times = bench.sampler, list[float]()
    while len(times) < TIMED_ROWS:
        places = [sampler.open(bench.draw(seed), size) for seed in range(size)]
        for _ in range(sampler.grid[0]):
            started = perf_counter()
            sampler.advance(places)
            times.append(perf_counter() - started)
        for place in places:
            sampler.close(place)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("models/mnist"))
    parser.add_argument("--seconds", type=float, default=120.0, help="of each order")
    parser.add_argument("--record", action="store_true", help="write docs/results and docs/benchmarks.md")
    options = parser.parse_args()
    facts = machine()
    bench = Bench(load_bundle(options.bundle), SLOTS_ON_CPU, threads=2)
    measured = measured_row_s(bench, SLOTS_ON_CPU)
    rows = bench.sampler.grid[0]

    def row_s(samples: int) -> float:
        return float(np.interp(samples, [0, *measured], [0, *measured.values()]))

    result = {
        "command": command_line(),
        "machine": facts,
        "bundle": options.bundle.name,
        "slots": SLOTS_ON_CPU,
        "row_ms": {size: 1e3 * seconds for size, seconds in measured.items()},
        "mixes": [
            {
                "mix": asdict(mix),
                "outcomes": [asdict(one) for one in compare(mix, row_s, rows, SLOTS_ON_CPU, options.seconds)],
            }
            for mix in MIXES
        ],
    }
    if options.record:
        write_result("generation_simulation", result)
        write_section("generation_simulation", page(result))
    print(json.dumps(result))


def page(result: Mapping[str, Any]) -> str:
    row = ", ".join(f"{size}: {float(ms):.2f}" for size, ms in result["row_ms"].items())
    parts = [
        "## How many slots a large request should have",
        f"`{result['command']}` on {machine_line(result['machine'])}. Not a measurement of the service: the order in "
        "which `service.prior.turns` lets samples advance, simulated at 60 % of what full batches take. A row takes "
        f"what it was measured to take (ms by samples: {row}), and nothing else takes time. `earlier`: all "
        f"{result['slots']} slots where more than {BATCHES * result['slots']} samples are inside.",
    ]
    for one in result["mixes"]:
        outcomes = [Outcome(**row) for row in one["outcomes"]]
        parts += [f"**Of the requests, {Mix(**one['mix']).title}.**", _table(outcomes)]
    return "\n\n".join(parts)


def _table(outcomes: Sequence[Outcome]) -> str:
    reference = outcomes[0].p99_ms
    head = ["slots of a large request", "p50 ms", "p99 ms", "p99 of singles", "p99 of large ones", "p99 / static"]
    return markdown(
        head,
        [[_name(one), *(f"{ms:.1f}" for ms in _times(one)), f"{one.p99_ms / reference:.2f}"] for one in outcomes],
    )


def _times(one: Outcome) -> tuple[float, ...]:
    return one.p50_ms, one.p99_ms, one.single_p99_ms, one.large_p99_ms


def _name(one: Outcome) -> str:
    if one.share is None:
        return "static batching"
    return f"{one.share:.3g} of all" + (", earlier" if one.full_beyond else "")


if __name__ == "__main__":
    main()
