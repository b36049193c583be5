"""New pictures and completed ones, as the page shows them, against the same request without the page."""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Site
from tests.browser.reading import (
    JSON,
    body_of,
    hold,
    line,
    pixels_of,
    run_curl,
    saved,
    settle,
    shown_codes,
    wait_for_requests,
)
from tests.conftest import PICTURES

DIGIT = PICTURES / "digit_4.png"
CLICK_HELP = "A click on a sample takes it to the top as the picture."

WATCH_ROWS = """() => {
    window.seen = [];
    const facts = document.getElementById("generate-facts");
    new MutationObserver(() => window.seen.push(facts.textContent)).observe(facts, { childList: true });
}"""


def fill_form(page: Page, **values: str) -> None:
    for name, value in values.items():
        page.fill(f"#{name.replace('_', '-')}", value)


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


def test_nothing_can_be_asked_for_before_the_models_are_known(browser: Browser, site: Site) -> None:
    page = browser.new_page()
    page.route("**/models", lambda route: None)  # an answer that never comes
    page.goto(site.address, wait_until="domcontentloaded")
    assert page.locator("#generate").count() == 1 and not page.locator("#generate").is_visible()
    page.close()


def test_guidance_waits_for_a_label(page: Page) -> None:
    assert page.locator("#guidance").is_disabled()
    page.select_option("#label", "0")
    assert page.locator("#guidance").is_enabled()
    page.select_option("#label", "")
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    assert "guidance" not in body_of(line(page, "The same sheet"))


def test_every_setting_reaches_the_service(page: Page, site: Site) -> None:
    page.select_option("#label", "1")
    fill_form(page, n="4", temperature="0.8", top_k="5", top_p="0.9", guidance="1.1", seed="7")
    page.evaluate(WATCH_ROWS)
    page.click("#generate")
    page.locator("#sheet img").nth(3).wait_for()
    settings = {"n": 4, "label": 1, "temperature": 0.8, "top_k": 5, "top_p": 0.9, "guidance": 1.1, "seed": 7}
    assert body_of(line(page, "The same sheet")) == settings
    items = httpx.post(f"{site.address}generate", json=settings, headers=JSON).json()["items"]
    sources = [image.get_attribute("src") for image in page.locator("#sheet img").all()]
    assert sources == [f"data:image/png;base64,{item['image']}" for item in items]
    bits = [f"label 1 · {item['bits']:.0f} bits" for item in items]
    assert page.locator("#sheet .caption").all_inner_texts() == bits
    assert "Seed 7;" in page.locator("#generate-facts").inner_text()


def test_the_sheet_fills_row_by_row(page: Page) -> None:
    page.evaluate(WATCH_ROWS)
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    rows = [text for text in page.evaluate("window.seen") if text.startswith("Row ")]
    assert rows == [f"Row {row} of 7" for row in range(1, 8)]


def test_keep_the_seed(page: Page) -> None:
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    page.click("#keep-seed")
    first = page.locator("#sheet img").first.get_attribute("src")
    assert f"Seed {page.input_value('#seed')};" in page.locator("#generate-facts").inner_text()
    fill_form(page, n="2")
    page.click("#generate")
    page.locator("#sheet img").nth(1).wait_for()
    assert page.locator("#sheet img").count() == 2
    assert page.locator("#sheet img").first.get_attribute("src") == first


def test_a_sample_becomes_the_picture(page: Page, site: Site) -> None:
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    answer = body_of(line(page, "The same sheet"))
    items = httpx.post(f"{site.address}generate", json=answer, headers=JSON).json()["items"]
    page.locator(".sample").nth(2).click()
    settle(page)
    decoded = httpx.post(f"{site.address}decode", json={"codes": items[2]["codes"]}).content
    assert (pixels_of(saved(page, "#save-picture")) == pixels_of(decoded)).all()


def test_cancel_ends_the_request(page: Page) -> None:
    """The answer is held back, so that there is time to cancel."""
    page.route("**/generate", lambda route: None)
    page.click("#generate")
    expect(page.locator("#generate")).to_be_disabled()
    with page.expect_event("requestfailed") as failed:
        page.click("#cancel")
    assert failed.value.url.endswith("/generate")
    expect(page.locator("#generate-facts")).to_have_text("Cancelled.")
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator(".sample")).to_have_count(0)


def test_the_first_row_makes_the_cells(page: Page) -> None:
    """Before it the page keeps its height, so that nothing moves under the pointer."""
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    height = page.evaluate("document.getElementById('sheet').offsetHeight")
    held = hold(page, "**/generate")
    page.click("#generate")
    wait_for_requests(page, held)
    expect(page.locator("#generate-facts")).to_have_text("Waiting for the first row…")
    expect(page.locator(".sample")).to_have_count(0)
    expect(page.locator("#keep-seed")).to_be_hidden()
    assert page.evaluate("document.getElementById('sheet').offsetHeight") == height
    held[0].continue_()
    page.locator("#sheet img").nth(15).wait_for()
    assert page.evaluate("document.getElementById('sheet').style.minHeight") == ""


def test_a_refused_sheet_leaves_no_cells(page: Page) -> None:
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    fill_form(page, n="20000")
    page.click("#generate")
    page.locator("#problem").wait_for()
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator(".sample")).to_have_count(0)
    expect(page.locator("#generate-facts")).to_have_text("")
    expect(page.locator("#keep-seed")).to_be_hidden()


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


def test_another_model_ends_a_sheet_that_waits(page: Page) -> None:
    settle(page)
    page.evaluate(WATCH_ROWS)
    held = hold(page, "**/generate")
    page.click("#generate")
    wait_for_requests(page, held)
    with page.expect_event("requestfailed"):
        page.select_option("#model", "colour")
    settle(page)
    expect(page.locator("#generate-facts")).to_have_text(CLICK_HELP)
    expect(page.locator("#generate")).to_be_enabled()
    assert "Cancelled." not in page.evaluate("window.seen")


def test_a_refusal_is_worded_by_the_service(page: Page, site: Site) -> None:
    fill_form(page, temperature="0", n="1")
    page.click("#generate")
    problem = httpx.post(f"{site.address}generate", json={"n": 1, "temperature": 0}).json()
    expect(page.locator("#problem-title")).to_have_text(problem["title"])
    expect(page.locator("#problem-detail")).to_have_text(problem["detail"])


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
    fill_form(page, seed="3")
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
    page.route("**/generate", lambda route: None)
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
    held = hold(page, "**/generate")
    page.click("#complete")
    wait_for_requests(page, held)
    page.set_input_files("#file", DIGIT)
    settle(page)
    held[0].continue_()
    page.wait_for_timeout(200)  # for an answer, if anybody still waits for one
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
    held = hold(page, "**/generate")
    page.click("#complete")
    wait_for_requests(page, held)
    with page.expect_event("requestfailed"):
        page.click("#restore")
    held[0].continue_()
    page.wait_for_timeout(200)
    assert_only_the_digit(page, alone)


def test_a_sheet_goes_on_when_a_picture_is_opened(page: Page) -> None:
    held = hold(page, "**/generate")
    page.click("#generate")
    wait_for_requests(page, held)
    page.set_input_files("#file", DIGIT)
    settle(page)
    held[0].continue_()
    page.locator("#sheet img").nth(15).wait_for()


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
