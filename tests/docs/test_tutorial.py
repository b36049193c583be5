"""docs/tutorial.md from its first block to its last, on a small folder of real pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import PICTURES
from tests.docs import blocks
from tests.docs.blocks import ADDRESS, ROOT, blocks_of, checkout, late_port, run_script

TILE = 32  # pixels
WIDTHS = (TILE, TILE + 1)
SMALLER = {  # of the page's numbers, those that take most of the time and that nothing it says hangs on
    "crop: 64 ": f"crop: {TILE} ",
    "trainer.autoencoder.steps=60 ": "trainer.autoencoder.steps=30 ",
    "trainer.autoencoder.validate_every=60 ": "trainer.autoencoder.validate_every=30 ",
}


def write_pictures(folder: Path) -> None:
    """Pieces of two photographs, twelve in all, in one sub-folder each, of two sizes, as in real folders.

    The suffix is upper-case, as cameras write it.
    """
    for name in ("elephants", "ladybird"):
        (folder / name).mkdir(parents=True)
        photo = _opened(PICTURES / f"{name}_crop.jpg")
        for index in range(6):
            left, top, width = index % 3 * TILE, index // 3 * TILE, WIDTHS[index % 2]
            photo.crop((left, top, left + width, top + TILE)).save(folder / name / f"{index}.PNG")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder after the last block, and what the blocks have printed."""
    folder = checkout(tmp_path_factory.mktemp("tutorial"))
    write_pictures(folder / "pictures")
    script = "\n".join(blocks_of(ROOT / "docs" / "tutorial.md", "sh"))
    for words, smaller in SMALLER.items():
        assert script.count(words) == 1, words
        script = script.replace(words, smaller)
    port = late_port()
    script = script.replace(ADDRESS, f"localhost:{port}").replace("--port 8000", f"--port {port}")
    return folder, run_script(script, folder)


def test_no_comment_follows_a_command() -> None:
    """zsh, the shell of macOS, takes what is typed behind `#` for words of the command."""
    script = "\n".join(blocks_of(ROOT / "docs" / "tutorial.md", "sh"))
    commands = re.sub(r"<<'END'\n.*?^END$", "", script, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^.*\S +#.*$", commands, re.MULTILINE) == []


def test_the_readers_own_bundles_are_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had followed the tutorial lost models/mine to the tests' own run of it: an export writes through a link."""
    mine, folder = tmp_path / "repository" / "models" / "mine", tmp_path / "checkout"
    mine.mkdir(parents=True)
    folder.mkdir()
    monkeypatch.setattr(blocks, "ROOT", tmp_path / "repository")
    assert [bundle.name for bundle in (blocks.checkout(folder) / "models").iterdir()] == ["mnist"]


def test_every_block_runs(finished: tuple[Path, str]) -> None:
    _, printed = finished
    assert '"bits_per_code"' in printed
    assert '"name":"mine"' in printed, "the reload did not answer"


def test_the_number_of_a_label_is_its_place_among_those_that_are_listed(finished: tuple[Path, str]) -> None:
    """The page read as if `label` took the name of a folder."""
    folder, printed = finished
    assert '"labels":["elephants","ladybird"]' in printed
    labelled, new = (np.asarray(_opened(folder / name)) for name in ("labelled.png", "new.png"))
    assert labelled.shape == new.shape


def test_the_pictures_come_back(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    decoded, again, new = (np.asarray(_opened(folder / name)) for name in ("decoded.png", "again.png", "new.png"))
    assert again.shape in [(TILE, width, 3) for width in WIDTHS]
    assert np.array_equal(decoded[:, : again.shape[1]], again)
    assert new.shape == (2 * TILE, 2 * TILE, 3), "a sheet of four pictures"
    raw_bytes = again.size * 6 // 8 // 48  # 6 bits for each 4x4 pixels of 3 channels
    assert (folder / "picture.vqc").stat().st_size < raw_bytes + 32


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()
