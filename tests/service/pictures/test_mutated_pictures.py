"""Mutated PNG, JPEG, WebP and BMP files: each is decoded or refused with a problem below 500, never anything else."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from service.bundle.fields import PictureSpec
from service.errors import Problem
from service.pictures.images import FORMATS, open_picture, to_picture
from tests.conftest import PICTURES

SPEC = PictureSpec(height=28, width=28, channels=3, any_size=True, multiple_of=4)
MUTATIONS = int(os.environ.get("VQSERVE_TEST_MUTATIONS", "400"))  # a format
MAX_PIXELS = 1 << 20


def original(format_name: str) -> bytes:
    stream = io.BytesIO()
    with Image.open(PICTURES / "ladybird_crop.jpg") as picture:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.resize((24, 16)).save(stream, format_name, **({} if format_name == "BMP" else {"exif": exif}))
    return stream.getvalue()


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bytes changed, removed, doubled or cut off, mostly near the start, where the headers are."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(random.integers(1, 5)):
            place = int(len(changed) * random.random() ** 2)
            length = int(random.integers(1, 9))
            match random.integers(0, 4):
                case 0:
                    changed[place : place + length] = random.bytes(len(changed[place : place + length]))
                case 1:
                    del changed[place : place + length]
                case 2:
                    changed[place:place] = changed[place : place + length]
                case _:
                    changed[place : place + 1] = bytes([int(random.choice([0, 1, 127, 128, 255]))])
        yield bytes(changed[: int(random.integers(1, len(changed) + 1))] if random.random() < 0.1 else changed)


@pytest.mark.parametrize("format_name", FORMATS)
def test_mutated_pictures_are_decoded_or_refused(format_name: str) -> None:
    decoded = refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damage that it can live with
        for data in mutations(original(format_name), MUTATIONS, seed=FORMATS.index(format_name)):
            try:
                picture = to_picture(open_picture(data, MAX_PIXELS), SPEC, "pad")
            except Problem as problem:
                assert problem.status in (413, 422), data.hex()
                refused += 1
            else:
                assert picture.pixels.dtype == np.uint8
                assert picture.pixels.shape[0] % 4 == picture.pixels.shape[1] % 4 == 0
                assert picture.pixels.shape[2] == 3
                decoded += 1
    assert decoded + refused == MUTATIONS
    assert refused > MUTATIONS // 20  # the mutations do damage
