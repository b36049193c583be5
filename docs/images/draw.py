"""The pictures of the README, from what the repository holds: `python -m docs.images.draw` (or `make docs`).

In: models/mnist and the first test digits of MNIST; models/photos and parts of four photographs that its training put
aside. Out: reconstructions.png, test digits above what comes back from their codes; samples.png, ten new digits of each
label; photographs.png, as the first. The same bundles give the same pictures.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.arrays import read_idx_folder
from vqserve.offline import Offline

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
COLUMNS, GAP, GROUND, ZOOM = 20, 2, 128, 2  # pictures a row, pixels between them, grey level, pixels of the PNG a pixel
Pixels = NDArray[np.uint8]


def reconstructions(model: Offline) -> Pixels:
    """Two double rows of test digits, (H',W')."""
    test = read_idx_folder(ROOT / "tests" / "fixtures" / "mnist").test
    assert test is not None
    digits = np.stack([np.asarray(test.images[index])[0] for index in range(2 * COLUMNS)])  # (N,H,W) uint8
    decoded = [model.decompress(model.compress([png(digit)], "exact", 0.0))[0, :, :, 0] for digit in digits]
    return sheet([*digits[:COLUMNS], *decoded[:COLUMNS], *digits[COLUMNS:], *decoded[COLUMNS:]])


def samples(model: Offline) -> Pixels:
    """Ten of each label with guidance 1.5, two labels a row, (H',W')."""
    drawn = [
        one
        for label in range(10)
        for one in model.generate({"n": 10, "label": label, "seed": label, "guidance": 1.5}).items
    ]
    return sheet([np.asarray(Image.open(io.BytesIO(one.png))) for one in drawn])


def photographs(model: Offline) -> Pixels:
    """Four photographs above what comes back from their bytes, (H',W',3)."""
    given = [path.read_bytes() for path in held_out()]
    decoded = [model.decompress(one)[0] for one in compressed(model)]
    rows = [[np.asarray(Image.open(io.BytesIO(one))) for one in given], decoded]
    gap = np.full((len(decoded[0]), GAP, 3), GROUND, np.uint8)
    joined = [np.concatenate([part for one in row for part in (one, gap)][:-1], axis=1) for row in rows]
    return np.concatenate([joined[0], np.full_like(joined[0][:GAP], GROUND), joined[1]])


def held_out() -> list[Path]:
    return sorted((ROOT / "tests" / "fixtures" / "pictures").glob("*_middle.jpg"))


def compressed(model: Offline) -> list[bytes]:
    return [model.compress([path.read_bytes()], "exact", 0.0) for path in held_out()]


def sheet(pictures: list[Pixels]) -> Pixels:
    side = len(pictures[0]) + GAP
    canvas = np.full((len(pictures) // COLUMNS * side + GAP, COLUMNS * side + GAP), GROUND, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // COLUMNS * side + GAP, index % COLUMNS * side + GAP
        canvas[top : top + side - GAP, left : left + side - GAP] = picture
    return canvas


def png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return stream.getvalue()


# name -> bundle, what draws it, and how many pixels of the PNG a pixel takes
DRAWINGS = {
    "reconstructions.png": ("mnist", reconstructions, ZOOM),
    "samples.png": ("mnist", samples, ZOOM),
    "photographs.png": ("photos", photographs, 1),
}


def drawing(name: str) -> Pixels:
    bundle, draw, zoom = DRAWINGS[name]
    return draw(Offline(ROOT / "models" / bundle)).repeat(zoom, axis=0).repeat(zoom, axis=1)


def main() -> None:
    for name in DRAWINGS:
        (FOLDER / name).write_bytes(png(drawing(name)))


if __name__ == "__main__":
    main()
