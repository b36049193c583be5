"""A service that fails for a while, and one that comes back with other models."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.chromium import browsing, unchecked
from tests.browser.conftest import Site
from tests.browser.reading import body_of, bytes_shown, line, pixels_of, saved, settle
from tests.service.serving import serving
from tests.tiny_bundle import tiny_prior, write_tiny_bundle

AGAIN = "Try again"
CONTAINER = "application/vnd.vqserve.codes"
ANOTHER_VERSION = "The service has another version of this model now"


def refuse(page: Page, path: str, status: int, accept: str = "") -> None:
    """What asks for this path, and accepts this type, is answered with `status`."""

    def answer(route: Route) -> None:
        if accept in route.request.headers["accept"]:
            problem = {"title": "Refused", "detail": "For now.", "status": status}
            route.fulfill(status=status, json=problem, content_type="application/problem+json")
        else:
            route.continue_()

    page.route(path, answer)


def open_black(page: Page) -> None:
    """A picture without anything in it, and whatever comes of it."""
    page.click("#clear")
    settle(page)


def assert_all_of_its_own(page: Page) -> None:
    settle(page)
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator(".stale")).to_have_count(0)
    expect(page.locator("#difference-facts")).to_contain_text("of 255")
    assert bytes_shown(page, "PNG") == len(saved(page, "#save-picture"))


@pytest.mark.parametrize(
    ("path", "accept"),
    [("**/encode*", "json"), ("**/decode*", ""), ("**/encode*", CONTAINER)],
    ids=["encode", "decode", "compress"],
)
def test_a_picture_that_is_refused_for_now_can_be_tried_again(page: Page, path: str, accept: str) -> None:
    """Regression: it could not, and the bytes of the picture before stayed, pale, whatever was done with the codes."""
    settle(page)
    refuse(page, path, 429, accept)
    open_black(page)
    again = page.get_by_role("button", name=AGAIN)
    again.click()
    expect(page.locator("#problem-title")).to_have_text("Refused")
    settle(page)
    page.unroute(path)
    again.click()
    assert_all_of_its_own(page)


def test_bytes_that_are_lost_leave_the_decoded_picture(page: Page) -> None:
    """Regression: it was there, and went; a changed code brought it back, without the bytes."""
    settle(page)
    refuse(page, "**/encode*", 429, CONTAINER)
    open_black(page)
    expect(page.locator("#decoded-facts")).to_contain_text("MSE")
    page.unroute("**/encode*")
    page.fill("#code", str((int(page.input_value("#code")) + 1) % 16))
    page.keyboard.press("Enter")
    assert_all_of_its_own(page)


def test_what_would_be_refused_again_is_not_offered(page: Page) -> None:
    settle(page)
    refuse(page, "**/encode*", 422)
    open_black(page)
    expect(page.locator("#problem-title")).to_have_text("Refused")
    expect(page.get_by_role("button", name=AGAIN)).to_be_hidden()
    expect(page.get_by_role("button", name="Dismiss the message")).to_be_visible()


def test_samples_do_not_hide_that_a_picture_was_refused(page: Page) -> None:
    """Regression: its codes stayed pale, and nothing said why; a refusal of the samples themselves goes with it."""
    settle(page)
    page.fill("#n", "20000")
    page.click("#generate")
    expect(page.locator("#problem-detail")).to_contain_text("20000")
    page.fill("#n", "2")
    page.click("#generate")
    expect(page.locator("#problem")).to_be_hidden()
    refuse(page, "**/encode*", 413)
    open_black(page)
    page.click("#generate")
    expect(page.locator("#announcement")).to_have_text("2 samples are ready.")
    expect(page.locator("#problem-title")).to_have_text("Refused")
    expect(page.locator("#problem")).to_be_visible()


def test_the_models_can_be_asked_for_again(browser: Browser, site: Site) -> None:
    """Regression: only by loading the page anew."""
    with unchecked(browser) as page:
        page.route("**/models", lambda route: route.abort())
        page.goto(site.address)
        expect(page.locator("#problem-title")).to_have_text("The service cannot be reached")
        page.unroute("**/models")
        page.focus("#problem-again")
        page.keyboard.press("Enter")
        settle(page)
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#codes-facts")).to_have_text("7 × 7 of 16")


def test_the_default_model_is_asked_for_by_its_name(page: Page) -> None:
    """Regression: it was not, and where the service came back with another default, that one answered in its place."""
    settle(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.extend([request.url] if request.method == "POST" else []))
    open_black(page)
    page.click("#generate")
    page.locator("#sheet img").nth(15).wait_for()
    assert {url.rpartition("/")[2] for url in asked} == {
        f"{path}?model=digits" for path in ("encode", "decode", "generate")
    }
    assert "model=" not in line(page, "Picture to codes") + line(page, "This sheet")  # as short as they can be


@pytest.mark.parametrize("asked", ["#clear", "#generate"])
def test_another_version_of_the_model_is_told_and_taken(browser: Browser, site: Site, asked: str) -> None:
    """Regression: its answers were shown in the colours, and under the version, of the one before."""

    def age(route: Route) -> None:
        listed = route.fetch().json()
        for model in listed["models"]:
            model["version"] = "0123456789abcdef"
        route.fulfill(json=listed)

    with browsing(browser, site.address) as page:
        page.route("**/models", age)
        with page.expect_response("**/models"):
            page.reload()
        expect(page.locator("#problem-title")).to_have_text(ANOTHER_VERSION)
        settle(page)
        page.click("#problem-close")
        page.click(asked)
        expect(page.locator("#problem-detail")).to_contain_text("the page shows 0123456789ab. Try again to take it.")
        settle(page)
        drawn = page.evaluate("document.getElementById('pad').toDataURL()")
        page.unroute("**/models")
        page.get_by_role("button", name=AGAIN).click()
        expect(page.locator("#codes-facts")).to_have_text("7 × 7 of 16")
        settle(page)
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#model-facts")).not_to_contain_text("0123456789ab")
        assert page.evaluate("document.getElementById('pad').toDataURL()") == drawn


def test_samples_of_another_version_may_have_codes_that_the_page_does_not_know(browser: Browser, site: Site) -> None:
    """Regression: they ended in a TypeError, in the words of the browser."""

    def shrink(route: Route) -> None:
        listed = route.fetch().json()
        listed["models"][0]["version"] = "0123456789abcdef"
        listed["models"][0]["codes"]["codebook_size"] = 2
        route.fulfill(json=listed)

    with browsing(browser, site.address) as page:
        page.route("**/models", shrink)
        page.reload()
        settle(page)
        page.click("#problem-close")
        page.click("#generate")
        expect(page.locator("#problem")).to_be_visible()
        expect(page.locator("#problem-title")).to_have_text(ANOTHER_VERSION)


def test_changed_codes_are_not_decoded_by_another_version(browser: Browser, tmp_path: Path) -> None:
    """Regression: after a reload they were, beside the codes and the colours of the one before, and nothing said so."""
    write_tiny_bundle(tmp_path / "served", "digits")
    write_tiny_bundle(tmp_path / "next", "digits", seed=1)
    with serving(tmp_path / "served") as (_, address), browsing(browser, f"{address}/") as page:
        settle(page)
        before = page.locator("#model-facts").inner_text()
        assert "version" not in body_of(line(page, "Codes to picture"))  # as short as it can be
        shutil.copytree(tmp_path / "next", tmp_path / "served", dirs_exist_ok=True)
        assert httpx.post(f"{address}/models/digits/reload").status_code == 200
        page.fill("#code", str((int(page.input_value("#code")) + 1) % 16))
        page.keyboard.press("Enter")
        expect(page.locator("#problem-title")).to_have_text(ANOTHER_VERSION)
        page.get_by_role("button", name=AGAIN).click()
        expect(page.locator("#model-facts")).not_to_have_text(before)
        assert_all_of_its_own(page)


def test_the_chosen_model_stays_when_others_come(browser: Browser, site: Site) -> None:
    """And so does the picture: what asks for the models again is no choice of another one."""

    def hide_the_last(route: Route) -> None:
        listed = route.fetch().json()
        listed["models"][1]["version"] = "0123456789abcdef"
        route.fulfill(json={"models": listed["models"][:2]})

    with browsing(browser, site.address) as page:
        page.route("**/models", hide_the_last)
        page.reload()
        settle(page)
        page.select_option("#model", "colour")
        expect(page.locator("#problem-title")).to_have_text(ANOTHER_VERSION)
        page.unroute("**/models")
        page.get_by_role("button", name=AGAIN).click()
        expect(page.locator("#model option")).to_have_count(3)
        expect(page.locator("#model")).to_have_value("colour")
        expect(page.locator("#codes-facts")).to_have_text("4 × 4 of 16")


def test_a_drawing_stays_for_a_model_that_takes_such_pictures(page: Page) -> None:
    """Regression: the first drawing came in its place."""
    open_black(page)
    page.select_option("#model", "silent")
    assert_all_of_its_own(page)
    assert not pixels_of(saved(page, "#save-picture")).any()
    page.select_option("#model", "colour")
    settle(page)
    expect(page.locator("#picture-facts")).to_have_text("16 × 16")


@pytest.mark.parametrize("asked", ["#clear", "#generate"])
def test_a_model_that_is_served_no_longer_gives_way_to_another(browser: Browser, tmp_path: Path, asked: str) -> None:
    """Regression: every request was refused, "Try again" was not there, and the list kept the name."""
    write_tiny_bundle(tmp_path / "served", "digits", prior=tiny_prior(3))
    with serving(tmp_path / "served") as (_, address), browsing(browser, f"{address}/") as page:
        page.route("**/models", lambda route: rename(route, "gone"))
        page.reload()
        expect(page.locator("#problem-title")).to_have_text("No such model")
        settle(page)
        page.click("#problem-close")
        page.click(asked)
        expect(page.locator("#problem-title")).to_have_text("No such model")
        settle(page)
        page.unroute("**/models")
        page.get_by_role("button", name=AGAIN).click()
        expect(page.locator("#model option")).to_have_text(["digits"])
        assert_all_of_its_own(page)


def test_a_model_that_takes_pictures_of_another_size_now_can_be_taken(browser: Browser, site: Site) -> None:
    """The picture was told to be wrong, and that was all."""

    def shrink(route: Route) -> None:
        listed = route.fetch().json()
        listed["models"][0]["picture"] |= {"width": 14, "height": 14}
        route.fulfill(json=listed)

    with browsing(browser, site.address) as page:
        page.route("**/models", shrink)
        page.reload()
        expect(page.locator("#problem-detail")).to_contain_text("14")
        settle(page)
        page.unroute("**/models")
        page.get_by_role("button", name=AGAIN).click()
        expect(page.locator("#picture-facts")).to_have_text("28 × 28")
        assert_all_of_its_own(page)


def rename(route: Route, name: str) -> None:
    listed = route.fetch().json()
    listed["models"][0]["name"] = name
    route.fulfill(json=listed)
