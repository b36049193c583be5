"""docs/benchmarks.md says what the committed results say: every section is written again from its JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from benchmarks import (
    batch_sizes,
    generation_kill,
    generation_load,
    large_picture,
    load,
    mnist_curve,
    peers_report,
    rate_distortion_report,
    sample_fidelity,
    sampler,
)
from benchmarks.abuse import common
from benchmarks.report import PAGE, RESULTS, ROOT

Page = Callable[[dict[str, Any]], str]
SECTIONS: dict[str, Page] = {
    "batch_sizes": batch_sizes.page,
    "generation_kill": generation_kill.page,
    "large_picture": large_picture.page,
    "load": load.page,
    "mnist_curve": mnist_curve.page,
    "rate_distortion_mnist": partial(rate_distortion_report.page, "mnist"),
    "rate_distortion_photos": partial(rate_distortion_report.page, "photos"),
    "sample_fidelity": sample_fidelity.page,
    "sampler": sampler.page,
}


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def shown(name: str) -> str:
    text = PAGE.read_text()
    return text.split(f"<!-- begin: {name} -->", 1)[1].split(f"<!-- end: {name} -->", 1)[0].strip()


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_that_of_its_result(name: str) -> None:
    assert shown(name) == SECTIONS[name](result(name)).strip()


def test_the_section_of_the_generation_load_is_that_of_its_result() -> None:
    found = result("generation_load")
    rows = [generation_load.Result(**row) for row in found["results"]]
    assert shown("generation_load") == generation_load.page(found, rows).strip()


def test_the_section_of_the_peers_is_that_of_its_result() -> None:
    found = result("peers")
    servers = {name: {int(c): point for c, point in by_c.items()} for name, by_c in found["servers"].items()}
    assert shown("peers") == peers_report.page({**found, "servers": servers}).strip()


def test_the_section_of_the_abuse_is_that_of_its_results() -> None:
    recorded = {path.stem.removeprefix("abuse_"): result(path.stem) for path in sorted(RESULTS.glob("abuse_*.json"))}
    assert shown("abuse") == common.page(recorded).strip()


@pytest.mark.parametrize("name", ["mnist", "photos-f8"])
def test_the_shipped_bundle_is_portable(name: str) -> None:
    """The recorded run was of the bundle that is shipped, and found no difference in any configuration."""
    found = result(f"portability_{name}")
    manifest = json.loads((ROOT / "models" / name / "manifest.json").read_text())
    assert found["version"] == manifest["version"]
    assert len(found["configurations"]) >= 7
    for one in found["configurations"]:
        assert (one["containers_different"], one["codes_different"]) == (0, 0), one["name"]
