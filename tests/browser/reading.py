"""What the page shows, read for comparison with what the service says when it is asked directly."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Route

JSON = {"accept": "application/json"}
Pixels = NDArray[np.uint8]


def line(page: Page, title: str) -> str:
    """The curl line with this title."""
    row = page.locator(".lines li", has=page.get_by_text(title, exact=True))
    return row.locator("code").inner_text()


def body_of(curl: str) -> Any:
    """The JSON that a curl line sends."""
    words = shlex.split(curl)
    return json.loads(words[words.index("-d") + 1])


def shown_codes(page: Page) -> Any:
    return body_of(line(page, "Codes to picture"))["codes"]


def run_curl(curl: str, folder: Path) -> bytes:
    words = shlex.split(curl)
    return subprocess.run([*words, "-sS", "--fail-with-body"], cwd=folder, check=True, stdout=subprocess.PIPE).stdout


def saved(page: Page, link: str) -> bytes:
    with page.expect_download() as download:
        page.click(link)
    return Path(download.value.path()).read_bytes()


def pixels_of(png: bytes) -> Pixels:
    """(H,W) or (H,W,3)."""
    return np.asarray(Image.open(io.BytesIO(png)))


def bytes_shown(page: Page, title: str) -> int:
    """The number behind a bar of the panel "Bytes"."""
    name = page.locator("#bytes dt", has_text=re.compile(f"^{re.escape(title)}"))
    return int(name.locator("xpath=following-sibling::dd[1]").inner_text().removesuffix(" B"))


def settle(page: Page) -> None:
    """Until the four panels show the same picture."""
    page.locator("#panels[aria-busy=false]").wait_for()


def hold(page: Page, path: str, most: int = 99) -> list[Route]:
    """The first `most` requests of this path, in a list that grows, without an answer."""
    held: list[Route] = []
    page.route(path, lambda route: held.append(route) if len(held) < most else route.continue_())
    return held


def wait_for_requests(page: Page, held: list[Route], count: int = 1) -> None:
    for _ in range(3000):
        if len(held) >= count:
            return
        page.wait_for_timeout(10)
    raise AssertionError("no such request came")
