"""Bytes and codes that the service must refuse or handle, made with Pillow and by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 28


def saved(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def ramp() -> NDArray[np.uint8]:
    """uint8 (28,28): every row and column differs, so that a rotation shows."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    ramp: NDArray[np.uint8] = (rows * 8 + columns).astype(np.uint8)
    return ramp


def palette() -> bytes:
    image = Image.fromarray(ramp() // 2, "L").convert("P")
    image.putpalette([level for index in range(256) for level in (255 - index,) * 3])
    return saved(image)


def transparent() -> bytes:
    """Black; the left half is opaque, the right half fully transparent."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[:, : SIDE // 2, 3] = 255
    return saved(Image.fromarray(pixels))


def rotated() -> bytes:
    """Stored lying on its side, with the EXIF orientation that tells viewers to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    return saved(Image.fromarray(np.rot90(ramp()).copy()), exif=exif)


def inflating(part: bytes, count: int) -> bytes:
    """A digit as a PNG with so many parts of a kilobyte that each become a megabyte: `zTXt` or `iCCP`."""
    body = part + b"k\0\0" + zlib.compress(bytes(1 << 20), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    digit, header_end = saved(Image.fromarray(ramp())), 8 + 25
    return digit[:header_end] + chunk * count + digit[header_end:]


def segments(count: int) -> bytes:
    """A JPEG whose header is empty segments, four bytes each."""
    return b"\xff\xd8" + b"\xff\xe5\x00\x02" * count


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = saved(Image.fromarray(ramp()), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(png: bytes, count: int, before: bytes) -> bytes:
    """The PNG with `count` empty private chunks in it."""
    place = png.index(before) - 4
    return png[:place] + png_chunk(b"prIv") * count + png[place:]


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    place = png.index(b"IDAT") - 4
    return png[:place] + png_chunk(kind, data) + png[place:]


def run_length_bmp() -> bytes:
    """28 rows of one run each."""
    rows = bytes([SIDE, 7, 0, 0]) * SIDE + bytes([0, 1])
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    offset = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + head + palette + rows


def animated(format_name: str) -> bytes:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    return saved(frames[0], format_name, save_all=True, append_images=frames[1:], duration=100)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose header announces width x height black pixels."""

    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_of_header(header: str) -> bytes:
    """An .npy file without elements whose header is this text."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
