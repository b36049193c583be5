"""Before the page is there: a service that is slow, scripts that do not load, a browser that keeps nothing."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.browser.chromium import unchecked
from tests.browser.conftest import Site
from tests.browser.reading import hold, settle, wait_for_requests

FAILS = "A script of the page fails. The browser says:"
RELOAD = "Reload the page, or take a newer browser."

FORBID_STORAGE = """Object.defineProperty(window, "sessionStorage", {
    get() {
        throw new DOMException("Access is denied", "SecurityError");
    },
})"""


def test_nothing_can_be_asked_for_before_the_models_are_known(browser: Browser, site: Site) -> None:
    with unchecked(browser) as page:
        page.route("**/models", lambda route: None)  # an answer that never comes
        page.goto(site.address, wait_until="domcontentloaded")
        assert page.locator("#generate").count() == 1 and not page.locator("#generate").is_visible()


def test_a_browser_without_storage_is_told(browser: Browser, site: Site) -> None:
    """Regression: the page stayed empty."""
    with unchecked(browser) as page:
        page.add_init_script(FORBID_STORAGE)
        page.goto(site.address)
        expect(page.locator("#problem-title")).to_have_text("The browser forbids the page to store data")
        expect(page.locator("#problem-detail")).to_contain_text("sessionStorage. The browser says: Access is denied")
        expect(page.locator("#waiting")).to_be_hidden()


def test_a_service_that_is_slow_is_waited_for_in_words(browser: Browser, site: Site) -> None:
    """Regression: the page was empty, and later its frames were."""
    with unchecked(browser) as page:
        lists, pictures = hold(page, "**/models"), hold(page, "**/encode*", most=1)
        page.goto(site.address, wait_until="domcontentloaded")
        expect(page.get_by_text("Waiting for the service to list its models…")).to_be_visible()
        wait_for_requests(page, lists)
        lists[0].continue_()
        wait_for_requests(page, pictures)
        expect(page.locator("#waiting")).to_be_hidden()
        words = "getComputedStyle(document.querySelector('.frame:has(#decoded)'), '::after')"
        assert page.evaluate(f"{words}.content") == '"Working…"'
        page.wait_for_function(f"{words}.opacity === '1'")
        pictures[0].continue_()
        settle(page)
        assert page.evaluate(f"{words}.content") == "none"


@pytest.mark.parametrize("broken", ["main.js", "pad.js"])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (None, "A script of the page does not load. See whether the service runs, then reload the page."),
        ('import { nothing } from "./dom.js";', re.compile(f"{FAILS} .* export named 'nothing'. {RELOAD}")),
        ("export const Pad = null; nothing();", f"{FAILS} Uncaught ReferenceError: nothing is not defined. {RELOAD}"),
    ],
    ids=["lost", "of another version", "failing"],
)
def test_scripts_that_do_not_load_are_told(
    browser: Browser, site: Site, broken: str, body: str | None, told: str | re.Pattern[str]
) -> None:
    """Regression: the page said for ever that it waits for the service to list its models, and later only the first."""
    with unchecked(browser) as page:

        def spoil(route: Route) -> None:
            if body is None:
                route.abort()
            else:
                route.fulfill(body=body, content_type="text/javascript")

        page.route(f"**/{broken}", spoil)
        page.goto(site.address)
        expect(page.locator("#waiting")).to_have_text(told)


def test_without_scripts_nothing_is_waited_for(browser: Browser, site: Site) -> None:
    """Regression: beside the words that it needs JavaScript, the page waited for the service to list its models."""
    with unchecked(browser, java_script_enabled=False) as page:
        page.goto(site.address)
        expect(page.locator("noscript p")).to_be_visible()
        expect(page.locator("#waiting")).to_be_hidden()
