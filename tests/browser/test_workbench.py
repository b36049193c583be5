"""A picture comes in every way there is, becomes codes, and its codes are changed; numpy and Pillow as oracles."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Site
from tests.browser.reading import bytes_shown, line, pixels_of, run_curl, saved, settle, shown_codes
from tests.conftest import PICTURES
from tests.tiny_bundle import oracle_codes, oracle_pixels

DIGIT = PICTURES / "digit_4.png"
PHOTO = PICTURES / "ladybird_crop.jpg"

SEND_FILE = """([kind, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "x.png", { type: "image/png" }));
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.getElementById("drop").dispatchEvent(event);
}"""


def assert_consistent(page: Page, site: Site) -> None:
    """The saved picture has the codes that are shown, which decode to the saved picture beside it."""
    settle(page)
    picture = pixels_of(saved(page, "#save-picture"))
    assert picture.dtype == np.uint8
    assert picture.shape == (28, 28)
    codes = oracle_codes(picture[None, :, :, None], site.weights)
    assert shown_codes(page) == codes[0].tolist()
    decoded = pixels_of(saved(page, "#save-decoded"))
    assert (decoded == oracle_pixels(codes, site.weights, 1)[0, :, :, 0]).all()
    mse = np.mean((picture / 255 - decoded / 255) ** 2)
    expect(page.locator("#decoded-facts")).to_contain_text(f"MSE {mse:.4f}")


def test_draw_with_a_pen(page: Page, site: Site) -> None:
    before = pixels_of(saved(page, "#save-picture"))
    box = page.locator("#pad").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] - 12)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + box["height"] - 12, steps=5)
    page.mouse.up()
    assert_consistent(page, site)
    drawn = pixels_of(saved(page, "#save-picture")).astype(int) - before
    assert (drawn >= 0).all()
    assert drawn[26, 2:26].min() > 200  # the whole bottom line, and nothing above it
    assert not drawn[:23].any()


def test_draw_with_the_keyboard(page: Page, site: Site) -> None:
    page.click("#clear")
    page.focus("#pad")
    for key in ("Space", "ArrowRight", "ArrowRight", "ArrowDown", "Space", "ArrowLeft"):
        page.keyboard.press(key)
    assert_consistent(page, site)
    drawn = pixels_of(saved(page, "#save-picture"))
    assert drawn[14, 14] == drawn[14, 16] == drawn[15, 16] == 255
    assert not drawn[:12].any()
    page.focus("#pad")
    page.keyboard.press("Delete")
    settle(page)
    assert not pixels_of(saved(page, "#save-picture")).any()


def test_open_a_file(page: Page, site: Site) -> None:
    page.set_input_files("#file", DIGIT)
    assert_consistent(page, site)
    assert (pixels_of(saved(page, "#save-picture")) == np.asarray(Image.open(DIGIT))).all()


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_paste_and_drop(page: Page, site: Site, kind: str) -> None:
    page.evaluate(SEND_FILE, [kind, base64.b64encode(DIGIT.read_bytes()).decode()])
    assert_consistent(page, site)
    assert (pixels_of(saved(page, "#save-picture")) == np.asarray(Image.open(DIGIT))).all()


def test_sizes_and_invert(page: Page, site: Site) -> None:
    """A photograph of 96x64: cropped it fills the picture, whole it leaves black above and below."""
    page.set_input_files("#file", PHOTO)
    assert_consistent(page, site)
    assert pixels_of(saved(page, "#save-picture"))[:4].any()
    page.select_option("#fit", "whole")
    assert_consistent(page, site)
    whole = pixels_of(saved(page, "#save-picture")).astype(int)
    assert not whole[:4].any()
    assert not whole[-4:].any()
    page.check("#invert")
    assert_consistent(page, site)
    inverted = pixels_of(saved(page, "#save-picture")).astype(int)
    assert np.abs(whole + inverted - 255)[6:-6].max() <= 1  # grey is rounded once more
    assert not inverted[:4].any()


def test_invert_stays_with_the_files_that_it_was_chosen_for(page: Page, site: Site) -> None:
    """A sample that was taken came inverted, and with a model of any size nothing showed why all pictures did."""
    page.set_input_files("#file", PHOTO)
    page.check("#invert")
    page.click("#generate")
    settle(page)
    page.locator("#sheet button").first.click()
    assert_consistent(page, site)
    expect(page.locator("#invert")).not_to_be_checked()
    page.set_input_files("#file", PHOTO)
    page.check("#invert")
    page.select_option("#model", "colour")
    settle(page)
    expect(page.locator("#invert")).not_to_be_checked()


def test_a_refusal_is_worded_by_the_service(page: Page, site: Site) -> None:
    page.set_input_files("#file", PHOTO)
    settle(page)
    page.select_option("#fit", "keep")
    page.locator("#problem").wait_for()
    problem = httpx.post(f"{site.address}encode", files={"img": PHOTO.read_bytes()}).json()
    expect(page.locator("#problem-title")).to_have_text(problem["title"])
    expect(page.locator("#problem-detail")).to_have_text(problem["detail"])
    page.select_option("#fit", "crop")
    expect(page.locator("#problem")).to_be_hidden()


def test_a_file_that_is_no_picture(page: Page) -> None:
    settle(page)
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#problem-title")).to_have_text("Not a picture")
    expect(page.locator("#decoded-facts")).to_contain_text("MSE")  # of the picture that is still there
    page.click("#problem-close")
    expect(page.locator("#problem")).to_be_hidden()


def test_an_older_success_does_not_hide_a_newer_problem(page: Page) -> None:
    """A decode that was still on its way closed the message of a file that failed after it."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/decode*", hold)
    page.focus("#codes")
    page.keyboard.press("Enter")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#panels').getAttribute('aria-busy') === 'true'")
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#problem-title")).to_have_text("Not a picture")
    for route in held:
        route.continue_()
    settle(page)
    expect(page.locator("#problem")).to_be_visible()


def test_change_a_code_by_keyboard_and_restore(page: Page, site: Site) -> None:
    before = shown_codes(page)
    wanted = (before[1][0] + 1) % 16
    page.focus("#codes")
    for key in ("Control+End", "Control+Home", "ArrowDown", "ArrowRight", "Home", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#code-place")).to_have_text("Row 2, column 1: code")
    expect(page.locator("#code")).to_be_focused()
    page.keyboard.type(str(wanted))
    page.keyboard.press("Enter")
    settle(page)
    after = shown_codes(page)
    assert after == [*before[:1], [wanted, *before[1][1:]], *before[2:]]
    assert page.locator("#codes [role=gridcell]").inner_text() == f"Row 2, column 1, code {wanted}"
    decoded = pixels_of(saved(page, "#save-decoded"))
    assert (decoded == oracle_pixels(np.array([after]), site.weights, 1)[0, :, :, 0]).all()
    page.click("#restore")
    settle(page)
    assert shown_codes(page) == before
    expect(page.locator("#restore")).to_be_disabled()


def test_change_a_code_with_the_palette(page: Page) -> None:
    before = shown_codes(page)
    box = page.locator("#codes").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 2.5 / 7, box["y"] + box["height"] * 5.5 / 7)
    expect(page.locator("#code-place")).to_have_text("Row 6, column 3: code")
    picked = page.locator("#palette [role=gridcell]").inner_text()
    assert picked.endswith(f", code {before[5][2]}")  # the palette shows which one it is
    page.focus("#palette")
    page.keyboard.press("Control+Home")
    page.keyboard.press("Enter")
    settle(page)
    darkest = int(page.locator("#palette [role=gridcell]").inner_text().rpartition(" ")[2])
    assert shown_codes(page)[5][2] == darkest
    assert shown_codes(page)[:5] == before[:5]


def test_a_code_that_the_model_does_not_have(page: Page) -> None:
    page.fill("#code", "16")
    page.keyboard.press("Enter")
    expect(page.locator("#problem-detail")).to_have_text("A code is a whole number from 0 to 15.")
    page.fill("#code", "15")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_be_hidden()


def test_bytes_are_those_of_the_files(page: Page, site: Site) -> None:
    settle(page)
    picture = saved(page, "#save-picture")
    accept = {"accept": "application/vnd.vqserve.codes"}
    container = httpx.post(f"{site.address}encode", files={"img": picture}, headers=accept).content
    assert bytes_shown(page, "pixels") == 28 * 28
    assert bytes_shown(page, "PNG") == len(picture)
    assert bytes_shown(page, "codes, 4 bits each") == 25  # 49 codes of 16
    assert bytes_shown(page, "container, ") == len(container)


def test_bytes_of_changed_codes_are_said_to_be_those_of_before(page: Page) -> None:
    """Regression: they stood beside decibels that follow the change as if they did so too."""
    settle(page)
    note = page.get_by_text("before the codes were changed")
    expect(note).to_be_hidden()
    page.fill("#code", str((int(page.input_value("#code")) + 1) % 16))
    page.keyboard.press("Enter")
    expect(note).to_be_visible()
    page.click("#restore")
    expect(note).to_be_hidden()
    page.get_by_text("Erase", exact=True).click()
    page.press("#codes", "Space")
    expect(note).to_be_hidden()  # what is erased has not become another code yet
    page.click("#clear")
    settle(page)
    expect(note).to_be_hidden()


def test_every_stage_shows_its_time(page: Page) -> None:
    settle(page)
    assert page.locator("#times dt").all_inner_texts() == ["encode", "decode", "compress"]
    encode = page.locator("#times .soft").first.inner_text()
    for stage in ("request", "read picture", "queue", "model", "write answer", "network and browser"):
        assert re.search(rf"\b{stage} [\d.]+ ms", encode), stage
    for text in page.locator("#times .total").all_inner_texts():
        assert text.endswith((" ms", " s"))
        assert float(text.split()[0]) > 0


def test_the_curl_lines_do_what_the_page_does(page: Page, tmp_path: Path) -> None:
    settle(page)
    (tmp_path / "picture.png").write_bytes(saved(page, "#save-picture"))
    answer = httpx.Response(200, content=run_curl(line(page, "Picture to codes"), tmp_path)).json()
    assert answer["codes"] == shown_codes(page)
    run_curl(line(page, "Codes to picture"), tmp_path)
    decoded = saved(page, "#save-decoded")
    assert (tmp_path / "decoded.png").read_bytes() == decoded
    run_curl(line(page, "Picture to bytes"), tmp_path)
    assert (tmp_path / "picture.vqc").stat().st_size == bytes_shown(page, "container, ")
    (tmp_path / "decoded.png").unlink()
    run_curl(line(page, "Bytes to picture"), tmp_path)
    assert (tmp_path / "decoded.png").read_bytes() == decoded


def test_the_bytes_of_changed_codes_do_not_replace_their_picture(page: Page) -> None:
    """Regression: they are those of the picture as it was, and the last line wrote it over what the second had made."""
    settle(page)
    page.fill("#code", str((int(page.input_value("#code")) + 1) % 16))
    page.keyboard.press("Enter")
    settle(page)
    assert " -o decoded.png " in line(page, "Codes to picture")
    assert " -o unchanged.png " in line(page, "Bytes to picture")
    page.click("#restore")
    settle(page)
    assert " -o decoded.png " in line(page, "Bytes to picture")


def test_copy_a_curl_line(page: Page) -> None:
    page.get_by_role("button", name="Copy: Picture to bytes").click()
    assert page.evaluate("navigator.clipboard.readText()") == line(page, "Picture to bytes")
