"""Small real digits, and one tiny run that several tests only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import RunConfig, load_config
from training.fit import fit

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "tests" / "fixtures" / "mnist"  # 400 training and 100 test digits
TINY = ROOT / "training" / "configs" / "tiny.yaml"


def tiny_config(*overrides: str) -> RunConfig:
    return load_config(TINY, [f"data.source={DIGITS}", *overrides])


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny_config(), folder)
    return folder
