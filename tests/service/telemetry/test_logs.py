"""What the log leaves out, at any level."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SAYS = """
import logging.config, sys
from service.telemetry.logs import log_config

logging.config.dictConfig(log_config(sys.argv[1]))
for name in ("service.app", "PIL.TiffImagePlugin"):
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger(name), level)("%s %s", name, level)
"""


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("debug", ["service.app debug", "service.app info", "service.app warning"]),
        ("warning", ["service.app warning"]),
    ],
)
def test_no_level_shows_what_a_picture_says_of_itself(level: str, lines: list[str]) -> None:
    """At `debug` Pillow logged every tag: names, places, comments; and one picture can have sixty thousand."""
    done = subprocess.run([sys.executable, "-c", _SAYS, level], capture_output=True, text=True, check=True)
    said = [line.split('"message":"')[1].split('"')[0] for line in done.stderr.splitlines()]
    assert [line for line in said if line.startswith("service.")] == lines
    pillows = [line.split()[1] for line in said if line.startswith("PIL.")]
    assert pillows == (["info", "warning"] if level == "debug" else ["warning"])
