"""The section of docs/benchmarks.md on the GPU check. In: the documents of `export.gpu_check`. Out: Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report import table

RESULTS = ("gpu_check_mnist", "gpu_check_mnist_cuda_graphs", "gpu_check_mnist_256")
UNITS = {"pixels": " of 255"}  # of the largest difference
Document = dict[str, Any]


def page(documents: Sequence[Document]) -> str:
    """The documents of `RESULTS`, in their order."""
    plain, graphs, wide = documents
    device, versions = plain["device"], plain["versions"]
    compared = sum(row["compared"] for row in plain["parity"])
    return "\n".join(
        [
            "## On a GPU",
            "",
            f"`make gpu-check` with {plain['bundle']['name']} on one {device['name']} (driver "
            f"{device['driver_version']}, onnxruntime-gpu {versions['onnxruntime']}, Python {versions['python']}) "
            "beside the same machine's 16 CPUs, in three runs: the defaults, `VQSERVE_CUDA_GRAPHS=true`, and that with "
            f"`VQSERVE_MAX_BATCH=256 VQSERVE_MAX_GENERATE_BATCH=256`. Each run compared {compared:,} values of "
            "CUDA with the CPU's: "
            f"{_differences(documents)}. The machine held PyTorch's CUDA libraries, and of the CUDA provider's kernels "
            "those of this GPU's architecture. Pictures a second, graphs alone, without HTTP:",
            "",
            table(["work", "batch", "CUDA", "CUDA, graphs", "CPU"], _rows(plain, graphs, wide)),
        ]
    )


def _differences(documents: Sequence[Document]) -> str:
    """Of the distances small differences are expected, so that a check counts only those that are too large."""
    rows = [row for document in documents for row in document["parity"]]
    found = {
        f"{row['different']} of {row['compared']:,} {row['what']}, by {row['largest']:g}{UNITS.get(row['what'], '')}"
        for row in rows
        if row["different"]
    }
    distances = max((row["largest"] for row in rows if row["what"] == "distances"), default=0.0)
    if distances:
        found.add(f"distances, by at most {distances:.1g} of their span")
    assert all(document["passed"] for document in documents)
    return f"all passed, the only differences are {' and '.join(sorted(found))}" if found else "no difference"


def _rows(plain: Document, graphs: Document, wide: Document) -> list[list[str]]:
    """By work and batch; the larger batches are those of the last run alone."""
    off, on, cpu = _rates(plain, "device"), _rates(graphs, "device"), _rates(plain, "cpu")
    wide_on, wide_cpu = _rates(wide, "device"), _rates(wide, "cpu")
    rows = []
    for key in wide_on:
        rates = (off.get(key), on.get(key, wide_on[key]), cpu.get(key, wide_cpu[key]))
        rows.append([key[0], str(key[1]), *("-" if rate is None else f"{rate:,.0f}" for rate in rates)])
    return rows


def _rates(document: Document, column: str) -> dict[tuple[str, int], float]:
    return {(row["work"], row["batch"]): row[f"{column}_pictures_per_s"] for row in document["timings"]}
