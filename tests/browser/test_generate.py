"""New pictures, as the page shows them, against the same request without the page."""

from __future__ import annotations

import httpx
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site
from tests.browser.reading import (
    JSON,
    body_of,
    hold,
    line,
    pixels_of,
    saved,
    settle,
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


def test_guidance_waits_for_a_label(page: Page) -> None:
    assert page.locator("#guidance").is_disabled()
    page.select_option("#label", "0")
    assert page.locator("#guidance").is_enabled()
    page.select_option("#label", "")
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    assert "guidance" not in body_of(line(page, "This sheet"))


def test_every_setting_reaches_the_service(page: Page, site: Site) -> None:
    page.select_option("#label", "1")
    fill_form(page, n="4", temperature="0.8", top_k="5", top_p="0.9", guidance="1.1", seed="7")
    page.evaluate(WATCH_ROWS)
    page.click("#generate")
    page.locator("#sheet img").nth(3).wait_for()
    settings = {"n": 4, "label": 1, "temperature": 0.8, "top_k": 5, "top_p": 0.9, "guidance": 1.1, "seed": 7}
    assert body_of(line(page, "This sheet")) == settings
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
    answer = body_of(line(page, "This sheet"))
    items = httpx.post(f"{site.address}generate", json=answer, headers=JSON).json()["items"]
    page.locator(".sample").nth(2).click()
    settle(page)
    decoded = httpx.post(f"{site.address}decode", json={"codes": items[2]["codes"]}).content
    assert (pixels_of(saved(page, "#save-picture")) == pixels_of(decoded)).all()


def test_cancel_ends_the_request(page: Page) -> None:
    """The answer is held back, so that there is time to cancel."""
    page.route("**/generate?*", lambda route: None)
    page.click("#generate")
    expect(page.locator("#generate")).to_be_disabled()
    with page.expect_event("requestfailed") as failed:
        page.click("#cancel")
    assert failed.value.url.endswith("/generate?model=digits")
    expect(page.locator("#generate-facts")).to_have_text("Cancelled.")
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator(".sample")).to_have_count(0)


def test_the_first_row_makes_the_cells(page: Page) -> None:
    """Before it the page keeps its height, so that nothing moves under the pointer."""
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    height = page.evaluate("document.getElementById('sheet').offsetHeight")
    held = hold(page, "**/generate?*")
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


def test_another_model_ends_a_sheet_that_waits(page: Page) -> None:
    settle(page)
    page.evaluate(WATCH_ROWS)
    held = hold(page, "**/generate?*")
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


def test_a_sheet_goes_on_when_a_picture_is_opened(page: Page) -> None:
    held = hold(page, "**/generate?*")
    page.click("#generate")
    wait_for_requests(page, held)
    page.set_input_files("#file", DIGIT)
    settle(page)
    held[0].continue_()
    page.locator("#sheet img").nth(15).wait_for()
