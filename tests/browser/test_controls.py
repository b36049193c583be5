"""Each control by itself: what it is called, what a finger, a key or a mouse does with it, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from playwright.sync_api import FloatRect, Page, expect

from service.prior.draws import SEED_LIMIT
from tests.browser.reading import line, pixels_of, saved, settle, shown_codes
from tests.conftest import PICTURES

PHOTO = PICTURES / "ladybird_crop.jpg"

REFUSAL = {"title": "Refused", "detail": "For now.", "status": 422}

COUNT_CLIPS = """() => {
    Object.assign(window, { draws: 0, clips: 0 });
    const { clip } = CanvasRenderingContext2D.prototype;
    const width = Object.getOwnPropertyDescriptor(HTMLCanvasElement.prototype, "width");
    Object.defineProperty(HTMLCanvasElement.prototype, "width", {
        ...width,
        set(pixels) {
            window.draws += 1; // each begins with it
            width.set.call(this, pixels);
        },
    });
    CanvasRenderingContext2D.prototype.clip = function (...given) {
        window.clips += 1;
        return clip.apply(this, given);
    };
}"""

TAKES = """(node, key) => {
    const event = new KeyboardEvent("keydown", { ...key, bubbles: true, cancelable: true });
    node.dispatchEvent(event);
    return event.defaultPrevented;
}"""

REFUSE_CLIPBOARD = """() => {
    navigator.clipboard.writeText = () => Promise.reject(new DOMException("no", "NotAllowedError"));
}"""


def test_the_links_that_save_are_told_apart(page: Page) -> None:
    settle(page)
    for name in ("Save the picture", "Save the decoded picture"):
        expect(page.get_by_role("link", name=name)).to_have_text("Save")


def test_the_help_for_drawing_is_read_where_one_can_draw(page: Page) -> None:
    settle(page)
    help_text = "With the keyboard: arrow keys move the pen, Space puts it down or lifts it, Delete clears."
    expect(page.locator("#pad")).to_have_accessible_description(help_text)
    expect(page.locator("#pad")).to_have_role("application")  # else a screen reader would keep the arrow keys
    page.focus("#pad")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#pen")).to_be_visible()
    page.evaluate("document.getElementById('model').value = 'colour'")  # the pad keeps the focus
    page.dispatch_event("#model", "change")
    settle(page)
    expect(page.locator("#pad")).to_have_role("img")
    expect(page.locator("#pad")).to_have_accessible_description("")
    expect(page.locator("#pad-help")).to_be_hidden()
    expect(page.locator("#pen")).to_be_hidden()


@pytest.mark.parametrize("typed", ["3.5", "", "16", "-1"])
def test_what_is_no_code_is_told_and_not_kept(page: Page, typed: str) -> None:
    settle(page)
    before = page.input_value("#code")
    page.fill("#code", typed)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#problem-title")).to_have_text("Not a code")
    expect(page.locator("#problem-detail")).to_have_text("A code is a whole number from 0 to 15.")
    assert page.input_value("#code") == before


def test_codes_that_the_service_refuses_can_be_restored(page: Page) -> None:
    """Regression: "Restore" waited for a decoded picture, which could not come."""
    settle(page)
    before = shown_codes(page)
    page.route("**/decode*", lambda route: route.fulfill(status=422, json=REFUSAL), times=1)
    page.fill("#code", str((int(page.input_value("#code")) + 1) % 16))
    page.keyboard.press("Enter")
    page.locator("#problem").wait_for()
    page.click("#restore")
    expect(page.locator("#problem")).to_be_hidden()
    settle(page)
    assert shown_codes(page) == before
    expect(page.locator("#restore")).to_be_disabled()


def test_a_pen_draws_on_a_page_without_https(page: Page) -> None:
    """Regression: away from localhost and https browsers have no getCoalescedEvents, and moves ended in a TypeError."""
    page.evaluate("delete PointerEvent.prototype.getCoalescedEvents")
    page.click("#clear")
    settle(page)
    draw_a_line(page, "#pad")
    settle(page)
    assert pixels_of(saved(page, "#save-picture"))[14, 3:24].min() == 255


def test_only_the_first_button_and_finger_draw_and_erase(page: Page) -> None:
    """Regression: a right click left a dot, and where the system's menu took its end, the pen stayed down."""
    page.click("#clear")
    settle(page)
    draw_a_line(page, "#pad", button="right")
    page.get_by_text("Erase", exact=True).click()
    draw_a_line(page, "#codes", button="right")
    for one in ("#pad", "#codes"):
        box = box_of(page, one)
        at = {"clientX": box["x"] + 20, "clientY": box["y"] + 20, "pointerId": 7, "isPrimary": False}
        page.dispatch_event(one, "pointerdown", at)
    settle(page)
    assert not pixels_of(saved(page, "#save-picture")).any()
    expect(page.locator("#erase-help")).to_have_text("Drag over the codes to erase a region.")


def test_delete_ends_the_file_as_clear_does(page: Page) -> None:
    """Regression: "Invert" brought it back."""
    page.set_input_files("#file", PHOTO)
    expect(page.locator("#fit-controls")).to_be_visible()
    page.focus("#pad")
    page.keyboard.press("Delete")
    expect(page.locator("#fit-controls")).to_be_hidden()


def test_erased_cells_are_hatched_at_once(page: Page) -> None:
    """Regression: one by one, which took seconds for those of a photograph."""
    settle(page)
    page.evaluate(COUNT_CLIPS)
    page.get_by_text("Erase", exact=True).click()
    draw_a_line(page, "#codes")
    expect(page.locator("#erase-help")).to_have_text("7 of 49 codes are erased.")
    draws, clips = page.evaluate("[window.draws, window.clips]")
    assert 0 < clips <= draws


def box_of(page: Page, name: str) -> FloatRect:
    box = page.locator(name).bounding_box()
    assert box is not None
    return box


def draw_a_line(page: Page, name: str, button: Literal["left", "right"] = "left") -> None:
    """Across the middle."""
    box = box_of(page, name)
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 4, middle)
    page.mouse.down(button=button)
    page.mouse.move(box["x"] + box["width"] - 4, middle, steps=4)
    page.mouse.up(button=button)


def test_a_finger_that_scrolls_changes_no_code(page: Page) -> None:
    """Regression: where it touched the palette, it put a code into the cell; on the codes it could not scroll."""
    settle(page)
    before = shown_codes(page)
    for grid in ("#palette", "#codes"):
        expect(page.locator(grid)).to_have_css("touch-action", "manipulation")
        place = page.locator("#code-place").inner_text()
        box = page.locator(grid).bounding_box()
        assert box is not None
        at = {"clientX": box["x"] + 3, "clientY": box["y"] + 3, "pointerId": 1, "pointerType": "touch"}
        page.dispatch_event(grid, "pointerdown", at)
        page.dispatch_event(grid, "pointercancel", at)
        assert page.locator("#code-place").inner_text() == place
    settle(page)
    assert shown_codes(page) == before
    page.get_by_text("Erase", exact=True).click()
    expect(page.locator("#codes")).to_have_css("touch-action", "none")  # there a finger draws


def test_the_help_of_the_palette_stands_clear_of_its_focus_ring(page: Page) -> None:
    settle(page)
    text, palette = page.locator("#palette-help").bounding_box(), page.locator("#palette").bounding_box()
    assert text is not None and palette is not None
    assert palette["y"] - (text["y"] + text["height"]) >= 4


def test_a_line_is_selected_where_the_clipboard_is_refused(page: Page) -> None:
    settle(page)
    page.evaluate(REFUSE_CLIPBOARD)
    button = page.get_by_role("button", name="Copy: Picture to bytes")
    button.click()
    expect(button).to_have_text("Selected")
    assert page.evaluate("getSelection().toString()") == line(page, "Picture to bytes")


def test_the_prior_completes_one_size(page: Page) -> None:
    """Regression: for any other the service refused it, in words about JSON."""
    page.select_option("#model", "colour")
    settle(page)
    page.set_input_files("#file", PHOTO)
    expect(page.locator("#codes-facts")).to_have_text("16 × 24 of 16")
    settle(page)
    page.get_by_text("Erase", exact=True).click()
    page.focus("#codes")
    page.keyboard.press("Space")
    expect(page.locator("#complete")).to_be_disabled()
    expect(page.locator("#erase-help")).to_have_text(
        "The prior completes pictures of 16 × 16 pixels only, with 4 × 4 codes; this one has 16 × 24."
    )


def test_a_picture_of_another_size_is_not_drawn_on(page: Page, tmp_path: Path) -> None:
    """Regression: one of the model's width was, whatever its height, though the service refuses it."""
    Image.new("L", (28, 100)).save(tmp_path / "x.png")
    page.set_input_files("#file", tmp_path / "x.png")
    expect(page.locator("#pad")).to_have_role("application")
    page.select_option("#fit", "keep")
    expect(page.locator("#picture-facts")).to_have_text("28 × 100")
    expect(page.locator("#pad")).to_have_role("img")
    page.click("#clear")
    expect(page.locator("#picture-facts")).to_have_text("28 × 28")
    expect(page.locator("#pad")).to_have_role("application")


@pytest.mark.parametrize("grid", ["#codes", "#palette", "#pad"])
def test_shortcuts_of_the_browser_are_left_to_it(page: Page, grid: str) -> None:
    """Regression: Alt and an arrow moved the cursor, in the place of going back."""
    settle(page)
    keys = [
        {"key": "ArrowLeft", "altKey": True},
        {"key": "ArrowLeft", "metaKey": True},
        {"key": "Home", "altKey": True},
    ]
    if grid == "#pad":
        keys.append({"key": "Backspace", "ctrlKey": True})
    for key in keys:
        assert not page.locator(grid).evaluate(TAKES, key), key
    assert page.locator(grid).evaluate(TAKES, {"key": "ArrowLeft"})


def test_a_seed_that_the_service_would_refuse_is_refused_by_its_field(page: Page) -> None:
    """Regression: the service refused another number than had been typed, as JavaScript rounds those beyond 2^53."""
    settle(page)
    page.fill("#seed", str(SEED_LIMIT))
    assert not page.locator("#seed").evaluate("(field) => field.validity.valid")
    page.fill("#seed", str(SEED_LIMIT - 1))
    assert page.locator("#seed").evaluate("(field) => field.validity.valid")
