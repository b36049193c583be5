"""A real browser. In: an address. Out: its page in Debian's chromium with an empty profile, checked for faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_PATIENCE_MS = 30_000  # for what takes milliseconds: other tests run beside these
expect.set_options(timeout=_PATIENCE_MS)


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Only while it is needed: Playwright keeps an event loop running, beside which no other can be started."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browsing(
    browser: Browser, address: str, width: int = 1280, height: int = 900, dark: bool = False, scale: float = 1
) -> Iterator[Page]:
    """The page at `address`. On the way out: it has logged no error, thrown none, and asked no other host.

    Refused requests are answers that the page shows; the browser logs them too, and that is no fault.
    """
    faults: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
        has_touch=width < 500,
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    page.on("console", lambda message: faults.extend(_fault(message)))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.extend(_foreign(request.url, address)))
    page.set_default_timeout(_PATIENCE_MS)
    try:
        page.goto(address)
        yield page
    finally:
        context.close()
    assert faults == []


@contextmanager
def unchecked(browser: Browser, java_script_enabled: bool = True) -> Iterator[Page]:
    """An empty page without the checks of `browsing`, for which a connection that fails is a fault."""
    page = browser.new_page(java_script_enabled=java_script_enabled)
    page.set_default_timeout(_PATIENCE_MS)
    try:
        yield page
    finally:
        page.close()


def _fault(message: ConsoleMessage) -> list[str]:
    refused = message.text.startswith("Failed to load resource: the server responded with a status of 4")
    return [message.text] if message.type in ("error", "warning") and not refused else []


def _foreign(url: str, address: str) -> list[str]:
    return [] if url.startswith((address, "data:", "blob:")) else [f"asked {url}"]
