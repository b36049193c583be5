"""What is pasted or dropped: files, text, and the address of a picture."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.arriving import COUNT_OPENED, DISPATCH
from tests.browser.reading import settle

DRAWN = "document.getElementById('pad').toDataURL()"

PASTE_CELLS = """async (id) => {
    const canvas = new OffscreenCanvas(28, 28);
    canvas.getContext("2d").fillRect(0, 0, 9, 9);
    const picture = await canvas.convertToBlob({ type: "image/png" });
    const transfer = new DataTransfer();
    transfer.setData("text/plain", "7");
    transfer.items.add(new File([picture], "image.png", { type: "image/png" }));
    const event = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
    document.getElementById(id).dispatchEvent(event);
}"""


def test_a_pasted_file_that_is_no_picture(page: Page) -> None:
    settle(page)
    page.evaluate(DISPATCH, ["paste", "some text", "text"])
    expect(page.locator("#problem")).to_be_hidden()
    page.evaluate(DISPATCH, ["paste", "a file", "file"])
    expect(page.locator("#problem-title")).to_have_text("Not a picture")
    expect(page.locator("#problem-detail")).to_contain_text("Take a PNG")


def test_text_that_is_dragged_is_left_to_the_browser(page: Page) -> None:
    """Regression: it could not be dropped into a field, and the page asked for it as a picture."""
    settle(page)
    for kind in ("dragenter", "dragover", "drop"):
        assert not page.evaluate(DISPATCH, [kind, "7", "text"])
        expect(page.locator(".dropping")).to_have_count(0)
    assert page.evaluate(DISPATCH, ["dragover", "a file", "file"])
    expect(page.locator(".dropping")).to_have_count(1)


def test_a_picture_that_comes_as_its_address_does_not_replace_the_page(page: Page) -> None:
    """Regression: Firefox gives no file of a picture of another page, and opened it in the place of the playground."""
    settle(page)
    picture = "http://127.0.0.1/picture.png"
    for kind in ("dragenter", "dragover"):
        assert page.evaluate(DISPATCH, [kind, picture, "address"])
        expect(page.locator(".dropping")).to_have_count(1)
    assert page.evaluate(DISPATCH, ["drop", picture, "address"])
    expect(page.locator(".dropping")).to_have_count(0)
    expect(page.locator("#problem-title")).to_have_text("Only the address of a picture was dropped")
    expect(page.locator("#problem-again")).to_be_hidden()
    page.click("#problem-close")
    assert not page.evaluate(DISPATCH, ["drop", picture, "address", "seed"])  # a field takes it as text
    expect(page.locator("#problem")).to_be_hidden()


def test_text_that_has_a_picture_with_it_is_pasted_into_a_field(page: Page) -> None:
    """Regression: cells of a spreadsheet, which come as text and as a picture of them, replaced the picture."""
    settle(page)
    before = page.evaluate(DRAWN)
    page.evaluate(COUNT_OPENED)
    page.evaluate(PASTE_CELLS, "seed")
    assert page.evaluate("window.opened") == 0
    page.evaluate(PASTE_CELLS, "drop")
    page.wait_for_function(f"(before) => {DRAWN} !== before", arg=before)


def test_a_file_that_is_only_promised_leaves_no_overlay(page: Page) -> None:
    """Regression: "Drop the picture here" stayed, as what was dropped had no file in it."""
    settle(page)
    page.evaluate(DISPATCH, ["dragover", "a file", "file"])
    expect(page.locator(".dropping")).to_have_count(1)
    page.evaluate(DISPATCH, ["drop", "a name", "text"])
    expect(page.locator(".dropping")).to_have_count(0)
