"""What is done before its answer is there, and answers that come late or in another order than they were asked for."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import browsing
from tests.browser.conftest import Site
from tests.browser.reading import JSON, body_of, hold, line, pixels_of, saved, settle, shown_codes, wait_for_requests
from tests.conftest import PICTURES
from tests.tiny_bundle import oracle_pixels

DIGIT = PICTURES / "digit_4.png"
PHOTO = PICTURES / "ladybird_crop.jpg"

HOLD_THE_FIRST_FILE = """() => {
    const open = window.createImageBitmap;
    window.createImageBitmap = async (...given) => {
        window.createImageBitmap = open;
        await new Promise((resolve) => (window.release = resolve));
        return open(...given);
    };
}"""

# What is drawn comes when the test says so.
STREAM_ROWS = """() => {
    const send = window.fetch;
    window.fetch = (url, options) => {
        if (!url.includes("/generate?")) return send(url, options);
        const start = (controller) => {
            const encoder = new TextEncoder();
            const event = (data) => `event: row\\ndata: ${JSON.stringify(data)}\\n\\n`;
            window.sendRow = (data) => controller.enqueue(encoder.encode(event(data)));
            options.signal.addEventListener("abort", () => controller.error(options.signal.reason));
        };
        return Promise.resolve(new Response(new ReadableStream({ start })));
    };
}"""


def assert_no_code_can_be_changed(page: Page) -> None:
    assert page.locator("#change-tools").evaluate("(tools) => tools.inert")
    expect(page.locator("#restore")).to_be_disabled()
    expect(page.locator("#change-tools")).to_have_class("tools stale")


def test_before_there_are_codes_none_can_be_changed(browser: Browser, site: Site) -> None:
    """Regression: a click on the palette ended in a TypeError that nobody was told of."""
    with browsing(browser, site.address) as page:
        settle(page)  # else the request that is held may be one of before the page is loaded again
        held = hold(page, "**/encode*", most=1)
        page.reload()
        wait_for_requests(page, held)
        assert_no_code_can_be_changed(page)
        box = page.locator("#palette").bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + 5, box["y"] + 5)
        held[0].continue_()
        settle(page)
        assert not page.locator("#change-tools").evaluate("(tools) => tools.inert")
        expect(page.locator(".stale")).to_have_count(0)


def test_codes_of_a_refused_picture_cannot_be_changed(page: Page) -> None:
    """Regression: those of the picture before were, and decoded beside the new one as if they were its own."""
    page.set_input_files("#file", PHOTO)
    settle(page)
    page.fill("#code", "3")
    page.keyboard.press("Enter")
    expect(page.locator("#restore")).to_be_enabled()
    page.select_option("#fit", "keep")
    page.locator("#problem").wait_for()
    settle(page)
    assert_no_code_can_be_changed(page)


@pytest.mark.parametrize("model", ["colour", "silent"])
def test_codes_of_another_model_cannot_be_changed(page: Page, model: str) -> None:
    """Regression: they were sent to the new model, which decoded them. One that takes the same pictures still did."""
    settle(page)
    held = hold(page, "**/encode*", most=1)
    page.select_option("#model", model)
    wait_for_requests(page, held)
    assert_no_code_can_be_changed(page)
    held[0].continue_()
    settle(page)
    assert not page.locator("#change-tools").evaluate("(tools) => tools.inert")


def test_a_decoded_picture_that_is_late_does_not_cover_that_of_newer_codes(page: Page, site: Site) -> None:
    """Regression: beside the codes that had been changed stood the picture of those before."""
    settle(page)
    held = hold(page, "**/decode*", most=1)
    page.set_input_files("#file", DIGIT)
    wait_for_requests(page, held)
    page.fill("#code", str((int(page.input_value("#code")) + 1) % 16))
    with page.expect_response("**/decode*"):
        page.keyboard.press("Enter")
    held[0].continue_()
    settle(page)
    expected = oracle_pixels(np.array([shown_codes(page)]), site.weights, 1)[0, :, :, 0]
    assert (pixels_of(saved(page, "#save-decoded")) == expected).all()


@pytest.mark.parametrize("then", ["another file", "#clear", "Delete"])
def test_a_file_that_is_late_does_not_replace_what_came_after_it(page: Page, tmp_path: Path, then: str) -> None:
    settle(page)
    page.evaluate(HOLD_THE_FIRST_FILE)
    Image.new("L", (28, 28), 200).save(tmp_path / "late.png")
    page.set_input_files("#file", tmp_path / "late.png")
    page.wait_for_function("Boolean(window.release)")
    if then == "another file":
        page.set_input_files("#file", DIGIT)
    elif then == "#clear":
        page.click(then)
    else:
        page.focus("#pad")
        page.keyboard.press(then)
    expect(page.locator("#codes")).to_have_class("grid")
    page.evaluate("window.release()")
    settle(page)
    wanted = np.asarray(Image.open(DIGIT)) if then == "another file" else np.zeros((28, 28))
    assert (pixels_of(saved(page, "#save-picture")) == wanted).all()


def test_a_file_that_is_late_goes_to_the_model_that_is_chosen_then(page: Page) -> None:
    settle(page)
    page.evaluate(HOLD_THE_FIRST_FILE)
    page.set_input_files("#file", PHOTO)
    page.wait_for_function("Boolean(window.release)")
    page.select_option("#model", "colour")
    expect(page.locator("#codes-facts")).to_have_text("4 × 4 of 16")
    page.evaluate("window.release()")
    expect(page.locator("#codes-facts")).to_have_text("16 × 24 of 16")
    settle(page)


def erase_the_first_two(page: Page) -> None:
    page.get_by_text("Erase", exact=True).click()
    page.focus("#codes")
    for key in ("Control+Home", "Space", "ArrowRight", "Space"):
        page.keyboard.press(key)
    expect(page.locator("#erase-help")).to_have_text("2 of 49 codes are erased.")


def change_code(page: Page, *keys: str) -> int:
    """That to which the keys lead, into the next one: which it is."""
    page.get_by_text("Change", exact=True).click()
    page.focus("#codes")
    for key in keys:
        page.keyboard.press(key)
    code = (int(page.input_value("#code")) + 1) % 16
    page.fill("#code", str(code))
    page.keyboard.press("Enter")
    return code


def assert_decoded(page: Page, site: Site, codes: list[list[int]]) -> None:
    settle(page)
    assert shown_codes(page) == codes
    expected = oracle_pixels(np.array([codes]), site.weights, 1)[0, :, :, 0]
    assert (pixels_of(saved(page, "#save-decoded")) == expected).all()


def test_codes_that_are_changed_during_a_completion_are_kept(page: Page, site: Site) -> None:
    """Regression: its result put the former ones in their place, and what had been erased meanwhile was not."""
    settle(page)
    before = shown_codes(page)
    erase_the_first_two(page)
    held = hold(page, "**/generate?*")
    page.fill("#seed", "3")
    page.click("#complete")
    wait_for_requests(page, held)
    first = change_code(page, "Control+Home")
    last = change_code(page, "Control+End")
    page.get_by_text("Erase", exact=True).click()
    for key in ("Home", "Space"):
        page.press("#codes", key)
    held[0].continue_()
    page.locator("#complete-lines li").wait_for()
    settle(page)
    expect(page.locator("#erase-help")).to_have_text("1 of 49 codes are erased.")
    after = shown_codes(page)
    drawn = body_of(line(page, "This completion"))
    answer = httpx.post(f"{site.address}generate", json=drawn, headers=JSON).json()["items"][0]["codes"]
    first_row = [first, answer[0][1], *before[0][2:]]
    assert_decoded(page, site, [first_row, *before[1:6], [*before[6][:6], last]])
    assert after == shown_codes(page)


def test_codes_that_are_changed_before_a_completion_is_cancelled_are_kept(page: Page, site: Site) -> None:
    settle(page)
    before = shown_codes(page)
    erase_the_first_two(page)
    page.evaluate(STREAM_ROWS)
    page.click("#complete")
    drawn = [(code + 2) % 16 for code in before[0]]
    page.evaluate("(codes) => sendRow({ row: 0, items: [{ codes }] })", drawn)
    page.focus("#codes")
    page.keyboard.press("Control+Home")
    expect(page.locator("#codes [role=gridcell]")).to_have_text(f"Row 1, column 1, code {drawn[0]}")
    first = change_code(page, "Control+Home")
    page.get_by_text("Erase", exact=True).click()
    page.click("#complete-cancel")
    expect(page.locator("#erase-help")).to_have_text("1 of 49 codes are erased.")
    assert_decoded(page, site, [[first, *before[0][1:]], *before[1:]])


def test_what_changed_codes_decode_to_is_waited_for_in_words(page: Page) -> None:
    """Regression: on a slow network the picture of the codes before looked like theirs."""
    settle(page)
    held = hold(page, "**/decode*", most=1)
    change_code(page)
    wait_for_requests(page, held)
    for name in ("#decoded", "#difference", "#codec-lines"):
        expect(page.locator(f".stale{name}")).to_have_count(1)
    held[0].fulfill(status=422, json={"title": "Refused", "detail": "For now.", "status": 422})
    page.locator("#problem").wait_for()
    expect(page.locator(".stale")).to_have_count(1)
    expect(page.locator(".stale#codec-lines")).to_have_count(1)  # they would send the codes of before
    change_code(page)
    expect(page.locator("#problem")).to_be_hidden()
    settle(page)
    expect(page.locator(".stale")).to_have_count(0)


@pytest.mark.parametrize("refused", [True, False])
def test_lines_and_times_of_another_model_are_pale(page: Page, refused: bool) -> None:
    """Regression: a line that was copied while the new model's were waited for, or refused, asked the one before."""
    settle(page)
    held = hold(page, "**/encode*", most=1)
    page.select_option("#model", "silent")
    wait_for_requests(page, held)
    if refused:
        held[0].fulfill(status=429, json={"title": "Refused", "detail": "For now.", "status": 429})
        page.locator("#problem").wait_for()
    for name in ("#codec-lines", "#times", "#bytes"):
        expect(page.locator(f".stale{name}")).to_have_count(1)
    if refused:
        page.get_by_role("button", name="Try again").click()
    else:
        held[0].continue_()
    settle(page)
    expect(page.locator(".stale")).to_have_count(0)
    assert "model=silent" in line(page, "Picture to codes")


def test_a_drag_that_erases_ends_with_its_codes(page: Page) -> None:
    """Regression: it went on over those of another model: "209 of 49 codes are erased"."""
    page.select_option("#model", "colour")
    page.set_input_files("#file", PHOTO)
    expect(page.locator("#codes-facts")).to_have_text("16 × 24 of 16")
    settle(page)
    page.get_by_text("Erase", exact=True).click()
    box = page.locator("#codes").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] - 4)
    page.select_option("#model", "digits")
    expect(page.locator("#codes-facts")).to_have_text("7 × 7 of 16")
    settle(page)
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    expect(page.locator("#erase-help")).to_have_text("Drag over the codes to erase a region.")
