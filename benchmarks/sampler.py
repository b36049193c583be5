"""How fast each way of writing the sampler is, beside the naive loop and beside what the processor could do.

    python -m benchmarks.sampler [--bundle models/mnist] [--batches 1,16,64] [--threads 2] [--seconds 1] [--record]

In: a bundle, where the folder holds one, and a 32x32 prior with random weights of the photographs' size. Out: a table
in Markdown for each prior, and one JSON line; `--record` also writes docs/results/sampler.json and a section of
docs/benchmarks.md. All variants run in the same process, one after the other, and must give
the same codes. `floor` is the time of the multiplications alone, at the rate of a large MatMul of the same runtime and
threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.random_prior import PriorSize, random_prior, write_prior
from benchmarks.report import command_line, machine, machine_line, write_result, write_section
from benchmarks.sampler_graphs import SortedRows, horizontal, scan_row
from benchmarks.sampler_variants import Sample, Variants
from export.graphs.onnx_builder import GraphBuilder
from export.graphs.prior_graphs import PriorGraphWriter
from service.bundle import MANIFEST_FILE, load_bundle
from service.bundle.fields import DIAGONAL_GRAPHS, GraphName
from service.inference.sessions import CPU, SessionMaker
from service.prior.draws import Codes, Floats, uniforms

PEAK_SIZE = 1024  # of the square matrices whose product gives the peak
NAIVE_PIXELS = 4  # of a grid with more than SMALL_GRID codes are timed, the rest is extrapolated
SMALL_GRID = 64
SEED = 1


@dataclass(frozen=True)
class Row:
    """One line of the table; milliseconds for the whole batch."""

    variant: str
    batch: int
    milliseconds: float
    extrapolated: bool = False


def median_seconds(call: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Of repeats that fill `seconds`, after one that does not count."""
    call()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return statistics.median(times)


def peak_rate(maker: SessionMaker, folder: Path) -> float:
    """Multiply-adds a second of the best of several large MatMuls."""
    graph = GraphBuilder("peak")
    shape = (PEAK_SIZE, PEAK_SIZE)
    product = graph.op("MatMul", graph.input("a", "float32", shape), graph.input("b", "float32", shape))
    graph.output(product, "product", "float32", shape)
    (folder / "peak.onnx").write_bytes(graph.model().SerializeToString())
    session, ones = maker.open(folder / "peak.onnx"), np.ones(shape, np.float32)
    times = []
    for _ in range(10):
        started = perf_counter()
        session.run(None, {"a": ones, "b": ones})
        times.append(perf_counter() - started)
    return float(PEAK_SIZE**3 / min(times))


def multiply_adds(prior_graph: Path, grid: tuple[int, int]) -> int:
    """Of one sample: every weight of the teacher-forced graph is used once a position.

    Shapes are inferred: the weights are computed from int8 constants, so they are no initializers.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(prior_graph), data_prop=True).graph
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.value_info}
    weights = [shapes[node.input[1]] for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    return sum(int(np.prod(shape)) for shape in weights) * grid[0] * grid[1]


def measure(samplers: dict[str, Sample], variants: Variants, batches: list[int], seconds: float) -> Iterator[Row]:
    """Raises RuntimeError where a variant gives other codes than the service's sampler."""
    for batch in batches:
        numbers = np.stack([uniforms(SEED, index, variants.grid) for index in range(batch)])
        expected = samplers["row_unfiltered"](numbers)
        for name, sample in samplers.items():
            _require_equal(name, sample(numbers), expected)
            yield Row(name, batch, 1e3 * median_seconds(partial(sample, numbers), seconds))
        yield _measure_naive(variants, numbers, expected, seconds)


def _measure_naive(variants: Variants, numbers: Floats, expected: Codes, seconds: float) -> Row:
    batch, positions = len(numbers), variants.grid[0] * variants.grid[1]
    pixels = positions if positions <= SMALL_GRID else NAIVE_PIXELS
    naive = variants.naive(pixels)
    _require_equal("naive", naive(numbers).reshape(batch, -1)[:, :pixels], expected.reshape(batch, -1)[:, :pixels])
    took = median_seconds(partial(naive, numbers), seconds)
    return Row("naive", batch, 1e3 * took * positions / pixels, extrapolated=pixels < positions)


def _require_equal(name: str, found: Codes, expected: Codes) -> None:
    if (found != expected).any():
        raise RuntimeError(f"{name} gives other codes at batch {len(found)}: all variants must be exact")


def report(title: str, rows: list[Row], floor_ms: float) -> str:
    """A table; `floor_ms` is that of one sample."""
    naive = {row.batch: row.milliseconds for row in rows if row.variant == "naive"}
    lines = [f"### {title}", "", "| variant | batch | ms | samples/s | naive / this | this / floor |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row.batch, row.milliseconds)):
        mark = " (extrapolated)" if row.extrapolated else ""
        speed, ratio = 1e3 * row.batch / row.milliseconds, naive[row.batch] / row.milliseconds
        floors = row.milliseconds / (floor_ms * row.batch)
        lines.append(
            f"| {row.variant}{mark} | {row.batch} | {row.milliseconds:.2f} | {speed:.1f} | {ratio:.1f} | {floors:.1f} |"
        )
    return "\n".join(lines) + "\n"


def run(
    title: str, variants: Variants, extra: dict[str, Sample], batches: list[int], seconds: float, peak: float
) -> dict[str, Any]:
    samplers = {
        "row": variants.row(max(batches), filters=True),
        "row_unfiltered": variants.row(max(batches), filters=False),
        "pixel": variants.pixel(),
        "grid_jacobi": variants.grid_jacobi(),
        **extra,
    }
    if "prior_diagonal" in variants.bundle.manifest.graphs:
        samplers["diagonal"] = variants.diagonal(max(batches), filters=False)
        samplers["diagonal_filtered"] = variants.diagonal(max(batches), filters=True)
    floor_ms = 1e3 * multiply_adds(variants.bundle.graph_path("prior"), variants.grid) / peak
    rows = list(measure(samplers, variants, batches, seconds))
    print(report(title, rows, floor_ms), flush=True)
    naive = {row.batch: row.milliseconds for row in rows if row.variant == "naive"}
    return {
        "title": title,
        "grid": variants.grid,
        "multiply_adds_a_sample": multiply_adds(variants.bundle.graph_path("prior"), variants.grid),
        "floor_ms_a_sample": floor_ms,
        "load_seconds": load_seconds(variants),
        "rows": [asdict(row) for row in rows],
        "naive_over_this": {
            variant: {row.batch: naive[row.batch] / row.milliseconds for row in rows if row.variant == variant}
            for variant in ("row_unfiltered", "row", "diagonal", "diagonal_filtered")
            if variant in samplers
        },
    }


def load_seconds(variants: Variants) -> dict[str, float]:
    return {
        name: median_seconds(partial(variants.session, name), 0)
        for name in get_args(GraphName)
        if name in ("prior_row", "prior_row_unfiltered", *DIAGONAL_GRAPHS) and name in variants.bundle.manifest.graphs
    }


def run_random(options: argparse.Namespace, maker: SessionMaker, folder: Path, peak: float) -> dict[str, Any]:
    """The photographs' prior, with the variants that need its weights."""
    size = PriorSize(options.grid, options.grid)
    prior = random_prior(size)
    bundle, export_seconds = write_prior(prior, size, folder)
    variants = Variants(bundle, maker)
    table = np.array(variants.prior.frequency_table, np.int32)
    (folder / "horizontal.onnx").write_bytes(horizontal(PriorGraphWriter(prior)).SerializeToString())
    (folder / "scan.onnx").write_bytes(scan_row(PriorGraphWriter(prior), size.width, table).SerializeToString())
    (folder / "sorted.onnx").write_bytes(SortedRows(prior).row(size.width, table, filters=True).SerializeToString())
    extra = {
        "row_sorted": variants.sorted_row(max(options.random_batches), folder / "sorted.onnx"),
        "scan": variants.scan(max(options.random_batches), folder / "scan.onnx"),
        "row_jacobi": variants.row_jacobi(folder / "horizontal.onnx"),
    }
    title = f"{size.height}x{size.width}, random weights, {size.codebook_size} codes, {size.channels} channels"
    found = run(title, variants, extra, options.random_batches, options.seconds, peak)
    return {**found, "export_seconds": export_seconds}


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    peak = result["peak_multiply_adds_per_s"]
    parts = [
        "## The row sampler against the naive loop",
        f"`{result['command']}` on {machine_line(result['machine'])}.",
        f"{result['threads']} threads, peak {peak / 1e9:.1f} G multiply-adds/s. All variants drew the same codes. "
        "`naive` is one full teacher-forced forward a code; `this / floor` compares with the multiplications alone "
        "at the rate of a large MatMul. What each variant is: `benchmarks/sampler_variants.py`.",
    ]
    for prior in result["priors"].values():
        parts.append(report(prior["title"], [Row(**row) for row in prior["rows"]], prior["floor_ms_a_sample"]))
        loads = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in prior["load_seconds"].items())
        export_seconds = sum(prior.get("export_seconds", {}).values())
        written = f" All graphs were written in {export_seconds:.2f} s." if export_seconds else ""
        parts.append(f"Opened in: {loads}.{written}")
    return "\n\n".join(part.strip() for part in parts)


def main() -> None:
    options = parse()
    facts, command = machine(), command_line()
    maker = SessionMaker(CPU, options.threads)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        peak = peak_rate(maker, Path(temporary))
        print(f"{options.threads} threads, onnxruntime {ort.__version__}, peak {peak / 1e9:.1f} G multiply-adds/s\n")
        if (options.bundle / MANIFEST_FILE).is_file():
            bundle = load_bundle(options.bundle)
            results[bundle.manifest.name] = run(
                str(options.bundle), Variants(bundle, maker), {}, options.batches, options.seconds, peak
            )
        results["random"] = run_random(options, maker, Path(temporary), peak)
    head = {"benchmark": "sampler", "command": command, "machine": facts, "threads": options.threads}
    result = {**head, "peak_multiply_adds_per_s": peak, "priors": results}
    if options.record:
        write_result("sampler", result)
        write_section("sampler", page(result))
    print(json.dumps(result))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/mnist"), help="left out where there is none")
    parser.add_argument("--grid", type=int, default=32, help="height and width of the prior with random weights")
    parser.add_argument("--batches", type=_numbers, default=[1, 16, 64], help="of the bundle's prior")
    parser.add_argument("--random-batches", type=_numbers, default=[1, 16], help="of the prior with random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="of repeats of each measurement")
    parser.add_argument("--record", action="store_true", help="write docs/results/sampler.json and docs/benchmarks.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
