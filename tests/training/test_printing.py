"""A command whose reader has left, as behind `| head`, ends without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import ROOT
from training.printing import READER_LEFT, status_of


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "training", "--help"],
        ["-m", "export", "--help"],
        ["-m", "export.renew", "--help"],
        ["-c", "import sys; from training.printing import status_of; sys.exit(status_of(lambda: print('x' * 99999)))"],
    ],
)
def test_a_reader_that_has_left_is_no_traceback(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    options = {
        "cwd": ROOT,
        "env": os.environ | {"PYTHONUNBUFFERED": ""},
    }  # argparse would be told, and keep it to itself
    try:
        done = subprocess.run(
            [sys.executable, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, **options
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (READER_LEFT, "")


def test_the_status_is_that_of_the_command() -> None:
    assert status_of(lambda: 2) == 2


@pytest.mark.parametrize(
    ("package", "without", "said"),
    [
        ("service", "uvicorn", "'.[service,cpu]'"),
        ("service", "onnxruntime", "'.[service,cpu]'"),
        ("training", "yaml", "'.[training]'"),
        ("training", "lightning", "'.[training]'"),
        ("export", "onnx", "'.[training]'"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(package: str, without: str, said: str, tmp_path: Path) -> None:
    """It was a traceback."""
    code = f"import runpy, sys; sys.modules[{without!r}] = None; runpy.run_module({package!r}, run_name='__main__')"
    of_each = {
        "service": [],
        "training": ["fit", "--config", "training/configs/tiny.yaml", "--out", str(tmp_path / "run")],
        "export": [str(tmp_path), str(tmp_path / "bundle")],
    }
    command = [sys.executable, "-c", code, *of_each[package]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert without in line and f"pip install {said} in the repository" in line
