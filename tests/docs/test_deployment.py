"""docs/deployment.md, what an operator reads at night: the fields of the log, and the way back to an earlier bundle."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.reference import DOCS, ROOT
from service.settings import Settings
from tests.docs.blocks import ADDRESS, run_script
from tests.service.serving import serving
from tests.tiny_bundle import write_tiny_bundle


def section(title: str) -> str:
    page = (DOCS / "deployment.md").read_text(encoding="utf-8")
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_log_has_no_field_that_the_page_does_not_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    with serving(tmp_path / "tiny", VQSERVE_ACCESS_LOG="true", VQSERVE_API_KEYS="alice:a-key-for-tests") as (_, url):
        httpx.get(f"{url}/models", headers={"X-API-Key": "a-key-for-tests"})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    named = set(re.findall(r"`(\w+)`", section("What the log says")))
    assert {field for line in lines for field in line} <= named
    (request,) = (line for line in lines if line.get("path") == "/models")
    assert (request["message"], request["key"]) == ("request", "alice")


def lines_of_faults() -> Iterator[str]:
    """Each line of the levels error and critical, with its values as %s."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr="error" | "critical" | "exception"),
                    args=[ast.Constant(value=str(line)), *_],
                ):
                    yield line


# Of libraries, each seen in a log: the server's two, and OpenTelemetry's.
_OF_LIBRARIES = (
    "Application startup failed. Exiting.",
    "Cancel %d running task(s), timeout graceful shutdown exceeded",
    "Failed to export spans batch due to",  # and why
)


@pytest.mark.parametrize("line", [*lines_of_faults(), *_OF_LIBRARIES])
def test_the_page_says_what_to_do_at_each_line_of_a_fault(line: str) -> None:
    told = [row.split(" | ")[0] for row in section("What the log says").splitlines() if row.startswith("| `")]
    parts = [part.strip() for part in re.split(r"%[sgd]|[:;,]", line) if len(part.split()) > 1]
    assert [row for row in told if any(part in row for part in parts)]


def test_the_shards_of_a_folder_can_be_sent_to_a_service() -> None:
    """The page named the format only, and every container of a whole shard is refused with 413."""
    most = Settings.model_fields["max_pictures_per_request"].default
    assert f"encode with `--pictures-per-shard {most}`" in section("Encoding a folder")


def test_the_way_back_leads_back(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "models/mine", "mine")
    keep, *back = re.findall(r"^    (.*)$", section("Going back to an earlier bundle"), re.MULTILINE)
    assert len(back) == 2
    with serving(tmp_path / "models/mine") as (_, url):

        def version() -> str:
            found: str = httpx.get(f"{url}/models/mine").json()["version"]
            return found

        before = version()
        run_script(keep, tmp_path)
        write_tiny_bundle(tmp_path / "models/mine", "mine", seed=1)
        httpx.post(f"{url}/models/mine/reload").raise_for_status()
        assert version() != before
        run_script("\n".join(back).replace(ADDRESS, url), tmp_path)
        assert version() == before
