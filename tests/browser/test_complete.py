"""Erased codes and their completion by the prior, against the same request without the page."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.reading import body_of, hold, line, run_curl, saved, settle, shown_codes, wait_for_requests
from tests.browser.test_generate import CLICK_HELP
from tests.conftest import PICTURES

DIGIT = PICTURES / "digit_4.png"


def erase_the_first_code(page: Page) -> None:
    page.get_by_text("Erase", exact=True).click()
    page.focus("#codes")
    page.keyboard.press("Control+Home")
    page.keyboard.press("Space")
    expect(page.locator("#erase-help")).to_have_text("1 of 49 codes are erased.")


def open_alone(page: Page) -> tuple[object, str]:
    """The codes of a digit and its decibels, with nothing else going on."""
    page.set_input_files("#file", DIGIT)
    settle(page)
    return shown_codes(page), page.locator("#decoded-facts").inner_text()


def assert_only_the_digit(page: Page, alone: tuple[object, str]) -> None:
    settle(page)
    assert (shown_codes(page), page.locator("#decoded-facts").inner_text()) == alone
    expect(page.locator("#complete-lines li")).to_have_count(0)
    expect(page.locator("#complete-cancel")).to_be_disabled()
    expect(page.locator("#problem")).to_be_hidden()


def test_another_model_starts_with_an_empty_sheet(page: Page) -> None:
    erase_the_first_code(page)
    page.click("#complete")
    page.locator("#complete-lines li").wait_for()
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    expect(page.locator("#keep-seed")).to_be_visible()
    page.select_option("#model", "colour")
    settle(page)
    expect(page.locator(".sample")).to_have_count(0)
    expect(page.locator("#generate-facts")).to_have_text(CLICK_HELP)
    expect(page.locator("#keep-seed")).to_be_hidden()
    expect(page.locator("#complete-lines li")).to_have_count(0)
    assert page.locator("#times dt").all_inner_texts() == ["encode", "decode", "compress"]


def test_erase_a_region_and_complete_it(page: Page, tmp_path: Path) -> None:
    before = shown_codes(page)
    page.get_by_text("Erase", exact=True).click()
    box = page.locator("#codes").bounding_box()
    assert box is not None
    cell = box["width"] / 7
    page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 4.5 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 5.5 * cell, box["y"] + 6.5 * cell, steps=4)
    page.mouse.up()
    expect(page.locator("#erase-help")).to_have_text("12 of 49 codes are erased.")
    page.fill("#seed", "3")
    page.click("#complete")
    page.locator("#complete-lines li").wait_for()
    settle(page)
    known = body_of(line(page, "This completion"))["known"]
    erased = {(r, c) for r in range(7) for c in range(7) if known[r][c] is None}
    assert erased == {(r, c) for r in (4, 5, 6) for c in (2, 3, 4, 5)}
    after = shown_codes(page)
    assert all(after[r][c] == before[r][c] for r in range(7) for c in range(7) if (r, c) not in erased)
    run_curl(line(page, "This completion"), tmp_path)
    assert (tmp_path / "completed.png").read_bytes() == saved(page, "#save-decoded")


def test_erase_with_the_keyboard_and_cancel(page: Page) -> None:
    before = shown_codes(page)
    page.get_by_text("Erase", exact=True).click()
    page.focus("#codes")
    for key in ("Control+Home", "Space", "ArrowRight", "Space", "ArrowRight", "Space", "Space"):
        page.keyboard.press(key)
    expect(page.locator("#erase-help")).to_have_text("2 of 49 codes are erased.")
    page.route("**/generate?*", lambda route: None)
    page.click("#complete")
    page.click("#complete-cancel")
    expect(page.locator("#complete")).to_be_enabled()
    expect(page.locator("#erase-help")).to_have_text("2 of 49 codes are erased.")
    page.click("#restore")
    settle(page)
    expect(page.locator("#complete")).to_be_disabled()
    assert shown_codes(page) == before


def test_a_picture_ends_a_completion_that_waits(page: Page) -> None:
    """The digit got the codes of the completion, and 7.9 dB."""
    alone = open_alone(page)
    page.click("#clear")
    settle(page)
    erase_the_first_code(page)
    held = hold(page, "**/generate?*")
    page.click("#complete")
    wait_for_requests(page, held)
    with page.expect_event("requestfailed"):  # nobody waits for the answer any more
        page.set_input_files("#file", DIGIT)
    assert_only_the_digit(page, alone)


def test_codes_that_are_about_to_be_replaced_are_not_completed(page: Page) -> None:
    """The picture is there already and its codes are not."""
    alone = open_alone(page)
    page.click("#clear")
    settle(page)
    erase_the_first_code(page)
    encodings = hold(page, "**/encode*", most=1)
    expect(page.locator("#complete")).to_be_enabled()
    page.set_input_files("#file", DIGIT)
    wait_for_requests(page, encodings)
    expect(page.locator("#complete")).to_be_disabled()
    encodings[0].continue_()
    assert_only_the_digit(page, alone)


def test_a_completion_that_is_still_decoded_does_not_cover_a_picture(page: Page) -> None:
    alone = open_alone(page)
    page.click("#clear")
    settle(page)
    erase_the_first_code(page)
    decodings = hold(page, "**/decode*", most=1)
    page.click("#complete")
    wait_for_requests(page, decodings)
    page.set_input_files("#file", DIGIT)
    expect(page.locator("#decoded-facts")).to_have_text(alone[1])
    decodings[0].continue_()
    assert_only_the_digit(page, alone)


def test_restore_ends_a_completion(page: Page) -> None:
    """Regression: it went on, over the codes that had been restored."""
    alone = open_alone(page)
    erase_the_first_code(page)
    held = hold(page, "**/generate?*")
    page.click("#complete")
    wait_for_requests(page, held)
    with page.expect_event("requestfailed"):
        page.click("#restore")
    assert_only_the_digit(page, alone)


def test_a_model_without_a_prior(page: Page) -> None:
    page.select_option("#model", "silent")
    settle(page)
    expect(page.locator("#no-prior")).to_be_visible()
    expect(page.locator("#generate-form")).to_be_hidden()
    assert "model=silent" in line(page, "Picture to codes")
    page.get_by_text("Erase", exact=True).click()
    page.press("#codes", "Space")
    expect(page.locator("#erase-help")).to_have_text("This model has no prior, so it cannot complete erased codes.")
    expect(page.locator("#erase-how")).to_be_hidden()
    page.select_option("#model", "digits")
    settle(page)
    expect(page.locator("#erase-how")).to_be_visible()


def test_what_is_no_number_is_not_taken_for_the_default(page: Page) -> None:
    """Regression: codes were completed with a temperature of 1 where the field said "-"."""
    settle(page)
    erase_the_first_code(page)
    page.fill("#temperature", "")
    page.press("#temperature", "-")
    page.click("#complete")
    expect(page.locator("#temperature")).to_be_focused()
    expect(page.locator("#erase-help")).to_have_text("1 of 49 codes are erased.")
    expect(page.locator("#complete-cancel")).to_be_disabled()
    page.fill("#temperature", "1")
    page.click("#complete")
    page.locator("#complete-lines li").wait_for()
