"""docs/benchmarks.md says what the committed results say: every section is written again from its JSON document."""

from __future__ import annotations

import json

import pytest

from benchmarks.pages import result, sections
from benchmarks.report import PAGE, ROOT
from training.compare.model_report import END, START, section

SECTIONS = sections()


def shown(name: str) -> str:
    text = PAGE.read_text()
    return text.split(f"<!-- begin: {name} -->", 1)[1].split(f"<!-- end: {name} -->", 1)[0].strip()


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_that_of_its_result(name: str) -> None:
    assert shown(name) == SECTIONS[name].strip(), "run make docs"


def test_the_model_report_is_that_of_its_result() -> None:
    text = (ROOT / "docs" / "model-report.md").read_text(encoding="utf-8")
    assert f"{START}\n{section(result('compare'))}{END}" in text, "run make docs"


@pytest.mark.parametrize("name", ["mnist", "photos", "photos-f8"])
def test_the_shipped_bundle_is_portable(name: str) -> None:
    """The recorded run was of the bundle that is shipped, and found no difference in any configuration."""
    found = result(f"portability_{name}")
    manifest = json.loads((ROOT / "models" / name / "manifest.json").read_text())
    assert found["version"] == manifest["version"]
    assert len(found["configurations"]) >= 7
    for one in found["configurations"]:
        assert (one["containers_different"], one["codes_different"]) == (0, 0), one["name"]


def test_what_is_written_by_hand_of_a_record_is_in_it() -> None:
    """A new record changed the tables, and the sentences beside them still told of the one before."""
    text, decisions = (
        " ".join((ROOT / "docs" / name).read_text().split()) for name in ("benchmarks.md", "architecture.md")
    )
    peers, faster, best = (result(name) for name in ("peers", "peers_faster_machine", "peers_fifth_day"))
    met, of = sum(one["met"] for one in peers["goals"]), len(peers["goals"])
    assert f"The table meets {met} of the {of} goals." in text
    rates = [
        {c: one["requests_per_s"] for c, one in found["servers"]["FastAPI, form"].items()} for found in (peers, faster)
    ]
    factors = [rates[1][connections] / rates[0][connections] for connections in rates[0]]
    assert f"baseline did {min(factors):.1f} to {max(factors):.1f} times as many requests" in text
    baseline = best["servers"]["FastAPI, form"]["1"]["requests_per_s"]
    alone = (
        f"FastAPI's form alone did {rates[0]['1']:,.0f} requests/s at 1 connection in the table, and {baseline:,.0f}"
    )
    assert alone in text
    again = result("abuse_slow_clients")["cases"]["half-closed"]["bad_connections"]
    assert f"{again:,} times in their 60 turns" in text
    overload = result("abuse_overload")
    refused = overload["cases"]["digits"]["statuses"]["429"] / overload["seconds"]
    assert f"beside {round(refused, -2):,.0f} refusals a second" in decisions


def test_what_is_written_by_hand_of_the_sampler_is_in_its_record() -> None:
    text, decisions = (
        " ".join((ROOT / "docs" / name).read_text().split()) for name in ("benchmarks.md", "architecture.md")
    )
    rows = result("sampler")["priors"]["random"]["rows"]
    ms = {(row["variant"], row["batch"]): row["milliseconds"] for row in rows}
    codes = 32 * 32

    def added(variant: str, batch: int) -> str:
        """Microseconds a code that filters take."""
        return f"{1e3 * (ms[variant, batch] - ms['row_unfiltered', batch]) / (codes * batch):.0f}"

    one, many = ([added(variant, batch) for variant in ("row", "row_sorted")] for batch in (1, 16))
    assert f"filters add {one[0]} µs a code with the counts and {one[1]} with the sort at batch 1" in text
    assert f"and {many[0]} and {many[1]} at batch 16" in text
    shares = [ms["diagonal", batch] / ms["row_unfiltered", batch] for batch in (1, 16)]
    assert f"{shares[0]:.1f}" == f"{shares[1]:.1f}"
    assert f"One sample of 32x32 codes takes {shares[0]:.1f} of the time, and so do 16" in decisions
    assert f"makes a row take {ms['row_sorted', 1] / ms['row', 1]:.1f} times as long" in decisions


def test_what_the_gpu_page_says_of_the_check_is_in_its_record() -> None:
    text = " ".join((ROOT / "docs" / "gpu.md").read_text().split())
    found = {row["what"]: row for row in result("gpu_check_mnist")["parity"]}
    pixels = found.pop("pixels")
    assert (pixels["different"], pixels["largest"]) == (1, 1)
    assert f"of {pixels['compared']:,} pixels one differed, by one level" in text
    assert 0 < found.pop("distances")["largest"] < 1e-6 and "distances by at most a millionth of their span" in text
    assert {row["different"] for row in found.values()} == {0}
    wide = {
        row["batch"]: row["device_ms"] for row in result("gpu_check_mnist_256")["timings"] if row["work"] == "generate"
    }
    assert f"256 take {wide[256] / wide[64]:.1f} times as long as 64" in text
