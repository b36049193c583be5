"""The pages of the two formats, where a reader in another language can go astray: their words are followed."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from benchmarks.tiny_prior import tiny_model
from service.codec import encode
from service.codec.container import Mode
from service.pictures.images import MOST_INFLATED, MOST_PROFILES, MOST_SCANS
from service.reference import DOCS, ROOT
from service.wire.schemas import MOST_VALUES

PICTURES, HEIGHT, WIDTH = 2, 5, 6  # codes; beside whole tiles smaller ones at both borders
ENTRY = 5  # bytes: a length below 128 and a checksum


def test_the_entries_of_an_index_are_picture_by_picture_and_row_by_row() -> None:
    """They were in "the order of the list above", which the page had just sorted."""
    page = " ".join((DOCS / "code-format.md").read_text(encoding="utf-8").split())
    assert "one entry a tile, picture by picture and row by row, not sorted" in page
    model = tiny_model()
    high, wide = model.native_grid
    codes = np.random.default_rng(0).integers(0, model.codebook_size, (PICTURES, HEIGHT, WIDTH))
    size = (HEIGHT * model.multiple_of, WIDTH * model.multiple_of)
    data = encode(model, codes, size=size, modes=[Mode.RAW], indexed=True)
    tiles = [
        codes[picture, top : top + high, left : left + wide].ravel()
        for picture in range(PICTURES)
        for top in range(0, HEIGHT, high)
        for left in range(0, WIDTH, wide)
    ]
    header = 14  # 10 bytes, the extension, the number of pictures, height and width
    streams = data[header + ENTRY * len(tiles) :]
    assert [data[header + ENTRY * index] for index in range(len(tiles))] == [(4 * len(tile) + 7) // 8 for tile in tiles]
    bits = "".join(f"{code:04b}" for code in tiles[0])
    assert streams.startswith(int(bits, 2).to_bytes(len(bits) // 8, "big"))


@pytest.mark.parametrize("name", ["mnist", "photos", "photos-f8"])
def test_the_version_of_a_bundle_is_what_the_page_says(name: str) -> None:
    """A line feed between the lines and one at the end of each are two hashes; the page did not say which."""
    assert "each with a line feed at its end" in (DOCS / "bundle-format.md").read_text(encoding="utf-8")
    manifest = json.loads((ROOT / "models" / name / "manifest.json").read_text(encoding="utf-8"))
    counted = {graph: one for graph, one in manifest["graphs"].items() if not graph.startswith("prior_diagonal")}
    lines = sorted(f"{graph} {one.get('counts_as') or one['sha256']}" for graph, one in counted.items())
    assert hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest() == manifest["version"]
    context = {one["name"]: one["shape"] for one in manifest["graphs"]["prior_context"]["inputs"]}
    layers, width, channels = manifest["prior"]["cache_shape"]
    assert (context["caches"], width) == (["B", layers, "w", channels], manifest["codes"]["width"])


def test_the_numbers_in_prose_are_those_of_the_code() -> None:
    """The page of /v2 had a number that the code had left."""
    assert f"at most {MOST_VALUES:,} numbers" in (DOCS / "api.md").read_text()
    limits = (DOCS / "limits.md").read_text()
    assert f"{MOST_SCANS} scans" in limits and f"{MOST_PROFILES} of them may be profiles" in limits
    assert f"and {MOST_INFLATED} that may be compressed" in limits
