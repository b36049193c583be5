"""Colours that can be told apart: by their contrast, in light and dark, and in the colours of the system."""

from __future__ import annotations

import re
from itertools import product

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.chromium import browsing
from tests.browser.conftest import Site
from tests.browser.reading import settle

# Text needs 4.5:1 (WCAG 2.2, 1.4.3); the outlines of controls need 3:1 (1.4.11).
TEXT_PAIRS = list(product(("--ink", "--soft", "--accent"), ("--paper", "--panel", "--well")))
PAIRS = [
    *((*pair, 4.5) for pair in TEXT_PAIRS),
    ("--bad", "--bad-paper", 4.5),
    ("--ink", "--bad-paper", 4.5),
    ("--on-accent", "--accent", 4.5),
    ("--edge", "--paper", 3),
    ("--edge", "--well", 3),
]

WATCH_INK = """() => {
    window.alphas = [];
    const write = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (...given) {
        window.alphas.push(this.globalAlpha);
        return write.apply(this, given);
    };
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_colours_contrast_in_light_and_dark(browser: Browser, site: Site, dark: bool) -> None:
    with browsing(browser, site.address, dark=dark) as page:
        settle(page)
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        names = sorted({name for text, ground, _ in PAIRS for name in (text, ground)})
        colours = {name: page.evaluate(f"(name) => {style}(name)", name).strip() for name in names}
    too_weak = {
        (a, b): contrast(colours[a], colours[b]) for a, b, least in PAIRS if contrast(colours[a], colours[b]) < least
    }
    assert too_weak == {}
    assert (luminance(colours["--paper"]) < 0.1) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_what_an_empty_field_says_contrasts(browser: Browser, site: Site, dark: bool) -> None:
    """Regression: in the browser's own grey it was 3.7:1 on a dark page."""
    with browsing(browser, site.address, dark=dark) as page:
        settle(page)
        style = "(part) => getComputedStyle(document.getElementById('seed'), part)"
        text, ground = page.evaluate(f"[({style})('::placeholder').color, ({style})().backgroundColor]")
        assert contrast(hexadecimal(text), hexadecimal(ground)) >= 4.5


def hexadecimal(colour: str) -> str:
    """ "rgb(1, 2, 3)" -> "#010203"."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def test_the_number_of_a_code_contrasts_with_its_colour(page: Page) -> None:
    """Regression: white on a middle grey, and that with an opacity of 0.72, was 2.8:1."""
    grounds = [f"#{level:02x}{level:02x}{level:02x}" for level in range(256)] + ["#ff0000", "#00ff00", "#0000ff"]
    inks = "import('./playground/colours.js').then(({ inkOn }) => grounds.map(inkOn))"
    chosen = page.evaluate(f"(grounds) => {inks}", grounds)
    assert min(contrast(ink, ground) for ink, ground in zip(chosen, grounds, strict=True)) >= 4.5
    page.evaluate(WATCH_INK)
    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_function("window.alphas.length >= 49")
    assert set(page.evaluate("window.alphas")) == {1}


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance by WCAG of "#rrggbb"."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_states_are_seen_in_the_colours_of_the_system(page: Page) -> None:
    """Regression: what a click does, the bars and the legend were all of the colour of the page."""
    settle(page)
    page.emulate_media(forced_colors="active")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    enabled, disabled = (
        page.evaluate("(one) => getComputedStyle(document.querySelector(one)).color", one)
        for one in ("#clear", "#cancel")
    )
    assert enabled != disabled
    for shown in (".choice input:checked + span", "#bytes .bar", ".swatch.brighter", ".swatch.darker"):
        assert page.evaluate("(one) => getComputedStyle(document.querySelector(one)).backgroundColor", shown) != ground
    assert page.evaluate("getComputedStyle(document.querySelector('#codes .cell')).forcedColorAdjust") == "none"
