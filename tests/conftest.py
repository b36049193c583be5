"""Fixtures for every test of the service: tiny bundles, small real pictures, and a client of a running app."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.tiny_bundle import Weights, write_tiny_bundle

PICTURES = Path(__file__).parent / "fixtures" / "pictures"
DEVICE = os.environ.get("VQSERVE_TEST_DEVICE", "cpu")  # "cuda" on a GPU machine: CONTRIBUTING.md

# The servers of the tests are here: a proxy that the environment names would be asked for them, also by other programs.
for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")]:
    del os.environ[name]

# Random examples take the time that a busy machine gives them: a test that hangs is ended by pytest-timeout.
hypothesis_settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("busy machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured logs tell file names that are no UTF-8, which pytest-xdist could not send from process to process."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


@dataclass(frozen=True)
class Tiny:
    """Two bundles on disk and the weights for their oracles."""

    grey: Path  # "tiny": 28x28x1
    grey_weights: Weights
    colour: Path  # "tiny_colour": any multiple of 4, 3 channels
    colour_weights: Weights

    @property
    def settings(self) -> dict[str, Any]:
        return {"bundles": (self.grey, self.colour), "device": DEVICE, "threads": 1}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("bundles")
    grey, colour = folder / "tiny", folder / "tiny_colour"
    grey_weights = write_tiny_bundle(grey, "tiny")
    return Tiny(grey, grey_weights, colour, write_tiny_bundle(colour, "tiny_colour", any_size=True))


@contextmanager
def running(settings: Settings) -> Iterator[TestClient]:
    """A client of an app whose lifespan has started. Errors come back as answers, as they do over a socket."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def client(tiny: Tiny) -> Iterator[TestClient]:
    """One app with default limits for all tests that leave no trace in it."""
    with running(Settings(**tiny.settings)) as shared:
        yield shared


@pytest.fixture
def make_client(tiny: Tiny) -> Iterator[Callable[..., TestClient]]:
    """`make_client(max_pixels=100)`: an app of its own with these settings."""
    with_exit: list[Any] = []

    def make(**settings: Any) -> TestClient:
        context = running(Settings(**{**tiny.settings, **settings}))
        with_exit.append(context)
        return context.__enter__()

    yield make
    for context in with_exit:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def digit() -> bytes:
    """A real digit as PNG, 28x28 grey."""
    return (PICTURES / "digit_7.png").read_bytes()


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A real photograph as JPEG, 96x64 RGB."""
    return (PICTURES / "ladybird_crop.jpg").read_bytes()
