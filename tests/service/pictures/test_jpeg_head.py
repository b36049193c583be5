"""What a JPEG has before its pixels costs its bytes and no more: segments, EXIF and the index of an MPO."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from service.bundle.fields import PictureSpec
from service.errors import NotAPicture
from service.pictures.images import open_picture, to_picture
from service.pictures.jpeg_head import LARGEST_JPEG_HEAD, MOST_SEGMENTS, short_head
from tests.conftest import PICTURES
from tests.service import bad_inputs as bad

COLOUR = PictureSpec(height=28, width=28, channels=3, any_size=True, multiple_of=1)
MAX_PIXELS = 1 << 20
PHOTO = Image.open(PICTURES / "ladybird_crop.jpg")
PLAIN = bad.saved(PHOTO, "JPEG")
ORIENTATION, UNIT, RESOLUTION = 0x0112, 0x0128, 0x011A
SHORT, FRACTION, SCAN = 3, 5, 0xDA


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(segments: Sequence[bytes], jpeg: bytes = PLAIN) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def without_jfif(jpeg: bytes = PLAIN) -> bytes:
    """Which says the resolution, for which Pillow otherwise looks into EXIF."""
    return jpeg[:2] + jpeg[jpeg.index(b"\xff\xdb") :]


def directory(tags: Sequence[tuple[int, int, int, int]], fractions: int = 0) -> bytes:
    """A TIFF file of one directory, with entries (tag, type, count, value), and behind it the fractions 7/7."""
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + struct.pack("<L", 7) * 2 * fractions


def of_many_fractions(tag: int, count: int = 5000) -> bytes:
    turned = (ORIENTATION, SHORT, 1, 6)
    beside = [] if tag == ORIENTATION else [turned, (UNIT, SHORT, 1, 2)]
    start = len(directory([*beside, turned]))
    return directory([*beside, (tag, FRACTION, count, start)], count)


def decoded(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return to_picture(open_picture(data, MAX_PIXELS), COLOUR, "exact").pixels


@pytest.fixture
def no_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*arguments: object) -> None:
        raise AssertionError("a fraction of metadata became an object")

    monkeypatch.setattr(TiffImagePlugin, "IFDRational", made)


@pytest.mark.usefixtures("no_fractions")
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_of_many_fractions_is_none_and_not_read(format_name: str) -> None:
    """Pillow makes an object of each 8 bytes: 31 MB of EXIF held a thread for 15 s."""
    block = of_many_fractions(ORIENTATION)
    data = bad.saved(Image.fromarray(bad.ramp()), format_name, exif=b"Exif\0\0" + block)
    assert open_picture(data, MAX_PIXELS).info["exif"].endswith(block)
    assert decoded(data).shape == (28, 28, 3)


@pytest.mark.usefixtures("no_fractions")
@pytest.mark.parametrize(
    "added",
    [
        segment(0xE1, b"Exif\0\0" + of_many_fractions(RESOLUTION)),
        segment(0xE2, b"MPF\0" + directory([(0xB005, FRACTION, 5000, 26)], 5000)),
    ],
    ids=["resolution", "index of an MPO"],
)
def test_fractions_that_are_not_needed_are_not_read(added: bytes) -> None:
    """Pillow made objects of them, also in a file of 64 KB, and a request has room for 256 of those."""
    turned = b"Exif" in added
    pixels = decoded(with_segments([added], without_jfif()))
    assert np.array_equal(pixels, np.rot90(decoded(PLAIN), -1) if turned else decoded(PLAIN))


def test_exif_in_many_pieces_is_not_joined() -> None:
    """Pillow copies all that it has for each piece: 32 MB took 72 s."""
    first = b"Exif\0\0" + directory([(ORIENTATION, SHORT, 1, 3)])
    image = open_picture(with_segments([segment(0xE1, first), *[segment(0xE1, b"Exif\0\0more")] * 1000]), MAX_PIXELS)
    assert image.info["exif"] == first
    assert np.array_equal(to_picture(image, COLOUR, "exact").pixels, decoded(PLAIN)[::-1, ::-1])


def test_as_many_segments_as_the_limit_are_read() -> None:
    before, position = 0, 2
    while PLAIN[position + 1] != SCAN:
        before, position = before + 1, position + 2 + int.from_bytes(PLAIN[position + 2 : position + 4], "big")
    more = MOST_SEGMENTS - before
    assert np.array_equal(decoded(with_segments([segment(0xE5, b"")] * more)), decoded(PLAIN))
    with pytest.raises(NotAPicture, match="too many or too large segments"):
        open_picture(with_segments([segment(0xE5, b"")] * (more + 1)), MAX_PIXELS)


@pytest.mark.parametrize(
    "segments",
    [
        [segment(0xC0, struct.pack(">BHHB", 8, 28, 28, 1) + b"\1\x11\0" * 21_000)],
        [segment(0xDB, b"\0" + bytes(range(1, 65)))] * (LARGEST_JPEG_HEAD // 65),
        [b"\xff\xd8"] * MOST_SEGMENTS,
        [segment(0xE5, b"")] * MOST_SEGMENTS,
    ],
    ids=["a frame of many components", "many tables", "many beginnings", "many segments"],
)
def test_a_head_that_no_encoder_writes_is_refused(segments: Sequence[bytes]) -> None:
    """Pillow keeps a tuple for every three bytes of a frame's header: of 32 MB a gigabyte."""
    with pytest.raises(NotAPicture, match="too many or too large segments"):
        open_picture(with_segments(segments), MAX_PIXELS)


APPLICATIONS = [segment(marker, b"Ducky or what it may be") for marker in (*range(0xE1, 0xF0), 0xFE)]
THUMBNAIL = PLAIN[:4] + struct.pack(">H", 16 + 300) + PLAIN[6:18] + b"\x0a\x0a" + bytes(300) + PLAIN[20:]
VARIANTS = {
    "applications": with_segments(APPLICATIONS),
    "fill bytes": with_segments([b"\xff\xff\xff" + segment(0xFE, b"text") + b"\xff\xff"]),
    "junk between segments": with_segments([segment(0xFE, b"text"), b"\xff\0junk\xff\0"]),
    "a segment of a length below its own": with_segments([b"\xff\xe5\0\0", b"\xff\xfe\0\1"]),
    "a large profile": with_segments([segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000))] * 3),
    "a thumbnail": THUMBNAIL,
    "no JFIF": without_jfif(),
    "behind the picture": PLAIN + PLAIN,
}


@pytest.mark.parametrize("data", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_pixels_stay_and_the_head_is_short(data: bytes) -> None:
    assert np.array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data))))
    assert short_head(data)[0].index(b"\xff\xda") < 1000


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {"subsampling": 2}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_what_the_colours_are_stays(mode: str, options: dict[str, int]) -> None:
    """JFIF and Adobe say it, each in a segment of its own."""
    data = bad.saved(PHOTO.convert(mode), "JPEG", **options)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(decoded(with_segments(APPLICATIONS[:3], data)), np.asarray(expected))
    assert np.array_equal(decoded(data), np.asarray(expected))
