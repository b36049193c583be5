"""EXIF: its orientation is applied, and whatever else is wrong with it costs no picture, in service and training."""

from __future__ import annotations

import io
import random
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from starlette.testclient import TestClient

from service.bundle.fields import PictureSpec
from service.pictures.images import open_picture, to_picture
from service.pictures.pixels import to_pixels
from tests.service import bad_inputs as bad
from training.data.folder import decode_picture

ORIENTATION, DESCRIPTION = 0x0112, 0x010E
SPEC = PictureSpec(height=28, width=28, channels=1, any_size=True, multiple_of=1)
FORMATS = ("PNG", "JPEG", "WEBP")


def exif(orientation: int = 6) -> bytes:
    """As a camera writes it: numbers, texts, fractions, and two directories below."""
    made = Image.Exif()
    made[ORIENTATION], made[DESCRIPTION], made[0x829A] = orientation, "meadow", 0.333
    made[0x8769], made[0x8825] = {0x9003: "2020:01:01 00:00:00", 0x829D: 2.8}, {1: "N", 2: (1.0, 2.0, 3.0)}
    return made.tobytes()


def with_tag(tag: int, kind: int = 2) -> bytes:
    """The same EXIF in which the description, "meadow", is another tag or is said to be of another TIFF type."""
    place = exif().index(DESCRIPTION.to_bytes(2, "big"))
    return exif()[:place] + tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + exif()[place + 4 :]


def with_exif(format_name: str, block: bytes) -> bytes:
    return bad.saved(Image.fromarray(bad.ramp()), format_name, exif=block)


def mutations(count: int) -> Iterator[bytes]:
    """Bytes of EXIF changed or cut off, its mark and byte order excepted: every one would only make it unreadable."""
    draw, block = random.Random(2), exif()
    for _ in range(count):
        changed = bytearray(block)
        for _ in range(draw.choice((1, 1, 2, 3))):
            changed[draw.randrange(10, len(changed))] = draw.choice((0, 1, 2, 5, 7, 12, 255))
        yield bytes(changed[: draw.randrange(8, len(changed))] if draw.random() < 0.2 else changed)


def test_an_orientation_in_four_bytes_is_one(client: TestClient, tmp_path: Path) -> None:
    """TIFF's LONG, as some programs write it; the tag's type is SHORT."""
    short = exif(6)
    place = short.index(ORIENTATION.to_bytes(2, "big"))
    long = short[: place + 2] + struct.pack(">HLL", 4, 1, 6) + short[place + 12 :]
    for block in (short, long):
        data = bad.saved(Image.fromarray(bad.ramp()[:9]), "PNG", exif=block)
        assert to_pixels(Image.open(io.BytesIO(data)), 1).size == (9, 28)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_name", FORMATS)
def test_every_orientation_is_turned_as_pillow_turns_it(format_name: str, orientation: int) -> None:
    data = bad.saved(Image.fromarray(bad.ramp()[:9]), format_name, exif=exif(orientation))
    turned = to_pixels(Image.open(io.BytesIO(data)), 1)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert turned.size == ((9, 28) if 5 <= orientation <= 8 else (28, 9))
    assert np.array_equal(np.asarray(turned), np.asarray(expected.convert("L")))


BROKEN = {  # what Pillow raises when it writes them
    "numbers in place of a text": with_tag(DESCRIPTION, kind=11),  # AttributeError, which became a 500
    "several numbers in place of one": with_tag(0x0106, kind=3),  # KeyError, another 500
    "a text in place of a number": with_tag(0x00FE),  # struct.error
    "a text in place of a fraction": with_tag(0x011A),  # TypeError
}
UNREADABLE = {"no TIFF": b"Exif\0\0" + bytes(30), "cut off": exif()[:11], "nothing": b"Exif\0\0"}


@pytest.mark.parametrize("block", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("format_name", FORMATS)
def test_a_tag_of_a_wrong_type_leaves_orientation_and_pixels(
    client: TestClient, tmp_path: Path, format_name: str, block: bytes
) -> None:
    """The service answered 500 or called the picture damaged, and training died."""
    assert_read(client, tmp_path, format_name, block, with_exif(format_name, exif()))


@pytest.mark.parametrize("block", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("format_name", FORMATS)
def test_exif_that_cannot_be_read_is_no_orientation(
    client: TestClient, tmp_path: Path, format_name: str, block: bytes
) -> None:
    assert_read(client, tmp_path, format_name, block, with_exif(format_name, exif(1)))


def test_exif_that_a_png_has_as_text_is_no_orientation(client: TestClient, tmp_path: Path) -> None:
    plain = bad.saved(Image.fromarray(bad.ramp()))
    text = bad.with_chunk(plain, b"iTXt", b"exif\0\0\0\0\0Orientation: 6")
    assert_same_pixels(client, tmp_path / "text.png", text, plain)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def with_xmp(format_name: str, block: bytes | None) -> bytes:
    """The picture with XMP that turns it, beside this EXIF or none."""
    named = {} if block is None else {"exif": block}
    if format_name != "PNG":
        return bad.saved(Image.fromarray(bad.ramp()), format_name, xmp=XMP, **named)
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
    return bad.with_chunk(bad.saved(Image.fromarray(bad.ramp()), **named), b"iTXt", text)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("format_name", FORMATS)
def test_xmp_has_no_say_about_the_orientation(
    client: TestClient, tmp_path: Path, format_name: str, beside: bool
) -> None:
    """It turned a JPEG or WebP with EXIF that does not say it, but neither a PNG nor one without EXIF."""
    made = Image.Exif()
    made[DESCRIPTION] = "meadow"
    data = with_xmp(format_name, made.tobytes() if beside else None)
    plain = Image.open(io.BytesIO(data))
    assert ("exif" in plain.info, "xmp" in plain.info) == (beside, True)
    assert_same_pixels(client, tmp_path / "p", data, bad.saved(Image.fromarray(np.asarray(plain.convert("L")))))


def assert_read(client: TestClient, folder: Path, format_name: str, block: bytes, sound: bytes) -> None:
    assert_same_pixels(client, folder / f"p.{format_name.lower()}", with_exif(format_name, block), sound)


def assert_same_pixels(client: TestClient, path: Path, data: bytes, sound: bytes) -> None:
    """Both sides read `data` as they read `sound`."""
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(sound))).convert("L"))
    path.write_bytes(data)
    trained = decode_picture(path, grey=True, smallest_side=1, shorter_side=None)[0]
    assert np.array_equal(trained[0].numpy(), expected)
    answers = [client.post("/encode", content=one, headers={"content-type": "image/png"}) for one in (data, sound)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[0].json()["codes"] == answers[1].json()["codes"]


@pytest.mark.parametrize("format_name", FORMATS)
def test_no_mutated_exif_costs_a_picture(format_name: str) -> None:
    levels = np.sort(np.asarray(Image.open(io.BytesIO(with_exif(format_name, exif(1)))).convert("L")), axis=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about EXIF that it leaves out
        for block in mutations(400):
            picture = to_picture(open_picture(with_exif(format_name, block), 1000), SPEC, "exact")
            assert np.array_equal(np.sort(picture.pixels, axis=None), levels), block.hex()  # turned or not
