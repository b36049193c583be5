"""What each code looks like, in the palette: a decoration, and the page without it."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page, Response, Route, expect

from tests.browser.chromium import browsing
from tests.browser.conftest import Site
from tests.browser.reading import settle, wait_for_requests
from tests.browser.test_workbench import assert_consistent
from tests.conftest import PICTURES
from tests.service.serving import serving
from tests.tiny_bundle import Weights

DIGIT = PICTURES / "digit_4.png"
MNIST = Path(__file__).parents[2] / "models" / "mnist"

# Tiny models have grey textures, and colours that are no grey.
PALETTE_IS_COLOURFUL = """() => {
    const canvas = document.querySelector("#palette canvas");
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value, i) => i % 4 === 0 && value !== data[i + 1]);
}"""


def wait_for_textures(page: Page) -> None:
    page.wait_for_function(f"() => !({PALETTE_IS_COLOURFUL})()")


def of_textures(response: Response) -> bool:
    return response.request.headers.get("accept") == "application/x-npy"


def test_the_palette_shows_textures(page: Page) -> None:
    settle(page)
    wait_for_textures(page)


def test_refused_textures_leave_the_colours_and_the_panels(browser: Browser, bundles: tuple[Path, Weights]) -> None:
    """The textures of 16 codes are more than 8 pictures. They are a decoration, and asked for once."""
    with (
        serving(bundles[0], VQSERVE_MAX_PICTURES_PER_REQUEST="8") as (_, address),
        browsing(browser, f"{address}/") as page,
    ):
        refused: list[str] = []
        page.on("response", lambda response: refused.extend([response.url] if response.status == 413 else []))
        with page.expect_response(of_textures) as asked:
            page.reload()
        assert asked.value.status == 413
        settle(page)
        expect(page.locator("#problem")).to_be_hidden()
        assert page.evaluate(PALETTE_IS_COLOURFUL)
        page.set_input_files("#file", DIGIT)
        assert_consistent(page, Site(f"{address}/", bundles[1]))
        expect(page.locator("#difference-facts")).to_contain_text("of 255")
        assert len(refused) == 1


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

        def is_last(response: Response) -> bool:
            statuses.extend([response.status] if of_textures(response) else [])
            return len(statuses) == 512 // 32

        with page.expect_response(is_last):
            page.reload()
        assert set(statuses) == {200}
        expect(page.locator("#palette")).to_have_attribute("aria-colcount", "48")
        page.set_viewport_size({"width": 390, "height": 844})
        expect(page.locator("#palette")).to_have_attribute("aria-colcount", "24")


def test_nothing_waits_for_textures(page: Page) -> None:
    """Regression: on a slow network what was drawn had no codes until all of them were there, for 20 seconds."""
    settle(page)
    wait_for_textures(page)
    held: list[Route] = []

    def hold_textures(route: Route) -> None:
        if route.request.headers["accept"] == "application/x-npy" and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/decode*", hold_textures)
    page.select_option("#model", "silent")
    wait_for_requests(page, held)
    expect(page.locator("#announcement")).to_contain_text("Encoded to 7 by 7 codes.")
    settle(page)
    with page.expect_response("**/encode*"):
        page.press("#pad", "Space")  # a dot
    settle(page)
    page.set_input_files("#file", DIGIT)
    settle(page)
    assert page.evaluate(PALETTE_IS_COLOURFUL)
    held[0].continue_()
    wait_for_textures(page)
