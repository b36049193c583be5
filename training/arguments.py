"""What the arguments of a command may be."""

from __future__ import annotations

import argparse
from pathlib import Path


def folder_named(name: str) -> Path:
    """Raises ArgumentTypeError for no name: a shell's variable that is not set is not the current folder."""
    if not name:
        raise argparse.ArgumentTypeError("it is empty: name a folder")
    return Path(name)
