"""The sections of docs/benchmarks.md, and that of docs/model-report.md, written again from the committed results:
`python -m benchmarks.pages`.

In: docs/results. Out: the same pages, every section that a result makes anew. A test compares the two, so a change of
a sentence needs no new measurement, and a number in a page cannot differ from its result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import (
    batch_sizes,
    decoder_sigma,
    generation_kill,
    generation_load_report,
    generation_simulation,
    gpu_page,
    guidance,
    large_picture,
    load,
    mnist_curve,
    mnist_small_end,
    peers_report,
    photo_perplexity,
    rate_distortion_report,
    same_weights,
    sample_fidelity,
    sampler,
)
from benchmarks.abuse import common
from benchmarks.report import PAGE, RESULTS, write_section
from training.compare.model_report import write_page

Result = dict[str, Any]


def result(name: str) -> Result:
    found: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _peers(found: Result) -> str:
    servers = {name: {int(c): point for c, point in by_c.items()} for name, by_c in found["servers"].items()}
    return peers_report.page({**found, "servers": servers})


PAGES: dict[str, Callable[[Result], str]] = {
    "batch_sizes": batch_sizes.page,
    "decoder_sigma": decoder_sigma.page,
    "generation_kill": generation_kill.page,
    "generation_load": generation_load_report.page,
    "generation_simulation": generation_simulation.page,
    "guidance": guidance.page,
    "large_picture": large_picture.page,
    "load": load.page,
    "mnist_curve": mnist_curve.page,
    "mnist_small_end": mnist_small_end.page,
    "peers": _peers,
    "photo_perplexity": photo_perplexity.page,
    "rate_distortion_mnist": partial(rate_distortion_report.page, "mnist"),
    "rate_distortion_photos": partial(rate_distortion_report.page, "photos"),
    "same_weights": same_weights.page,
    "sample_fidelity": sample_fidelity.page,
    "sampler": sampler.page,
}


def sections() -> dict[str, str]:
    """Every section by its name."""
    gpu, abuse = gpu_page.page([result(name) for name in gpu_page.RESULTS]), common.page(common.recorded())
    return {**{name: page(result(name)) for name, page in PAGES.items()}, "abuse": abuse, "gpu": gpu}


def main() -> None:
    for name, markdown in sections().items():
        write_section(name, markdown)
    write_page(result("compare"), PAGE.parent)


if __name__ == "__main__":
    main()
