"""The page as a whole: who can use it, on what, and what it is made of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from starlette.testclient import TestClient

from service import playground
from tests.browser.chromium import browsing
from tests.browser.conftest import Site
from tests.browser.reading import hold, line, settle, wait_for_requests
from tests.service.serving import serving
from tests.tiny_bundle import Weights

FORBID_STORAGE = """Object.defineProperty(window, "sessionStorage", {
    get() {
        throw new DOMException("Access is denied", "SecurityError");
    },
})"""

CONTROLS = "button, input, select, a[href], [tabindex='0'], [role=grid], [role=img]"
NAMELESS = """(controls) => [...document.querySelectorAll(controls)]
    .filter((node) => node.checkVisibility() || node.matches("input"))
    .filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.length))
    .map((node) => node.outerHTML)"""


def test_every_control_has_a_name(page: Page) -> None:
    settle(page)
    assert page.evaluate(NAMELESS, CONTROLS) == []


def test_what_happens_is_announced(page: Page) -> None:
    expect(page.locator("#announcement")).to_contain_text("Encoded to 7 by 7 codes.")
    page.click("#generate")
    expect(page.locator("#announcement")).to_have_text("16 samples are ready.")
    page.fill("#code", "3")
    page.keyboard.press("Enter")
    expect(page.locator("#announcement")).to_contain_text("Decoded again. MSE 0.")
    page.get_by_text("Erase", exact=True).click()
    page.press("#codes", "Space")
    page.click("#complete")
    expect(page.locator("#announcement")).to_contain_text("The erased codes are completed. MSE 0.")


def test_the_tab_key_reaches_the_controls_in_reading_order(page: Page) -> None:
    settle(page)
    reached: dict[str, None] = {}  # in order; the tab key goes round
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.setdefault(page.evaluate("document.activeElement.id"))
    expected = [
        "model",
        "pad",
        "file",
        "clear",
        "save-picture",
        "codes",
        "save-decoded",
        "code",
        "palette",
        "label",
        "n",
    ]
    assert [name for name in reached if name in expected] == expected


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, site: Site, width: int) -> None:
    with browsing(browser, site.address, width=width) as page:
        page.click("#generate")
        page.locator("#sheet img").nth(15).wait_for()
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_long_names_are_no_wider_than_the_screen(browser: Browser, site: Site) -> None:
    """Regression: the list of labels made the page twice as wide as a phone."""

    def lengthen(route: Route) -> None:
        listed = route.fetch().json()
        listed["models"][0]["labels"] = [f"{number}, as in {'a long name ' * 9}" for number in range(3)]
        listed["models"][1]["name"] = "long-name-" * 9
        route.fulfill(json=listed)

    with browsing(browser, site.address, width=390) as page:
        page.route("**/models", lengthen)
        page.reload()
        settle(page)
        page.select_option("#label", "1")
        page.click("#generate")
        page.locator("#sheet img").nth(15).wait_for()
        page.route("**/generate", lambda route: route.fulfill(status=404, json={"title": "a" * 200, "detail": ""}))
        page.click("#generate")
        page.locator("#problem").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_name_from_right_to_left_takes_no_number_with_it(browser: Browser, site: Site) -> None:
    """Regression: numbers after Arabic letters belong to them, so that the caption began with those of the bits."""

    def translate(route: Route) -> None:
        listed = route.fetch().json()
        listed["models"][0]["labels"] = ["قطة", "كلب", "طائر"]
        route.fulfill(json=listed)

    with browsing(browser, site.address) as page:
        page.route("**/models", translate)
        page.reload()
        settle(page)
        page.select_option("#label", "1")
        page.click("#generate")
        page.locator("#sheet img").nth(15).wait_for()
        label, bits = (page.locator(".caption bdi").nth(index).bounding_box() for index in (0, 1))
        assert label is not None and bits is not None
        assert label["x"] + label["width"] <= bits["x"]
        assert page.locator(".caption").first.inner_text().startswith("كلب · ")


def test_a_browser_without_storage_is_told(browser: Browser, site: Site) -> None:
    """Regression: the page stayed empty."""
    page = browser.new_page()
    page.add_init_script(FORBID_STORAGE)
    page.goto(site.address)
    expect(page.locator("#problem-title")).to_have_text("The browser forbids the page to store data")
    expect(page.locator("#problem-detail")).to_contain_text("sessionStorage. The browser says: Access is denied")
    expect(page.locator("#waiting")).to_be_hidden()
    page.close()


def test_a_key_is_asked_for_and_not_shown(browser: Browser, bundles: tuple[Path, Weights]) -> None:
    with (
        serving(bundles[0], VQSERVE_API_KEYS="someone:a-secret-key") as (_, address),
        browsing(browser, f"{address}/") as page,
    ):
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
def test_a_key_that_fails_is_not_kept(
    browser: Browser, bundles: tuple[Path, Weights], key: str, title: str, detail: str
) -> None:
    with (
        serving(bundles[0], VQSERVE_API_KEYS="someone:a-secret-key") as (_, address),
        browsing(browser, f"{address}/") as page,
    ):
        page.locator("#key-form").wait_for()
        page.click("#problem-close")
        try_key(page, key)
        expect(page.locator("#problem-title")).to_have_text(title)
        expect(page.locator("#problem-detail")).to_contain_text(detail)
        expect(page.locator("#problem")).to_be_visible()
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
def test_a_key_that_is_revoked_is_asked_for_again(
    browser: Browser, bundles: tuple[Path, Weights], refused: str
) -> None:
    """Regression: the form came with a reload only, and with it the picture was gone."""
    with (
        serving(bundles[0], VQSERVE_API_KEYS="someone:a-secret-key") as (_, address),
        browsing(browser, f"{address}/") as page,
    ):
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


def test_a_service_that_is_slow_is_waited_for_in_words(browser: Browser, site: Site) -> None:
    """Regression: the page was empty, and later its frames were."""
    page = browser.new_page()
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
    page.close()


@pytest.mark.parametrize("broken", ["main.js", "pad.js"])
@pytest.mark.parametrize("how", ["lost", "of another version"])
def test_scripts_that_do_not_load_are_told(browser: Browser, site: Site, broken: str, how: str) -> None:
    """Regression: the page said for ever that it waits for the service to list its models."""
    page = browser.new_page()

    def spoil(route: Route) -> None:
        if how == "lost":
            route.abort()
        else:
            route.fulfill(body='import { nothing } from "./dom.js";', content_type="text/javascript")

    page.route(f"**/{broken}", spoil)
    page.goto(site.address)
    expect(page.locator("#waiting")).to_have_text(
        "A script of the page does not load. See whether the service runs, then reload the page."
    )
    page.close()


def test_back_keeps_what_a_click_does(page: Page, site: Site) -> None:
    """Regression: "Erase" was chosen, and a click changed the code."""
    settle(page)
    page.get_by_text("Erase", exact=True).click()
    page.goto(f"{site.address}readyz")
    page.go_back()
    settle(page)
    chosen = page.evaluate("document.querySelector('input[name=mode]:checked').value")
    assert page.locator("#erase-tools").is_visible() == (chosen == "erase")
    assert page.locator("#change-tools").is_visible() == (chosen == "change")


def test_a_connection_that_fails_leaves_the_key_in_its_form(browser: Browser, bundles: tuple[Path, Weights]) -> None:
    with serving(bundles[0], VQSERVE_API_KEYS="someone:a-secret-key") as (_, address):
        page = browser.new_page()  # without `browsing`, for which a failed connection is a fault
        page.goto(f"{address}/")
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
        page.close()


def test_every_file_is_served_and_no_other(client: TestClient) -> None:
    assert {*playground.FILES, playground.PAGE} == {path.name for path in playground.FOLDER.iterdir()}
    for name in playground.FILES:
        response = client.get(f"/playground/{name}")
        assert response.content == (playground.FOLDER / name).read_bytes()
        kind = {"js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
        assert response.headers["content-type"].startswith(kind)
    for name in ("index.html", "..%2fplayground.py", "nothing.js"):
        assert client.get(f"/playground/{name}").headers["content-type"] == "application/problem+json"


def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    """It was, each time, though its ETag had been given."""
    for path in ("/", "/playground/main.js"):
        tag = client.get(path).headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = client.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("asked", ["bytes=abc", "bytes=99999999-", "bytes=0-1"])
def test_files_are_sent_whole(client: TestClient, asked: str) -> None:
    """Regression: what `Range` got wrong was answered with 400 as plain text, or with 416 and nothing."""
    for path, name in (("/", playground.PAGE), ("/playground/main.js", "main.js")):
        response = client.get(path, headers={"range": asked})
        assert (response.status_code, response.headers["accept-ranges"]) == (200, "none")
        assert response.content == (playground.FOLDER / name).read_bytes()


def test_the_page_forbids_foreign_and_inline_scripts(client: TestClient) -> None:
    response = client.get("/")
    assert "default-src 'self'; img-src 'self' blob: data:;" in response.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", response.text)
