"""Photographs before a model of any size: what is shown and saved of them, and the page meanwhile."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.browser.chromium import browsing
from tests.browser.conftest import Site
from tests.browser.reading import (
    JSON,
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

PHOTO = PICTURES / "ladybird_crop.jpg"
PROBLEM = "application/problem+json"

WATCH_READS = """() => {
    window.widths = [];
    const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
    OffscreenCanvasRenderingContext2D.prototype.getImageData = function (x, y, width, height) {
        window.widths.push(width);
        return read.call(this, x, y, width, height);
    };
}"""

# While the PNG of the picture is made, and cannot be saved: from its size that is shown to the request that sends it.
COUNT_TICKS = """() => {
    window.ticks = 0;
    const save = document.getElementById("save-picture");
    const start = () => (window.timer = setInterval(() => (window.ticks += save.hidden), 20));
    new MutationObserver(start).observe(document.getElementById("picture-facts"), { childList: true });
    const send = window.fetch;
    window.fetch = (...given) => {
        clearInterval(window.timer);
        return send(...given);
    };
}"""

COUNT_SETS = """() => {
    window.sets = 0;
    const set = Uint8ClampedArray.prototype.set;
    Uint8ClampedArray.prototype.set = function (...given) {
        window.sets += 1;
        return set.apply(this, given);
    };
}"""


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


def test_the_page_answers_while_a_large_png_is_made(page: Page) -> None:
    """Regression: 12 megapixels took the page 7 seconds, in which it stood still."""
    settle(page)
    page.select_option("#model", "colour")
    settle(page)
    page.evaluate(COUNT_TICKS)
    sent = hold(page, "**/encode*")
    page.set_input_files("#file", photo_of(3000, 2000))
    wait_for_requests(page, sent)
    assert page.evaluate("window.ticks") >= 5


def test_the_difference_is_painted_without_a_call_a_pixel(page: Page) -> None:
    """Regression: an array was made and copied for each pixel, a second for 12 megapixels."""
    page.select_option("#model", "colour")
    settle(page)
    page.evaluate(COUNT_SETS)
    page.set_input_files("#file", PHOTO)
    settle(page)
    expect(page.locator("#difference-facts")).to_contain_text("of 255")
    assert page.evaluate("window.sets") < 96 * 64


@pytest.mark.parametrize(("model", "mode"), [("digits", "L"), ("colour", "RGB")])
def test_saved_pictures_are_exact_and_small(page: Page, model: str, mode: str) -> None:
    """Their size in bytes is compared with that of the codes: a fair PNG, though its filters are guessed."""
    page.select_option("#model", model)
    settle(page)
    picture = Image.open(PHOTO).convert(mode).resize((28, 28))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": file.getvalue()})
    settle(page)
    png = saved(page, "#save-picture")
    assert Image.open(io.BytesIO(png)).mode == mode
    assert (pixels_of(png) == pixels_of(file.getvalue())).all()
    assert len(png) <= 1.15 * len(file.getvalue())


@pytest.mark.parametrize(("width", "height"), [(40, 160), (160, 40)])
def test_the_whole_picture_and_all_its_codes_are_seen(page: Page, width: int, height: int) -> None:
    """Regression: of a picture that is higher than wide, the frames showed the upper half."""
    page.select_option("#model", "colour")
    page.set_input_files("#file", photo_of(width, height))
    expect(page.locator("#picture-facts")).to_have_text(f"{width} × {height}")
    settle(page)
    page.focus("#codes")
    for name in ("pad", "codes", "decoded", "difference"):
        box = page.locator(f"#{name}").bounding_box()
        frame = page.locator(".frame", has=page.locator(f"#{name}")).bounding_box()
        assert box is not None and frame is not None
        assert frame["width"] == pytest.approx(frame["height"], abs=1)
        assert box["width"] / box["height"] == pytest.approx(width / height, rel=0.05)
        assert max(box["width"], box["height"]) == pytest.approx(frame["width"], abs=1)
        assert box["y"] >= frame["y"] - 1
        assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1


@pytest.mark.parametrize(("side", "size"), [(600, "1.1 MB"), (200, "120.0 kB")])
def test_sizes_in_bytes_fit_beside_their_bars(browser: Browser, site: Site, side: int, size: str) -> None:
    with browsing(browser, site.address, width=390) as page:
        settle(page)
        page.select_option("#model", "colour")
        page.set_input_files("#file", photo_of(side, side))
        expect(page.locator("#bytes dd").first).to_have_text(size)
        settle(page)
        box = page.locator("#bytes").bounding_box()
        text = page.locator("#bytes dd span:last-child").first.bounding_box()
        assert box is not None and text is not None
        assert text["x"] + text["width"] <= box["x"] + box["width"]


def test_large_pictures_are_smooth_and_small_ones_show_their_pixels(page: Page) -> None:
    settle(page)
    rendering = "getComputedStyle(decoded).imageRendering"
    assert page.evaluate(rendering) == "pixelated"
    page.select_option("#model", "colour")
    page.set_input_files("#file", photo_of(600, 400))
    expect(page.locator("#codes-facts")).to_have_text("100 × 150 of 16")
    settle(page)
    assert page.evaluate(rendering) == "auto"


def test_another_model_ends_the_encoding_of_a_photograph(page: Page) -> None:
    """Regression: all was waited for, a minute for a large one, and asked of the model that it is not for."""
    settle(page)
    page.select_option("#model", "colour")
    settle(page)
    held = hold(page, "**/encode*", most=1)
    page.set_input_files("#file", PHOTO)
    wait_for_requests(page, held)
    expect(page.locator("#bytes")).to_have_class("bars stale")
    expect(page.locator("#save-decoded")).to_be_hidden()
    with page.expect_event("requestfailed"):
        page.select_option("#model", "digits")
    expect(page.locator("#codes-facts")).to_have_text("7 × 7 of 16")
    settle(page)
    expect(page.locator(".stale")).to_have_count(0)
    expect(page.locator("#problem")).to_be_hidden()


def test_codes_of_another_picture_are_pale(page: Page) -> None:
    """Regression: beside a picture that the service had refused, the codes of the one before it looked like its own."""
    settle(page)
    page.set_input_files("#file", PHOTO)
    settle(page)
    expect(page.locator(".stale")).to_have_count(0)
    page.select_option("#fit", "keep")
    page.locator("#problem").wait_for()
    expect(page.locator("#codes")).to_have_css("opacity", "0.3")
    expect(page.locator("#save-decoded")).to_be_hidden()
    page.select_option("#fit", "crop")
    settle(page)
    expect(page.locator("#codes")).to_have_css("opacity", "1")
    expect(page.locator("#save-decoded")).to_be_visible()


@pytest.mark.parametrize(("width", "height"), [(4000, 4), (4, 4000)])
def test_a_very_flat_picture_and_its_codes_are_seen(page: Page, width: int, height: int) -> None:
    """Regression: its codes were drawn on a canvas without a height, or not at all."""
    page.select_option("#model", "colour")
    settle(page)
    page.evaluate("document.querySelector('#codes canvas').width = 1")  # what is drawn anew has another
    page.set_input_files("#file", photo_of(width, height))
    expect(page.locator("#codes-facts")).to_have_text(f"{height // 4} × {width // 4} of 16")
    settle(page)
    sides = page.evaluate("(({ width, height }) => [width, height])(document.querySelector('#codes canvas'))")
    assert min(sides) >= 4
    for name in ("pad", "codes", "decoded", "difference"):
        box = page.locator(f"#{name}").bounding_box()
        frame = page.locator(".frame", has=page.locator(f"#{name}")).bounding_box()
        assert box is not None and frame is not None
        assert min(box["width"], box["height"]) >= 4
        assert max(box["width"], box["height"]) == pytest.approx(frame["width"], abs=1)


def test_what_is_too_large_is_said_to_be_the_png(page: Page) -> None:
    """Regression: the service named the bytes of what the page sends, which no file of the visitor's has."""
    settle(page)
    problem = {
        "type": "urn:vqserve:problem:body-too-large",
        "title": "The request body is too large",
        "detail": "At most 9 bytes a request.",
        "status": 413,
    }
    page.route("**/encode*", lambda route: route.fulfill(status=413, json=problem, content_type=PROBLEM))
    page.set_input_files("#file", PHOTO)
    expect(page.locator("#problem-title")).to_have_text(problem["title"])
    settle(page)
    size = len(saved(page, "#save-picture"))
    words = f"The picture has {size} bytes as PNG, which is what the page sends; make it smaller."
    expect(page.locator("#problem-detail")).to_have_text(f"{problem['detail']} {words}")
    page.unroute("**/encode*")
    page.route("**/encode*", lambda route: route.fulfill(status=413, body="<p>nginx", content_type="text/html"))
    page.select_option("#fit", "crop")
    page.set_input_files("#file", PHOTO)
    expect(page.locator("#problem-title")).to_have_text("Status 413")
    expect(page.locator("#problem-detail")).to_have_text(words)
