"""Where the focus is after a control was used, and that it can be seen there."""

from __future__ import annotations

import base64

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import browsing
from tests.browser.conftest import Site
from tests.browser.reading import hold, line, settle, wait_for_requests
from tests.browser.test_workbench import DIGIT, SEND_FILE

COVERED = """() => {
    const [problem, one] = [document.getElementById("problem"), document.activeElement];
    if (one === document.body || problem.contains(one)) return null;
    const [above, box] = [problem.getBoundingClientRect(), one.getBoundingClientRect()];
    return box.top < above.bottom && box.bottom > above.top ? one.outerHTML : null;
}"""


def press(page: Page, name: str, key: str = "Enter") -> None:
    page.focus(name)
    page.keyboard.press(key)


def test_generate_keeps_the_focus_and_starts_once(page: Page) -> None:
    """Regression: while it drew, the button was `disabled`, which takes the focus away."""
    held = hold(page, "**/generate?*")
    press(page, "#generate")
    wait_for_requests(page, held)
    expect(page.locator("#announcement")).to_have_text("Drawing…")
    expect(page.locator("#generate")).to_be_disabled()
    expect(page.locator("#generate")).to_be_focused()
    page.keyboard.press("Enter")
    press(page, "#n")  # sends a form too
    page.focus("#generate")
    held[0].continue_()
    page.locator("#sheet img").nth(15).wait_for()
    expect(page.locator("#generate")).to_be_focused()
    expect(page.locator("#generate")).to_be_enabled()
    assert len(held) == 1


def test_cancel_keeps_the_focus(page: Page) -> None:
    held = hold(page, "**/generate?*")
    press(page, "#generate")
    wait_for_requests(page, held)
    press(page, "#cancel", "Space")
    expect(page.locator("#cancel")).to_be_disabled()
    expect(page.locator("#cancel")).to_be_focused()


def test_restore_and_complete_keep_the_focus(page: Page) -> None:
    settle(page)
    page.get_by_text("Erase", exact=True).click()
    press(page, "#codes", "Space")
    press(page, "#complete")
    page.locator("#complete-lines li").wait_for()
    expect(page.locator("#complete")).to_be_disabled()
    expect(page.locator("#complete")).to_be_focused()
    press(page, "#codes", "Space")
    press(page, "#restore")
    expect(page.locator("#restore")).to_be_disabled()
    expect(page.locator("#restore")).to_be_focused()


def test_the_focus_returns_from_a_message(page: Page) -> None:
    """Regression: with its button, which was hidden, the focus was gone."""
    page.fill("#temperature", "0")
    press(page, "#generate")
    page.locator("#problem").wait_for()
    press(page, "#problem-close")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#generate")).to_be_focused()


def test_the_focus_goes_to_the_top_with_a_sample(page: Page) -> None:
    """Regression: it stayed at the sample, out of sight, and the next Tab led back there."""
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    press(page, ".sample >> nth=2")
    expect(page.locator("#codec-heading")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#pad")).to_be_focused()


def test_a_line_that_is_written_anew_keeps_the_focus(page: Page) -> None:
    """Regression: its button was another one as soon as an answer came, and the next Tab began at the top."""
    settle(page)
    held, before = hold(page, "**/decode*", most=1), line(page, "Codes to picture")
    page.fill("#code", str((int(page.input_value("#code")) + 1) % 16))
    press(page, "#code")
    wait_for_requests(page, held)
    copy = page.get_by_role("button", name="Copy: Codes to picture")
    copy.focus()
    held[0].continue_()
    expect(page.get_by_role("group", name="curl: Codes to picture")).not_to_have_text(before)
    expect(copy).to_be_focused()


def test_the_line_of_a_sheet_keeps_the_focus(page: Page) -> None:
    """Regression: another one took its place when the sheet was drawn."""
    held = hold(page, "**/generate?*")
    press(page, "#generate")
    wait_for_requests(page, held)
    page.get_by_role("button", name="Copy: This sheet").focus()
    held[0].continue_()
    page.get_by_text("Row by row", exact=True).wait_for()
    expect(page.get_by_role("button", name="Copy: This sheet")).to_be_focused()


@pytest.mark.parametrize("then", ["#palette", "#pad"])
def test_a_picture_that_is_pasted_gives_the_focus_back(page: Page, then: str) -> None:
    """Regression: the palette lost it while no code could be changed, until those of the picture came."""
    settle(page)
    page.focus("#palette")
    held = hold(page, "**/encode*", most=1)
    page.evaluate(SEND_FILE, ["paste", base64.b64encode(DIGIT.read_bytes()).decode()])
    wait_for_requests(page, held)
    expect(page.locator("#palette")).not_to_be_focused()
    if then == "#pad":
        page.focus(then)
    held[0].continue_()
    settle(page)
    expect(page.locator(then)).to_be_focused()


@pytest.mark.parametrize("key", ["Tab", "Shift+Tab"])
def test_a_message_covers_nothing_that_has_the_focus(browser: Browser, site: Site, key: str) -> None:
    """Regression: on a phone it stayed on top of the fields that were reached backwards."""
    with browsing(browser, site.address, width=320, height=640) as page:
        settle(page)
        page.fill("#n", "20000")
        press(page, "#generate")
        page.locator("#problem").wait_for()
        covered = set()
        for _ in range(40):
            page.keyboard.press(key)
            covered.add(page.evaluate(COVERED))
        assert covered <= {None}
