"""Bundles that can generate: small PixelCNNs with random weights, exported as real ones are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.settings import Settings
from tests.conftest import DEVICE, running
from tests.tiny_bundle import Weights, tiny_prior, write_tiny_bundle
from training.prior import PixelCNN


@dataclass(frozen=True)
class Generating:
    """ "digits": 28x28x1, 7x7 codes, 3 labels. "colour": any multiple of 4, 4x4 codes a tile, no labels."""

    folders: tuple[Path, ...]
    digits: PixelCNN
    colour: PixelCNN
    weights: Weights  # of "digits"

    @property
    def settings(self) -> dict[str, Any]:
        return {"bundles": self.folders, "device": DEVICE, "threads": 1}


@pytest.fixture(scope="session")
def generating(tmp_path_factory: pytest.TempPathFactory) -> Generating:
    folder = tmp_path_factory.mktemp("generating")
    digits, colour = tiny_prior(3), tiny_prior(0, seed=1)
    weights = write_tiny_bundle(folder / "digits", "digits", prior=digits)
    write_tiny_bundle(folder / "colour", "colour", any_size=True, prior=colour)
    write_tiny_bundle(folder / "silent", "silent")
    return Generating((folder / "digits", folder / "colour", folder / "silent"), digits, colour, weights)


@pytest.fixture(scope="session")
def generator(generating: Generating) -> Iterator[TestClient]:
    """One app with default limits for all tests that leave no trace in it."""
    with running(Settings(**generating.settings)) as client:
        yield client


@pytest.fixture
def make_generator(generating: Generating) -> Iterator[Callable[..., TestClient]]:
    """`make_generator(max_queued_samples=3)`: an app of its own with these settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(Settings(**{**generating.settings, **settings})))
