"""What a batch size that the row sampler has not seen costs a CPU, beside what padding it to a known one would cost.

    python -m benchmarks.batch_sizes [--bundle models/mnist] [--bundle models/photos] [--record]

In: bundles with a prior. Out: one JSON line; `--record` also writes docs/results/batch_sizes.json and a section of
docs/benchmarks.md. A sampler is opened that has run the smallest and the largest batch only, where the service's has
run every size; then batches of other sizes run `RUNS` times each. `first / later` is the first run against the median
of the others, `padded / exact` the next power of two against the size itself, `memory` what all of it added to the
process, `opened` the time that the service's own sampler takes to open, against this one's, and `unplanned / planned`
what a row of one sample takes where two ran first, against where one did.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.report import command_line, machine, machine_line, table, write_result, write_section
from benchmarks.server_process import usage_of
from benchmarks.static_batching import plain_draw
from service.bundle import Bundle, load_bundle
from service.inference.sessions import CPU, SessionMaker
from service.prior.draws import Draw
from service.prior.sampling import RowSampler

MAX_BATCH = 64
RUNS = 9
NOT_POWERS = [size for size in range(10, MAX_BATCH) if size & (size - 1)]
SIZES = tuple(np.random.default_rng(0).permutation(NOT_POWERS)[:20].tolist())


class HardlyWarm(RowSampler):
    def sizes(self) -> Sequence[int]:
        return (1, self.max_batch)


class TwoFirst(RowSampler):
    """Its sessions have planned the memory of two samples."""

    def sizes(self) -> Sequence[int]:
        return (2, 1, self.max_batch)


def resident_bytes() -> int:
    return usage_of([os.getpid()]).rss_bytes


def row_times(sampler: RowSampler, draw: Draw, size: int) -> list[float]:
    """Milliseconds of `RUNS` calls that draw the first row of `size` samples."""
    times = []
    for _ in range(RUNS):
        places = [sampler.open(draw) for _ in range(size)]
        started = perf_counter()
        sampler.advance(places)
        times.append(1e3 * (perf_counter() - started))
        for place in places:
            sampler.close(place)
    return times


def opened(kind: type[RowSampler], bundle: Bundle, threads: int) -> tuple[float, RowSampler]:
    """The sampler, and the seconds that it took to open."""
    started = perf_counter()
    sampler = kind(bundle, SessionMaker(CPU, threads), MAX_BATCH, MAX_BATCH)
    return perf_counter() - started, sampler


def unplanned(planned: RowSampler, bundle: Bundle, threads: int, draw: Draw) -> float:
    """The row time of one sample whose session has planned the memory of two, by that in `planned`."""
    both = (opened(TwoFirst, bundle, threads)[1], planned)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for sampler, found in zip(both, times, strict=True):
            found.extend(row_times(sampler, draw, 1))
    return median(times[0]) / median(times[1])


def measure(folder: Path, threads: int) -> dict[str, Any]:
    bundle = load_bundle(folder)
    opened_s, sampler = opened(HardlyWarm, bundle, threads)
    draw = plain_draw(bundle, np.full(sampler.grid, 0.5, np.float32))
    before = resident_bytes()
    first, padded = [], []
    for size in SIZES:
        start, *later = row_times(sampler, draw, size)
        first.append(start / median(later))
        padded.append(median(row_times(sampler, draw, 1 << (size - 1).bit_length())) / median(later))
    return {
        "bundle": folder.name,
        "first_by_later": round(median(first), 3),
        "largest_first_by_later": round(max(first), 3),
        "padded_by_exact": round(median(padded), 3),
        "largest_padded_by_exact": round(max(padded), 3),
        "grown_mb": round((resident_bytes() - before) / 1e6, 2),
        "unplanned_by_planned": round(unplanned(sampler, bundle, threads, draw), 3),
        "unplanned_by_planned_filtered": round(unplanned(sampler, bundle, threads, replace(draw, top_k=10)), 3),
        "opened_s": round(opened_s, 2),
        "opened_warm_s": round(opened(RowSampler, bundle, threads)[0], 2),
    }


def page(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = [
        (
            one["bundle"],
            f"{one['first_by_later']} ({one['largest_first_by_later']})",
            f"{one['padded_by_exact']} ({one['largest_padded_by_exact']})",
            one["grown_mb"],
            f"{one['unplanned_by_planned']} ({one['unplanned_by_planned_filtered']})",
            f"{one['opened_warm_s']} ({one['opened_s']})",
        )
        for one in result["bundles"]
    ]
    header = (
        "bundle",
        "first / later (largest)",
        "padded / exact (largest)",
        "memory, MB",
        "unplanned / planned (with top_k)",
        "opened, s, all sizes warm (two)",
    )
    return "\n\n".join(
        (
            "## Batch sizes of the row sampler on a CPU",
            f"`{result['command']}` on {machine_line(result['machine'])}.",
            f"{len(result['sizes'])} sizes between 10 and {MAX_BATCH} in a sampler that has not run them before, "
            "median of the sizes. A size that is new takes little longer than one that is known, and padding it to a "
            "power of two would take longer every time: on a CPU every size runs as it is, and has run once at the "
            "start. On CUDA, sizes are padded to powers of two. onnxruntime plans the memory of the first batch size "
            "of a session only; what one sample takes in a session that has planned two, by what it takes in one that "
            "has planned one, is `unplanned / planned`: the service's sampler runs one sample first.",
            table(header, rows),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_sizes", description=__doc__)
    parser.add_argument("--bundle", type=Path, action="append", help="default: models/mnist and models/photos")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write docs/results/batch_sizes.json and the page")
    options = parser.parse_args()
    folders = options.bundle or [Path("models/mnist"), Path("models/photos")]
    head = {"benchmark": "batch_sizes", "command": command_line(), "machine": machine(), "sizes": SIZES}
    result = {**head, "bundles": [measure(folder, options.threads) for folder in folders]}
    if options.record:
        write_result("batch_sizes", result)
        write_section("batch_sizes", page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
