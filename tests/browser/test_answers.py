"""Answers that are not the service's own, or not whole: what the page says of them."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.chromium import unchecked
from tests.browser.conftest import Site
from tests.browser.reading import settle
from tests.conftest import PICTURES

LOST = "The service cannot be reached"
UNREADABLE = "The answer cannot be read"
WEB_PAGE = f"<!doctype html><title>Bad gateway</title><p>{'proxy ' * 100}</p>"
CUT_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: 9999\r\nConnection: close\r\n\r\n"
CUT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def cutting(answer: bytes) -> Iterator[str]:
    """The address of a server that answers every request so, and closes the connection."""

    class Cut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if self.request.recv(1 << 20):  # a browser may open a connection that it does not use
                self.request.sendall(answer)
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(1 << 20):  # to its end: what is left unread would reset the connection
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cut) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def alone(browser: Browser, site: Site) -> Iterator[Page]:
    """The page without the checks of `browsing`."""
    with unchecked(browser) as page:
        page.goto(site.address)
        page.locator("#codec-lines li").first.wait_for()
        settle(page)
        yield page


def ask(page: Page, path: str) -> None:
    """Something that needs an answer from there."""
    if path == "decode":
        page.fill("#code", "3")
        page.keyboard.press("Enter")
    else:
        page.click({"encode": "#clear", "generate": "#generate"}[path])


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("encode", CUT_LENGTH % b"application/json" + b'{"codes": [[1,'),
        ("decode", CUT_LENGTH % b"image/png" + b"\x89PNG"),
        ("generate", CUT_STREAM + b"9\r\n: alive\n\n\r\n"),
        ("generate", CUT_LENGTH.replace(b"200 OK", b"503 Busy") % b"text/plain" + b"busy"),
        ("generate", CUT_LENGTH.replace(b"200 OK", b"503 Busy") % b"application/problem+json" + b"{"),
    ],
    ids=["json", "picture", "stream", "text of a refusal", "problem"],
)
def test_a_connection_that_is_lost_during_an_answer(alone: Page, path: str, answer: bytes) -> None:
    with cutting(answer) as address:
        alone.route(f"**/{path}*", lambda route: route.continue_(url=address))
        ask(alone, path)
        expect(alone.locator("#problem-title")).to_have_text(LOST)
        expect(alone.locator("#problem-detail")).to_contain_text("See whether the service runs, then try again.")


def test_a_script_that_does_not_load_is_told_and_asked_for_again(browser: Browser, site: Site) -> None:
    with unchecked(browser) as page:
        page.route("**/png_worker.js", lambda route: route.abort())
        page.goto(site.address)
        expect(page.locator("#problem-detail")).to_contain_text("png_worker.js, a script of the page, does not load.")
        settle(page)
        page.unroute("**/png_worker.js")
        page.click("#clear")
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#codes-facts")).to_have_text("7 × 7 of 16")


@pytest.mark.parametrize("path", ["encode", "decode", "generate"])
def test_a_web_page_in_the_place_of_an_answer(page: Page, path: str) -> None:
    settle(page)
    page.route(f"**/{path}*", lambda route: route.fulfill(body=WEB_PAGE, content_type="text/html; charset=utf-8"))
    ask(page, path)
    expect(page.locator("#problem-title")).to_have_text(UNREADABLE)


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("encode", "application/json", '{"codes": [[1,'),
        ("generate", "text/event-stream", 'event: row\ndata: {"row": 0,\n\n'),
    ],
)
def test_json_that_is_cut(page: Page, path: str, kind: str, body: str) -> None:
    settle(page)
    page.route(f"**/{path}*", lambda route: route.fulfill(body=body, content_type=kind))
    ask(page, path)
    expect(page.locator("#problem-title")).to_have_text(UNREADABLE)


@pytest.mark.parametrize(
    ("kind", "body", "detail"),
    [("text/html", WEB_PAGE, ""), ("text/plain", "a" * 5000, "a" * 200 + "…"), ("text/plain", "busy", "busy")],
    ids=["web page", "long", "short"],
)
def test_an_error_of_a_proxy_is_short(page: Page, kind: str, body: str, detail: str) -> None:
    settle(page)

    def refuse(route: Route) -> None:
        route.fulfill(status=413, body=body, content_type=kind)

    page.route("**/generate?*", refuse)
    page.click("#generate")
    expect(page.locator("#problem-title")).to_have_text("Status 413")
    expect(page.locator("#problem-detail")).to_have_text(detail)


def test_a_message_of_the_browser_ends_with_one_period(page: Page) -> None:
    """Regression: those of Firefox have one of their own."""
    settle(page)
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('NetworkError at a resource.')); }")
    page.click("#generate")
    expect(page.locator("#problem-detail")).to_have_text(
        "The browser says: NetworkError at a resource. See whether the service runs, then try again."
    )


# What each read gives in the place of what was drawn: as Tor Browser, and as Brave.
NOISE = """(levels) => {
    const { prototype } = OffscreenCanvasRenderingContext2D;
    const { getImageData } = prototype;
    prototype.getImageData = function (...given) {
        const image = getImageData.apply(this, given);
        for (let i = 0; i < image.data.length; i += 40) image.data[i] ^= levels;
        return image;
    };
}"""


def test_a_browser_that_hides_pixels_is_told(page: Page) -> None:
    """Regression: with resistFingerprinting Firefox gave noise, which was encoded and saved without a word."""
    settle(page)
    page.evaluate(NOISE, 255)
    page.set_input_files("#file", PICTURES / "ladybird_crop.jpg")
    expect(page.locator("#problem-title")).to_have_text("The browser hides pixels from the page")
    settle(page)
    expect(page.locator("#fit-controls")).to_be_hidden()  # the picture is the one of before
    page.click("#clear")
    expect(page.locator("#problem-again")).to_be_visible()  # of the decoded picture: reading may be allowed now


def test_a_browser_that_changes_pixels_by_one_level_is_taken(page: Page) -> None:
    settle(page)
    page.evaluate(NOISE, 1)
    page.set_input_files("#file", PICTURES / "ladybird_crop.jpg")
    expect(page.locator("#fit-controls")).to_be_visible()
    settle(page)
    expect(page.locator("#problem")).to_be_hidden()
