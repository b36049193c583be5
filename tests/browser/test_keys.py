"""A service that asks for an API key: the form for it, which keys are kept, and what is there without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.arriving import COUNT_OPENED, DISPATCH
from tests.browser.chromium import browsing, unchecked
from tests.browser.reading import line, settle
from tests.service.serving import serving
from tests.tiny_bundle import Weights


@pytest.fixture(scope="module")
def guarded(bundles: tuple[Path, Weights]) -> Iterator[str]:
    """The address of a service that asks for "a-secret-key"."""
    with serving(bundles[0], VQSERVE_API_KEYS="someone:a-secret-key") as (_, address):
        yield f"{address}/"


@pytest.fixture
def page(browser: Browser, guarded: str) -> Iterator[Page]:
    """The page as it is without a key."""
    with browsing(browser, guarded) as opened:
        yield opened


def test_a_key_is_asked_for_and_not_shown(page: Page) -> None:
    expect(page.locator("#problem-title")).to_have_text("No or wrong API key")
    expect(page.locator("footer a:visible")).to_have_text(["metrics", "ready?"])
    page.fill("#key", "a-secret-key")
    page.get_by_role("button", name="Use key").click()
    page.locator("#codec-lines li").first.wait_for()
    settle(page)
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.locator("#model")).to_be_focused()  # the button that had the focus is gone
    expect(page.locator("footer a:visible")).to_have_text(["metrics", "ready?"])  # a link sends no key
    expect(page.locator("#problem")).to_be_hidden()
    assert '-H "Authorization: Bearer $VQSERVE_KEY"' in line(page, "Picture to codes")
    assert "a-secret-key" not in page.content()


def try_key(page: Page, key: str) -> None:
    page.fill("#key", key)
    page.get_by_role("button", name="Use key").click()


@pytest.mark.parametrize(
    ("key", "title", "detail"),
    [
        ("abcdefghij\u200b", "This API key cannot be sent", "Its character 11 (U+200B) cannot be sent in a header"),
        ("another-key", "No or wrong API key", "Send a valid key"),
    ],
)
def test_a_key_that_fails_is_not_kept(page: Page, key: str, title: str, detail: str) -> None:
    page.locator("#key-form").wait_for()
    page.click("#problem-close")
    try_key(page, key)
    expect(page.locator("#problem-title")).to_have_text(title)
    expect(page.locator("#problem-detail")).to_contain_text(detail)
    expect(page.locator("#problem")).to_be_visible()
    expect(page.locator("#problem-again")).to_be_hidden()
    expect(page.locator("#key-form")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.reload()
    expect(page.locator("#problem-title")).to_have_text("No or wrong API key")
    expect(page.locator("#key-form")).to_be_visible()
    try_key(page, " a-secret-key ")  # as it may have been copied
    settle(page)
    expect(page.locator("#key-form")).to_be_hidden()
    page.reload()
    settle(page)  # this key is kept


@pytest.mark.parametrize("refused", ["#clear", "#generate"])
def test_a_key_that_is_revoked_is_asked_for_again(page: Page, refused: str) -> None:
    """Regression: the form came with a reload only, and with it the picture was gone."""
    try_key(page, "a-secret-key")
    settle(page)
    page.select_option("#model", "digits")
    page.click("#clear")
    settle(page)
    drawn = page.locator("#decoded-facts").inner_text()
    page.evaluate("sessionStorage.setItem('vqserve-key', 'a-revoked-key')")
    page.click(refused)
    expect(page.locator("#problem-title")).to_have_text("No or wrong API key")
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#key")).to_have_value("")
    try_key(page, "a-secret-key")
    expect(page.locator("#key-form")).to_be_hidden()
    settle(page)
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#decoded-facts")).to_have_text(drawn)
    expect(page.locator(".stale")).to_have_count(0)


def test_a_connection_that_fails_leaves_the_key_in_its_form(browser: Browser, guarded: str) -> None:
    with unchecked(browser) as page:
        page.goto(guarded)
        page.locator("#key-form").wait_for()
        page.route("**/models", lambda route: route.abort())
        try_key(page, "a-secret-key")
        expect(page.locator("#problem-title")).to_have_text("The service cannot be reached")
        expect(page.locator("#key-form")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        page.unroute("**/models")
        page.get_by_role("button", name="Use key").click()
        settle(page)
        expect(page.locator("#key-form")).to_be_hidden()


def test_before_a_model_is_known_there_is_nothing_to_use(page: Page) -> None:
    """Regression: controls without a model ended in a TypeError, told as a fault of the page."""
    expect(page.locator("#problem-title")).to_have_text("No or wrong API key")
    page.evaluate(COUNT_OPENED)
    page.evaluate(DISPATCH, ["paste", "a file", "file"])
    assert page.evaluate("window.opened") == 0
    expect(page.locator("#problem-title")).to_have_text("No or wrong API key")
    expect(page.locator("section:visible, select:visible")).to_have_count(0)
    page.fill("#key", "a-secret-key")
    page.keyboard.press("Enter")
    settle(page)
    expect(page.locator("section:visible")).to_have_count(2)
