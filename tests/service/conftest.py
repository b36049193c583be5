"""Bundles that can generate: small PixelCNNs with random weights, exported as real ones are; one to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.bundle import load_bundle
from service.settings import Settings
from tests.conftest import DEVICE, running
from tests.service.serving import serving
from tests.tiny_bundle import Weights, tiny_prior, write_tiny_bundle
from training.models.prior import PixelCNN


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


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """One that a test may change."""
    write_tiny_bundle(tmp_path / "tiny", "tiny")
    return tmp_path / "tiny"


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every graph that there is: 7x7 codes of K = 16 and D = 8, 3 labels, guidance, a grid for bands."""
    folder = tmp_path_factory.mktemp("bundle") / "whole"
    write_tiny_bundle(folder, "whole", prior=tiny_prior(vertical_layers=1))
    assert len(load_bundle(folder).manifest.graphs) == 13
    return folder


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "colour"
    write_tiny_bundle(folder, "colour", any_size=True, prior=tiny_prior(0))
    return folder


@pytest.fixture(scope="module")
def address(generating: Generating) -> Iterator[tuple[str, int]]:
    with serving(*generating.folders) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)
