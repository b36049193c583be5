"""A command whose reader has left, as behind `| head`, ends without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

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
