"""The pixels of an opened picture file: upright, with the channels that a model has.

In: a Pillow image of any mode. Out: one of mode `L` or `RGB`. Training decodes its picture files here as well, so that
a model is trained on the pixels that it is served; hence nothing but numpy and Pillow is imported.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I")
# What Pillow's readers of the service's four formats raise on broken bytes; the fuzz test keeps this list honest. The
# last is raised in training alone: the service has a limit of its own.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, struct.error, zlib.error, OverflowError),
    Image.DecompressionBombError,
)
_EXIF, _BYTE_ORDERS = b"Exif\0\0", {b"II*\0": "<", b"MM\0*": ">"}  # of the TIFF file that EXIF is
_TAG_BYTES, _NUMBERS = 12, {3: "H", 4: "L"}  # of a directory's entry; the types of numbers without a sign
_ORIENTATION = 0x0112  # the tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bits a sample by Pillow's raw mode, for the modes in which one level or colour of a PNG may be transparent, and which
# Pillow gives 8 bits: the samples, but not that level.
_BITS = {"L;2": 2, "L;4": 4, "L": 8, "RGB": 8, "RGB;16B": 16}
_OVER_WHITE_AT_ONCE = 1 << 18  # pixels


def is_animated(image: Image.Image) -> bool:
    """More than one frame. The second picture of a phone's JPEG (MPO) is no frame but another size or view."""
    return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def to_pixels(image: Image.Image, channels: int) -> Image.Image:
    """Decode the image and apply its EXIF orientation; raises one of `UNREADABLE` on broken bytes."""
    forget_texts(image)
    bits = _bits(image)
    image.load()
    if image.mode == "P" and image.palette is None:  # Pillow asserts it, or takes a ramp of greys
        raise OSError("a picture of palette indices without a palette")
    forget_texts(image)  # those behind the pixels
    given = image.info.get("transparency")
    if bits is not None and given is not None:
        image.info["transparency"] = _to_8_bits(given, bits)
    return to_channels(_upright(image), channels)


def forget_texts(image: Image.Image) -> None:
    """Of a PNG, its XMP and its profile too: Pillow keeps them inflated, and a text in `info` under any name, as if it
    were what that name means. Those behind the pixels are there once the image is decoded.
    """
    if not isinstance(image, PngImageFile):
        return
    stream = image.png  # None once it is decoded
    texts = image.text if stream is None else stream.im_text
    if not texts and "xmp" not in image.info and "icc_profile" not in image.info:
        return
    of_first_frame = {} if stream is None else stream.rewind_state.info  # a copy, in an animation
    for info in (image.info, of_first_frame):
        for name in [name for name, text in texts.items() if info.get(name) is text]:
            del info[name]
        info.pop("xmp", None)
        info.pop("icc_profile", None)
    texts.clear()


def _bits(image: Image.Image) -> int | None:
    """Of one sample in the file, where `_BITS` has them; only before the image is decoded."""
    tiles = getattr(image, "tile", ())
    return _BITS.get(tiles[0].args) if tiles and isinstance(tiles[0].args, str) else None


def _to_8_bits(given: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """The transparent level or colour of a PNG, of which only the lowest `bits` count, as Pillow scales its samples."""
    if isinstance(given, tuple):
        return tuple(_level_of_8_bits(level, bits) for level in given)
    return _level_of_8_bits(given, bits)


def _level_of_8_bits(level: int, bits: int) -> int:
    level &= (1 << bits) - 1
    return level >> (bits - 8) if bits > 8 else level * 255 // ((1 << bits) - 1)


def _upright(image: Image.Image) -> Image.Image:
    """As `ImageOps.exif_transpose` turns it, which writes all EXIF anew too and fails on a tag of a wrong type."""
    turn = _TURNS.get(_orientation(image.info.get("exif")))
    return image if turn is None else image.transpose(turn)


def _orientation(exif: object) -> int:
    """The tag's value in the first directory; 1 where EXIF lacks it or cannot be read: the pixels are whole.

    Pillow's reader looks for it in XMP too, but not in every format, and makes an object of every fraction of every tag
    that is said to be the orientation: thirty megabytes took 15 s.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(_EXIF)
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + _TAG_BYTES * count, _TAG_BYTES):
            tag, kind, values = struct.unpack_from(f"{order}HHL", tiff, place)
            if tag == _ORIENTATION:
                number = _NUMBERS.get(kind) if values == 1 else None
                return 1 if number is None else int(struct.unpack_from(f"{order}{number}", tiff, place + 8)[0])
    except struct.error:  # cut off
        pass
    return 1


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit grey -> `L`, or `LA` where one level is transparent."""
    levels = np.asarray(image)
    high = (levels >> 8).astype(np.uint8)
    if "transparency" not in image.info:
        return Image.fromarray(high)
    alpha = np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(high), Image.fromarray(alpha)))


def _over_white(image: Image.Image) -> Image.Image:
    """Any mode with transparency -> `RGB`. Some rows at a time: Pillow keeps the interpreter while it lays a layer over
    another, and those of a whole picture took more memory than everything else."""
    result = Image.new("RGB", image.size)
    rows = max(1, _OVER_WHITE_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        layer = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        laid = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        result.paste(laid.convert("RGB"), (0, top))
    return result


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Any Pillow mode -> `L` or `RGB`. A transparent level or colour has 8 bits, or as many as the image."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT:
        image = _high_bytes(image)
    if image.has_transparency_data:
        image = _over_white(image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)
