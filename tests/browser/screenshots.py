"""Pictures of the playground for the documentation: `python -m tests.browser.screenshots BUNDLE FOLDER`.

In: a bundle that takes digits, chromium. Out: playground-light.png, playground-dark.png and playground-phone.png. The
samples have a fixed seed; the letters are those of the machine's fonts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.browser.chromium import browsing, chromium
from tests.browser.reading import settle
from tests.service.serving import serving

DIGIT = Path(__file__).parents[1] / "fixtures" / "pictures" / "digit_2.png"
SAMPLES, SEED, TEMPERATURE = 24, 11, "0.9"

# A tile of one colour is the same at two places inside of it; of those with a texture some are not.
PALETTE_HAS_TEXTURES = """() => {
    const [palette, canvas] = [document.getElementById("palette"), document.querySelector("#palette canvas")];
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const [rows, columns] = [Number(palette.ariaRowCount), Number(palette.ariaColCount)];
    const pixel = (row, column) => {
        const [x, y] = [(column * canvas.width) / columns, (row * canvas.height) / rows].map(Math.floor);
        return copy.getImageData(x, y, 1, 1).data.join();
    };
    const differs = (row, column) => pixel(row + 0.25, column + 0.25) !== pixel(row + 0.6, column + 0.6);
    return Array.from({ length: rows * columns }).some((_, i) => differs(Math.floor(i / columns), i % columns));
}"""


def main(bundle: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with serving(bundle) as (_, address), chromium() as browser:
        take(browser, address, folder / "playground-light.png", width=1280)
        take(browser, address, folder / "playground-dark.png", width=1280, dark=True)
        take(browser, address, folder / "playground-phone.png", width=390, scale=2)


def take(browser: Browser, address: str, path: Path, width: int, dark: bool = False, scale: float = 1) -> None:
    with browsing(browser, f"{address}/", width=width, height=844, dark=dark, scale=scale) as page:
        page.set_input_files("#file", DIGIT)
        settle(page)
        page.wait_for_function(PALETTE_HAS_TEXTURES)  # asked for last
        generate(page)
        if dark:
            erase(page)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.screenshot(path=path, full_page=width > 500)


def generate(page: Page) -> None:
    page.fill("#n", str(SAMPLES))
    page.fill("#seed", str(SEED))
    page.fill("#temperature", TEMPERATURE)
    page.click("#generate")
    page.locator("#sheet img").nth(SAMPLES - 1).wait_for()


def erase(page: Page) -> None:
    """The lower part of the grid."""
    page.get_by_text("Erase", exact=True).click()
    box = page.locator("#codes").bounding_box()
    assert box is not None
    cell = box["width"] / 7
    page.mouse.move(box["x"] + cell / 2, box["y"] + 4.5 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 6.5 * cell, box["y"] + 6.5 * cell)
    page.mouse.up()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
