"""Transparency of a PNG is laid over white, of any depth: its samples become 8 bits, and so must the level that says
which of them are transparent."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from service.bundle.fields import PictureSpec
from service.errors import NotAPicture
from service.pictures.images import open_picture, to_picture
from service.pictures.pixels import to_channels
from tests.service.bad_inputs import png_chunk

GREY, COLOUR, PALETTE = 0, 2, 3


def png(bits: int, kind: int, row: Sequence[int], transparent: Sequence[int]) -> bytes:
    """One row of samples of this depth, and the level or colour in tRNS, if there is one. A palette is left out."""
    width = len(row) // (3 if kind == COLOUR else 1)
    packed = int("".join(f"{sample:0{bits}b}" for sample in row), 2).to_bytes(-(-len(row) * bits // 8), "big")
    header = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    keys = [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))] if transparent else []
    parts = (b"IHDR", header), *keys, (b"IDAT", zlib.compress(b"\0" + packed)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def decoded(data: bytes, channels: int) -> list[int]:
    spec = PictureSpec(height=28, width=28, channels=channels, any_size=True, multiple_of=1)
    levels: list[int] = to_picture(open_picture(data, 1000), spec, "exact").pixels.ravel().tolist()
    return levels


@pytest.mark.parametrize(
    ("bits", "levels", "shown"),
    [
        (1, [0, 1], [0, 255]),
        (2, [0, 1, 2, 3], [0, 85, 170, 255]),
        (4, [0, 1, 8, 15], [0, 17, 136, 255]),
        (8, [0, 1, 200, 255], [0, 1, 200, 255]),
        (16, [0, 255, 256, 65535], [0, 0, 1, 255]),
    ],
)
def test_a_transparent_grey_is_laid_over_white(bits: int, levels: list[int], shown: list[int]) -> None:
    """Of 2 and 4 bits, another level was laid over white, or none."""
    row = levels * (8 // len(levels))
    for index, level in enumerate(levels):
        expected = [*shown[:index], 255, *shown[index + 1 :]]
        assert decoded(png(bits, GREY, row, [level]), 1) == expected * (8 // len(levels))


@pytest.mark.parametrize(
    ("bits", "key", "other"),
    [
        (8, (0x12, 0x34, 0x56), (1, 2, 3)),
        (8, (0, 0, 200), (0, 0, 0)),
        (16, (0x1299, 0x3499, 0x5699), (0x0100, 0x0200, 0x0300)),
        (16, (0, 0, 200), (0, 0, 200 << 8)),
        (16, (0, 0, 0), (0, 0, 256)),
    ],
)
def test_a_transparent_colour_is_laid_over_white(bits: int, key: tuple[int, ...], other: tuple[int, ...]) -> None:
    """One of 16 bits whose levels are all below 256 was taken for one of 8: another colour became white."""
    shown = [level >> bits - 8 for level in other]
    assert decoded(png(bits, COLOUR, [*key, *other], key), 3) == [255, 255, 255, *shown]


@pytest.mark.parametrize(("bits", "kind"), [(2, GREY), (4, GREY), (8, GREY), (8, COLOUR)])
def test_only_the_lowest_bits_of_a_transparent_level_count(bits: int, kind: int) -> None:
    """As PNG has it, section 11.3.2.1."""
    level = [1] * (3 if kind == COLOUR else 1)
    beyond = [one + (1 << bits) for one in level]
    row = [1, 0, 1, 0] if kind == GREY else [1, 1, 1, 0, 0, 0]
    channels = len(level)
    assert decoded(png(bits, kind, row, beyond), channels) == decoded(png(bits, kind, row, level), channels)
    assert np.count_nonzero(decoded(png(bits, kind, row, beyond), channels)) == len(row) // 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("at_once", [1, 60, 10_000])
def test_rows_that_are_laid_over_white_in_turn_are_the_picture(
    mode: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole picture at once it took 400 MB at the largest size, and nothing else went on for 0.13 s."""
    monkeypatch.setattr("service.pictures.pixels._OVER_WHITE_AT_ONCE", at_once)
    noise = np.random.default_rng(0).integers(0, 256, (11, 20, 4), np.uint8)
    image = Image.fromarray(noise, "RGBA").convert(mode)
    layer = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    for channels, whole in ((3, expected), (1, expected.convert("L"))):
        assert np.array_equal(to_channels(image, channels), whole)


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("transparent", [[], [0]])
def test_a_palette_that_is_not_there_is_damage(bits: int, transparent: list[int]) -> None:
    """Without a transparent colour Pillow's assertion was a 500; with one its ramp of greys were the colours."""
    with pytest.raises(NotAPicture, match="damaged"):
        decoded(png(bits, PALETTE, [0, 1] * 4, transparent), 3)
