"""The smallest digits in real bytes: containers of 64 pictures, every header counted, no label given.

    python -m benchmarks.mnist_curve --only 32-small
    python -m benchmarks.mnist_small_end [data/mnist] [--run runs/curve/k32-small] [--record]

In: MNIST's test digits and the run of the curve's last point, which is exported first. Out: bytes a digit and the MSE
on [0,1] of every setting, in one line of JSON; `--record` also writes docs/results/mnist_small_end.json and a section
of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.picture_codecs import Vqserve
from benchmarks.rate_distortion import MNIST_TEST, TOGETHER, measure_together, read_mnist
from benchmarks.report import command_line, goal, machine, machine_line, table, write_result, write_section
from export.build import build_bundle
from training.runs import load_run

NAME = "mnist_small_end"
GOAL_BYTES, GOAL_MSE = 8.5, 0.0042


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/mnist"))
    parser.add_argument("--run", type=Path, default=Path("runs/curve/k32-small"))
    parser.add_argument("--record", action="store_true", help="write docs/results and docs/benchmarks.md")
    options = parser.parse_args(arguments)
    before, digits = machine(), read_mnist(options.folder / MNIST_TEST)
    with tempfile.TemporaryDirectory() as folder:
        manifest = build_bundle(options.run, Path(folder) / "bundle").manifest
        vqserve = Vqserve(Path(folder) / "bundle")
        rows = [asdict(measure_together(vqserve, digits, setting)) for setting in vqserve.settings]
    weight = load_run(options.run).config.autoencoder.quantizer.rate_weight
    result = {
        "command": command_line(),
        "machine": before,
        "version": manifest.version,
        "codebook_size": manifest.codes.codebook_size,
        "rate_weight": weight,
        "rows": rows,
        "goals": [smallest_within(rows)],
    }
    if options.record:
        write_result(NAME, result)
        write_section(NAME, page(result))
    print(json.dumps(result))


def smallest_within(rows: Sequence[dict[str, Any]], error: float = GOAL_MSE) -> dict[str, Any]:
    """The fewest bytes of all settings whose MSE is at most `error`, beside their goal."""
    sizes = [row["bytes_per_picture"] for row in rows if row["mse"] <= error]
    return goal(f"fewest bytes a digit at an MSE of at most {error:g}", min(sizes, default=None), at_most=GOAL_BYTES)


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = [
        (row["setting"], f"{row['bytes_per_picture']:.2f}", f"{row['mse']:.5f}", f"{row['psnr_db']:.2f}")
        for row in result["rows"]
    ]
    (smallest,) = result["goals"]
    return "\n\n".join(
        (
            "### The smallest digits in real bytes",
            f"`{result['command']}` on {machine_line(result['machine'])}. The point `32-small` of the table above (K = "
            f"{result['codebook_size']}, lambda {result['rate_weight']}), exported: {result['rows'][0]['pictures']:,} "
            f"test digits in containers of {TOGETHER}, headers counted, no label given. PSNR is the mean of the "
            f"digits'. The {smallest['figure']}: {smallest['value']:.2f} (goal: {smallest['goal']}).",
            table(("setting", "bytes a digit", "MSE", "PSNR"), rows),
        )
    )


if __name__ == "__main__":
    main()
