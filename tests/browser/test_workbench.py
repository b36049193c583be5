"""A picture comes in every way there is, becomes codes, and its codes are changed; numpy and Pillow as oracles."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from tests.browser.chromium import browsing
from tests.browser.conftest import Site
from tests.browser.reading import JSON, bytes_shown, line, pixels_of, run_curl, saved, settle, shown_codes
from tests.conftest import PICTURES
from tests.service.serving import serving
from tests.tiny_bundle import Weights, oracle_codes, oracle_pixels

DIGIT = PICTURES / "digit_4.png"
PHOTO = PICTURES / "ladybird_crop.jpg"
MNIST = Path(__file__).parents[2] / "models" / "mnist"

SEND_FILE = """([kind, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "x.png", { type: "image/png" }));
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.getElementById("drop").dispatchEvent(event);
}"""

WATCH_READS = """() => {
    window.widths = [];
    const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
    OffscreenCanvasRenderingContext2D.prototype.getImageData = function (x, y, width, height) {
        window.widths.push(width);
        return read.call(this, x, y, width, height);
    };
}"""

# Tiny models have grey textures, and colours that are no grey.
PALETTE_IS_COLOURFUL = """() => {
    const canvas = document.querySelector("#palette canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value, i) => i % 4 === 0 && value !== data[i + 1]);
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
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#problem-title")).to_have_text("Not a picture")
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
    expect(page.locator("#problem-detail")).to_contain_text("Codes must lie in 0..15")
    page.fill("#code", "15")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_be_hidden()


def test_the_palette_shows_textures(page: Page) -> None:
    settle(page)
    assert not page.evaluate(PALETTE_IS_COLOURFUL)


def test_refused_textures_leave_the_colours_and_the_panels(browser: Browser, bundles: tuple[Path, Weights]) -> None:
    """The textures of 16 codes are more than 8 pictures. They are a decoration, and asked for once."""
    with (
        serving(bundles[0], VQSERVE_MAX_PICTURES_PER_REQUEST="8") as (_, address),
        browsing(browser, f"{address}/") as page,
    ):
        refused: list[str] = []
        page.on("response", lambda response: refused.extend([response.url] if response.status == 413 else []))
        expect(page.locator("#announcement")).to_contain_text("Encoded to 7 by 7 codes.")
        expect(page.locator("#problem")).to_be_hidden()
        assert page.evaluate(PALETTE_IS_COLOURFUL)
        page.set_input_files("#file", DIGIT)
        assert_consistent(page, Site(f"{address}/", bundles[1]))
        expect(page.locator("#difference-facts")).to_contain_text("of 255")
        assert len(refused) <= 1  # none where it came before this looked


def test_a_fault_of_the_page_in_the_textures_is_told(page: Page) -> None:
    """Only what the service or the connection refuses is let pass."""
    settle(page)

    def break_textures(route: Route) -> None:
        if route.request.headers["accept"] == "application/x-npy":
            route.fulfill(body=b"no array")
        else:
            route.continue_()

    page.route("**/decode*", break_textures)
    page.select_option("#model", "silent")
    expect(page.locator("#problem-title")).to_have_text("Something went wrong in the page")


def test_32_pictures_a_request_are_enough_for_the_textures(browser: Browser) -> None:
    """With all 512 codes of the digits."""
    with (
        serving(MNIST, VQSERVE_MAX_PICTURES_PER_REQUEST="32") as (_, address),
        browsing(browser, f"{address}/") as page,
    ):
        statuses: list[int] = []
        page.on("response", lambda response: statuses.append(response.status))
        page.reload()
        expect(page.locator("#announcement")).to_contain_text("Encoded to 7 by 7 codes.")
        assert len(statuses) > 512 // 32
        assert {status for status in statuses if status >= 400} == set()


def test_bytes_are_those_of_the_files(page: Page, site: Site) -> None:
    settle(page)
    picture = saved(page, "#save-picture")
    accept = {"accept": "application/vnd.vqserve.codes"}
    container = httpx.post(f"{site.address}encode", files={"img": picture}, headers=accept).content
    assert bytes_shown(page, "pixels") == 28 * 28
    assert bytes_shown(page, "PNG") == len(picture)
    assert bytes_shown(page, "codes, 4 bits each") == 25  # 49 codes of 16
    assert bytes_shown(page, "container, ") == len(container)


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


def test_copy_a_curl_line(page: Page) -> None:
    page.get_by_role("button", name="Copy: Picture to bytes").click()
    assert page.evaluate("navigator.clipboard.readText()") == line(page, "Picture to bytes")


def test_a_colour_model_of_any_size(page: Page, site: Site) -> None:
    page.select_option("#model", "colour")
    settle(page)
    expect(page.locator("#codes-facts")).to_have_text("4 × 4 of 16")
    page.set_input_files("#file", PHOTO)
    settle(page)
    expect(page.locator("#codes-facts")).to_have_text("16 × 24 of 16")
    expect(page.locator("#picture-facts")).to_have_text("96 × 64")
    answer = httpx.post(f"{site.address}encode?model=colour", files={"img": saved(page, "#save-picture")}, headers=JSON)
    assert answer.json()["codes"] == shown_codes(page)
    assert pixels_of(saved(page, "#save-decoded")).shape == (64, 96, 3)


def photo_of(width: int, height: int) -> FilePayload:
    """The photograph in this size, as a file for the page."""
    file = io.BytesIO()
    Image.open(PHOTO).resize((width, height)).save(file, "PNG")
    return {"name": "x.png", "mimeType": "image/png", "buffer": file.getvalue()}


def test_sides_that_are_no_multiple_of_the_models(page: Page, tmp_path: Path) -> None:
    """Regression: what was saved, and what the curl line made, had the border that the codes need: 132x100."""
    page.select_option("#model", "colour")
    page.set_input_files("#file", photo_of(130, 97))
    settle(page)
    expect(page.locator("#codes-facts")).to_have_text("25 × 33 of 16")
    decoded = saved(page, "#save-decoded")
    assert pixels_of(decoded).shape == (97, 130, 3)
    assert page.evaluate("[decoded.width, decoded.height]") == [130, 97]
    run_curl(line(page, "Codes to picture"), tmp_path)
    assert (tmp_path / "decoded.png").read_bytes() == decoded


def test_a_picture_with_too_many_pixels_is_not_read(page: Page, tmp_path: Path) -> None:
    """It is fine for a model that takes only a part of it."""
    Image.new("L", (4097, 4096), 200).save(tmp_path / "large.png")
    page.set_input_files("#file", tmp_path / "large.png")
    settle(page)
    expect(page.locator("#problem")).to_be_hidden()
    assert (pixels_of(saved(page, "#save-picture")) == 200).all()
    page.evaluate(WATCH_READS)
    page.select_option("#model", "colour")
    assert_too_many_pixels(page)
    expect(page.locator("#picture-facts")).to_have_text("16 × 16")  # the first drawing, as the file is none for it
    page.set_input_files("#file", tmp_path / "large.png")
    settle(page)
    assert_too_many_pixels(page)
    expect(page.locator("#picture-facts")).to_have_text("16 × 16")
    assert max(page.evaluate("window.widths")) < 4096


def assert_too_many_pixels(page: Page) -> None:
    expect(page.locator("#problem-title")).to_have_text("The picture has too many pixels")
    expect(page.locator("#problem-detail")).to_have_text("4097x4096 is more than 16777216 pixels; make it smaller.")
    expect(page.locator("#problem")).to_be_visible()
