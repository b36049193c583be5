"""What the code has, the pages name; what the pages name, the code has."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import ENDPOINTS
from service.bundle.manifest import Manifest
from service.errors import PROBLEMS, Problem, problem_type
from service.reference import ALERTS, DOCS, OPENAPI, ROOT, alerts, openapi, pages, rewritten
from service.routes.endpoints import Endpoint
from service.settings import Settings
from service.telemetry.metrics import Declared, Metrics

Schema = dict[str, Any]
PAGES = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert rewritten(text) == text, "run make docs"


def test_the_openapi_file_is_the_apps() -> None:
    assert OPENAPI.read_text(encoding="utf-8") == openapi(), "run make docs"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`VQSERVE_{name.upper()}`" in page("configuration.md")


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_every_route_is_documented(endpoint: Endpoint) -> None:
    assert f"`{endpoint.method} {endpoint.path}`" in page("api.md")


@pytest.mark.parametrize("path", [one.path for one in ENDPOINTS if one.method == "POST" and one.path.count("/") == 1])
def test_every_route_for_pictures_has_a_section(path: str) -> None:
    assert f"\n## POST {path}\n" in page("api.md")


@pytest.mark.parametrize("metric", Metrics().declared, ids=lambda metric: metric.name)
def test_every_metric_is_documented(metric: Declared) -> None:
    assert f"`{metric.name}`" in page("metrics.md")


def test_every_alert_is_documented_with_what_to_do() -> None:
    """In words: the fields that Prometheus fills in would be bars in the table."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
    rows = alerts().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| `{rule['alert']}`" for rule in rules]
    assert {row.count("|") for row in rows} == {5}
    assert not [row for row in rows if "{{" in row]
    assert alerts() in page("metrics.md").split("\n## Alerts\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.slug)
def test_every_error_type_is_documented(problem: type[Problem]) -> None:
    assert f"`{problem_type(problem.slug)}`" in page("api.md")


def test_every_field_of_the_manifest_is_documented_and_no_other() -> None:
    table = page("bundle-format.md").split("## The manifest")[1]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    schema = Manifest.model_json_schema()
    assert named - {"prior"} == set(fields_of(schema, schema["$defs"]))  # "prior" is there to say what null means


def fields_of(schema: Schema, models: Mapping[str, Schema], at: str = "") -> Iterator[str]:
    """Dotted names of every leaf of a JSON schema; `[]` stands for the entries of a list or mapping of models."""
    if "$ref" in schema:
        yield from fields_of(models[schema["$ref"].rpartition("/")[2]], models, at)
    elif "properties" in schema:
        for name, inner in schema["properties"].items():
            yield from fields_of(inner, models, f"{at}.{name}".lstrip("."))
    elif model := next((one for one in schema.get("anyOf", []) if "$ref" in one), None):
        yield from fields_of(model, models, at)
    elif "$ref" in (entries := _entries(schema)):
        yield from fields_of(entries, models, f"{at}.[]")
    else:
        yield at


def _entries(schema: Schema) -> Schema:
    entries = schema.get("items", schema.get("additionalProperties"))
    return entries if isinstance(entries, dict) else {}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_of_the_page_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = re.findall(r"(?:^    |^|`|^\$ )make ([a-z-]+)", text, re.MULTILINE)
    modules = set(re.findall(r"python -m ((?:training|export|service|client|benchmarks|deploy)[\w.]*)", text))
    assert set(called) <= set(targets)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_anchor_of_the_page_is_a_heading(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        page_text = (path.parent / target if target else path).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", page_text, re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_security_names_each_route_that_a_proxy_closes() -> None:
    """A reload has two routes; who closed the one that was named had left the other open."""
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    closed = {one.path for one in ENDPOINTS if one.path.endswith(("/reload", "/load", "/metrics"))}
    assert len(closed) == 3
    assert [path for path in closed if path not in text] == []


def test_the_readmes_folders_and_pictures_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = re.findall(r"^    ([a-z]+)/ {2,}", text, re.MULTILINE)
    pictures = re.findall(r'src(?:set)?="([^"]+)"', text)
    assert len(folders) >= 8
    assert [name for name in (*folders, *pictures) if not (ROOT / name).exists()] == []


def test_the_readme_links_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in DOCS.glob("*.md") if f"(docs/{path.name})" not in text] == []
