"""The service with small bundles that can generate, and a browser before it. Skipped where there is no browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.chromium import browsing, chromium, find_chromium
from tests.service.serving import serving
from tests.tiny_bundle import Weights, tiny_prior, write_tiny_bundle


@dataclass(frozen=True)
class Site:
    address: str  # of a service with "digits" (28x28 grey, 3 labels), "colour" (any multiple of 4), "silent" (no prior)
    weights: Weights  # of "digits"


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """What --bundle takes, and the weights of the first."""
    folder = tmp_path_factory.mktemp("playground")
    weights = write_tiny_bundle(folder / "digits", "digits", prior=tiny_prior(3))
    write_tiny_bundle(folder / "colour", "colour", any_size=True, prior=tiny_prior(0, seed=1))
    write_tiny_bundle(folder / "silent", "silent")
    return Path(",".join(str(folder / name) for name in ("digits", "colour", "silent"))), weights


@pytest.fixture(scope="session")
def site(bundles: tuple[Path, Weights]) -> Iterator[Site]:
    with serving(bundles[0]) as (_, address):
        yield Site(f"{address}/", bundles[1])


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """No longer than for these tests: Playwright keeps an event loop running, beside which no other can be started."""
    if find_chromium() is None:
        pytest.skip("the playground's test needs a browser: apt-get install chromium")
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """The playground, once it shows the codes of its first picture."""
    with browsing(browser, site.address) as opened:
        opened.locator("#codec-lines li").first.wait_for()
        yield opened
