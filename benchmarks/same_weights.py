"""Whether training repeats itself: two runs of one configuration and one seed, tensor by tensor, bit by bit.

    OMP_NUM_THREADS=1 make train
    OMP_NUM_THREADS=1 python -m training fit --config training/configs/mnist.yaml --out runs/second
    python -m benchmarks.same_weights [runs/mnist runs/second] [--record]

In: two finished runs. Out: how many numbers of each stage were compared and how many differ, in one line of JSON;
`--record` also writes docs/results/same_weights.json and a section of docs/benchmarks.md, beside the quality of the
shipped bundle, which the same command made on another processor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.report import command_line, machine, table, write_result, write_section
from service.bundle import load_bundle

NAME = "same_weights"
STAGES = ("autoencoder", "prior")
SHIPPED = Path("models/mnist")
FIGURES = {"mse": "MSE", "perplexity": "perplexity", "bits_per_code": "bits per code, with the label"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", default=[Path("runs/mnist"), Path("runs/second")])
    parser.add_argument("--record", action="store_true", help="write docs/results and docs/benchmarks.md")
    options = parser.parse_args(arguments)
    if len(options.runs) != 2 or options.runs[0].resolve() == options.runs[1].resolve():
        parser.error("two runs are compared")
    first, second = (json.loads((run / "config.json").read_text(encoding="utf-8")) for run in options.runs)
    if first != second:
        parser.error("the runs are not of one configuration")
    metrics = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in options.runs]
    quality = load_bundle(SHIPPED).manifest.quality.model_dump()
    result = {
        "command": command_line(),
        "machine": machine(),
        "commit": metrics[0]["commit"],
        "libraries": metrics[0]["libraries"],
        "seconds": [found["seconds"] for found in metrics],
        "stages": {stage: compare(*(run / f"{stage}.safetensors" for run in options.runs)) for stage in STAGES},
        "quality": {figure: metrics[1]["quality"][figure] for figure in FIGURES},
        "quality_shipped": {figure: quality[figure] for figure in FIGURES},
    }
    if options.record:
        write_result(NAME, result)
        write_section(NAME, page(result))
    print(json.dumps(result))


def compare(first: Path, second: Path) -> dict[str, int]:
    """Numbers compared, and those whose bits differ. A tensor that one file lacks, or has in another shape or dtype,
    raises ValueError: these are not two runs of one configuration."""
    ours, theirs = load_file(first), load_file(second)
    if _shapes(ours) != _shapes(theirs):
        raise ValueError(f"{first} and {second} do not hold the same tensors")
    different = sum(_differences(ours[name], theirs[name]) for name in ours)
    return {"tensors": len(ours), "numbers": sum(x.size for x in ours.values()), "different": different}


def _shapes(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (x.shape, x.dtype.str) for name, x in tensors.items()}


def _differences(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> int:
    bits = [np.ascontiguousarray(x).reshape(-1, 1).view(np.uint8) for x in (first, second)]  # (numbers, bytes of one)
    return int((bits[0] != bits[1]).any(axis=1).sum())


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    libraries = ", ".join(f"{name} {number}" for name, number in result["libraries"].items())
    minutes = " and ".join(f"{sum(seconds.values()) / 60:.0f}" for seconds in result["seconds"])
    stages = [
        (stage, *(f"{found[key]:,}" for key in ("tensors", "numbers", "different")))
        for stage, found in result["stages"].items()
    ]
    quality = [
        (title, f"{result['quality'][figure]:.4g}", f"{result['quality_shipped'][figure]:.4g}")
        for figure, title in FIGURES.items()
    ]
    return "\n\n".join(
        (
            "## Training twice",
            f"`{result['command']}`: two full trainings of `training/configs/mnist.yaml` with its seed, of {minutes} "
            f"minutes on one thread of {result['machine']['cpu']}, {libraries}. How many of their numbers differ in "
            "any bit:",
            table(("stage", "tensors", "numbers", "different"), stages),
            "The shipped `models/mnist` was made by the same command on another processor, which rounds other sums in "
            "another order. So the weights differ; the quality on the test digits is the same to a few percent:",
            table(("figure", "trained here", "shipped"), quality),
        )
    )


if __name__ == "__main__":
    main()
