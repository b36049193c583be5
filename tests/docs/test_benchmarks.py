"""docs/benchmarks.md says what the committed results say: every section is written again from its JSON document."""

from __future__ import annotations

import json

import pytest

from benchmarks.pages import result, sections
from benchmarks.report import PAGE, ROOT
from training.model_report import END, START, section

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
