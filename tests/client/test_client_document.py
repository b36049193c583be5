"""The blocks of docs/client.md run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.client.conftest import serving
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import tiny_prior, write_tiny_bundle

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "client.md").read_text(encoding="utf-8"), re.DOTALL)
DIGITS = ("digit_0.png", "digit_1.png", "digit_7.png")


def commands(folder: Path) -> dict[str, list[str]]:
    """How each language runs; `vqserve` is this checkout's."""
    script = folder / "bin" / "vqserve"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vqserve "$@"\n')
    script.chmod(0o755)
    node = shutil.which("node")
    assert node, "the JavaScript block needs node: install Node.js 18 or later"
    return {
        "bash": ["bash", "-euo", "pipefail", "-c"],
        "python": [sys.executable, "-c"],
        "javascript": [node, "--input-type=module", "-e"],
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a prior and ten labels."""
    folder = tmp_path_factory.mktemp("documented") / "digits"
    write_tiny_bundle(folder, "digits", prior=tiny_prior(10))
    return folder


@pytest.mark.parametrize(("language", "block"), BLOCKS)
def test_a_block_runs(language: str, block: str, tiny: Tiny, digits: Path, tmp_path: Path) -> None:
    for name in DIGITS:
        shutil.copy(PICTURES / name, tmp_path)
    command = commands(tmp_path)[language]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    with serving(tiny, bundles=(digits,)) as url:
        program = block.replace("http://localhost:8000", url)
        ran = subprocess.run([*command, program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_all_three_languages_are_shown() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python", "javascript"}


def test_curl_and_javascript_get_the_picture_of_the_service(
    make_client: Callable[..., TestClient], tiny: Tiny, digits: Path, tmp_path: Path, digit: bytes
) -> None:
    client = make_client(bundles=(digits,))
    codes = client.post("/encode", files={"img": digit}).json()["codes"]
    (tmp_path / "expected.png").write_bytes(client.post("/decode", json={"codes": codes}).content)
    for language, block in BLOCKS:
        if language == "javascript" or "curl" in block:
            test_a_block_runs(language, block, tiny, digits, _folder(tmp_path / language))
    expected = np.asarray(Image.open(tmp_path / "expected.png"))
    for path in ("javascript/from_javascript.png", "bash/digit.png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / path)), expected)
    assert np.array_equal(np.load(tmp_path / "bash" / "digits.npy")[2, :, :, 0], expected)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
