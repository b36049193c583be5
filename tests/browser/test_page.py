"""The page as a whole: its names, its order, its width."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.chromium import browsing, unchecked
from tests.browser.conftest import Site
from tests.browser.reading import line, settle

WIDE_LETTERS = """() => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync("* { letter-spacing: 0.12em !important; word-spacing: 0.16em !important }");
    document.adoptedStyleSheets = [sheet];
}"""

SWAGGER_UI = """window.SwaggerUIBundle = Object.assign(({ url }) => (window.asked = url), { presets: {} });"""

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


# The first two are a phone of 390 whose letters are twice, and one and a half times, as large.
@pytest.mark.parametrize("width", [195, 260, 320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, site: Site, width: int) -> None:
    with browsing(browser, site.address, width=width) as page:
        page.click("#generate")
        page.locator("#sheet img").nth(15).wait_for()
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, 1024])
def test_facts_are_not_cut_where_letters_stand_wide(browser: Browser, site: Site, width: int) -> None:
    """Regression: on a narrow phone, or beside three others, with the distances of WCAG 1.4.12, decibels were cut."""
    with browsing(browser, site.address, width=width) as page:
        settle(page)
        page.evaluate(WIDE_LETTERS)
        for facts in page.locator("figcaption .facts").all():
            assert facts.evaluate("(one) => one.scrollWidth <= one.clientWidth"), facts.inner_text()


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
        page.route("**/generate?*", lambda route: route.fulfill(status=404, json={"title": "a" * 200, "detail": ""}))
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


def test_a_password_in_the_address_of_the_page_stays_there(browser: Browser, site: Site) -> None:
    """Regression: `fetch` refuses such an address, so that the page was dead and its message showed the password."""
    with unchecked(browser) as page:
        page.goto(site.address.replace("//", "//somebody:a-password@"))
        page.locator("#codec-lines li").first.wait_for()
        assert page.evaluate("document.baseURI") != site.address  # the browser has kept it
        assert line(page, "Picture to codes").endswith(f" {site.address}encode")
        assert "a-password" not in page.content()


def test_the_page_of_swagger_ui_asks_beside_itself(browser: Browser, site: Site) -> None:
    """Regression: behind a proxy that adds a path it asked outside of that."""
    with unchecked(browser) as page:
        page.route(
            "**/swagger-ui-bundle.js", lambda route: route.fulfill(body=SWAGGER_UI, content_type="text/javascript")
        )
        page.goto(f"{site.address}docs")
        assert page.evaluate("window.asked") == "openapi.json"
