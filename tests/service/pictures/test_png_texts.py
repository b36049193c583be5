"""Texts, XMP and colour profiles of a PNG: a kilobyte inflates to a megabyte, so they are few and none is kept."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.bundle.fields import PictureSpec
from service.errors import NotAPicture
from service.pictures.images import MOST_INFLATED, MOST_TEXT, open_picture, to_picture
from tests.service import bad_inputs as bad

SPEC = PictureSpec(height=28, width=28, channels=1, any_size=True, multiple_of=1)
MEGABYTE = 1 << 20
DIGIT = bad.saved(Image.fromarray(bad.ramp()))
INFLATING = zlib.compress(b"a" * MEGABYTE, 9)
Chunk = tuple[bytes, bytes]
PARTS: dict[str, Chunk] = {
    "tEXt": (b"tEXt", b"key\0" + b"a" * MEGABYTE),
    "zTXt": (b"zTXt", b"key\0\0" + INFLATING),
    "iTXt": (b"iTXt", b"key\0\1\0\0\0" + INFLATING),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + INFLATING),
    "profile": (b"iCCP", b"name\0\0" + INFLATING),
}


def with_chunks(chunks: Sequence[Chunk], before: bytes = b"IDAT", png: bytes = DIGIT) -> bytes:
    place = png.index(before) - 4
    return png[:place] + b"".join(bad.png_chunk(*chunk) for chunk in chunks) + png[place:]


def kept(image: Any) -> int:
    """Bytes and characters in what Pillow keeps of a file, apart from the pixels."""
    stream = image.png
    texts = [image.text] if stream is None else [stream.im_text, stream.im_info, stream.rewind_state.info]
    values = [value for found in (image.info, *texts) for value in found.values()]
    return sum(len(value) for value in values if isinstance(value, str | bytes))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_no_text_of_an_opened_picture_is_kept(part: Chunk, before: bytes) -> None:
    """30 digits with 63 texts of a kilobyte each took the service to 2 GB: all are opened before one is decoded."""
    image = open_picture(with_chunks([part], before), 1000)
    assert kept(image) == 0
    assert np.array_equal(to_picture(image, SPEC, "exact").pixels[..., 0], bad.ramp())
    assert kept(image) == 0


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_no_text_of_an_animation_of_one_frame_is_kept(part: Chunk) -> None:
    """To rewind it, Pillow keeps a second copy of all that stands before the pixels."""
    frame = (b"fcTL", struct.pack(">IIIIIHHBB", 0, 28, 28, 0, 0, 1, 1, 0, 0))
    image = open_picture(with_chunks([part, (b"acTL", struct.pack(">II", 1, 0)), frame]), 1000)
    assert kept(image) == 0
    assert np.array_equal(to_picture(image, SPEC, "exact").pixels[..., 0], bad.ramp())


@pytest.mark.parametrize(("over", "refused"), [(-1, False), (0, False), (1, True)])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_the_texts_of_a_picture_have_a_limit(over: int, refused: bool, before: bytes) -> None:
    texts = [(b"tEXt", b"a\0" + b"a" * (MOST_TEXT - 5)), (b"zTXt", b"b\0\0" + zlib.compress(b"b" * (5 + over)))]
    assert_refused(with_chunks(texts, before), refused)


@pytest.mark.parametrize(("over", "refused"), [(-1, False), (0, False), (1, True)])
@pytest.mark.parametrize(
    "part",
    [(b"zTXt", b"\0\0" + zlib.compress(b"a")), (b"iTXt", b"\0\1\0\0\0" + zlib.compress(b"\xff")), (b"zTXt", b"k\0\0")],
    ids=["no name", "wrong encoding", "nothing"],
)
def test_so_many_parts_are_inflated(part: Chunk, over: int, refused: bool) -> None:
    """Pillow does not count the first two: a file of 2 MB kept a thread for seconds."""
    assert_refused(with_chunks([part] * (MOST_INFLATED + over)), refused)


def assert_refused(data: bytes, refused: bool) -> None:
    if refused:
        with pytest.raises(NotAPicture, match="save it again without metadata"):
            to_picture(open_picture(data, 1000), SPEC, "exact")
    else:
        assert np.array_equal(to_picture(open_picture(data, 1000), SPEC, "exact").pixels[..., 0], bad.ramp())


@pytest.mark.parametrize("name", [b"transparency", b"interlace", b"xmp", b"icc_profile", b"Raw profile type exif"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_text_is_no_property_of_the_picture(name: bytes, before: bytes) -> None:
    """Pillow has both in one dictionary, and decoded a picture with a text named "interlace" as if it were."""
    assert_refused(with_chunks([(b"tEXt", name + b"\0text")], before), refused=False)


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_needed_of_a_picture_with_texts_stays(order: int) -> None:
    white = bad.ramp()
    white[white == 7] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    chunks = [
        (b"tRNS", bytes([0, 7])),
        (b"eXIf", exif.tobytes()[6:]),
        PARTS["zTXt"],
        PARTS["XMP"],
        (b"zTXt", b"other\0\0" + INFLATING),
    ]
    picture = to_picture(open_picture(with_chunks(chunks[::order]), 1000), SPEC, "exact")
    assert np.array_equal(picture.pixels[..., 0], np.rot90(white, -1))


def test_exif_behind_a_text_of_its_name_stays() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    chunks = [(b"iTXt", b"exif\0\0\0\0\0text"), (b"eXIf", exif.tobytes()[6:])]
    picture = to_picture(open_picture(with_chunks(chunks), 1000), SPEC, "exact")
    assert np.array_equal(picture.pixels[..., 0], np.rot90(bad.ramp(), -1))
    assert Image.open(io.BytesIO(with_chunks(chunks))).getexif()[0x0112] == 6
