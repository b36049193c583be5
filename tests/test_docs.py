"""Pages that name code: every dotted name in backticks exists, and every file that a page points to is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAME = re.compile(r"`((?:training|export|service|vqserve|benchmarks)(?:\.[A-Za-z_]+)+)`")
FILE = re.compile(r"`((?:training|export|service|vqserve|tests|docker|deploy|docs|benchmarks)/[\w./-]+\.\w+)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)")


def resolve(name: str) -> object:
    """The object that a dotted name means: the longest importable module, then attributes."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[split:]:
            found = getattr(found, attribute)
        return found
    raise LookupError(name)


def test_there_are_pages() -> None:
    assert {"README.md", "how-it-works.md", "architecture.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_on_the_page_exists(page: Path) -> None:
    for name in NAME.findall(page.read_text()):
        resolve(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_link_of_the_page_exists(page: Path) -> None:
    text = page.read_text()
    missing = [path for path in FILE.findall(text) if not (ROOT / path).exists()]
    missing += [path for path in LINK.findall(text) if not (page.parent / path.strip()).exists()]
    assert missing == []


def test_every_package_is_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    packages = [path.parent for top in ("service", "training", "export") for path in (ROOT / top).glob("*/__init__.py")]
    assert len(packages) > 15
    assert [path for path in packages if f"/{path.name}/`" not in page and f"`{path.name}/`" not in page] == []


def test_the_lectures_formulas_are_all_mapped() -> None:
    """One row a formula: the functions of the equation map."""
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    needed = {
        "reparameterise",
        "gaussian_kl",
        "gaussian_log_likelihood",
        "VAE.forward",
        "nearest",
        "VQVAE.forward",
        "codebook_loss",
        "commitment_loss",
        "straight_through",
        "EMAQuantizer",
        "PixelCNN",
    }
    named = set(NAME.findall(page))
    assert {name for name in needed if not any(found.endswith("." + name) for found in named)} == set()
