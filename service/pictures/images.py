"""Pictures. In: the bytes of a PNG, JPEG, WebP or BMP. Out: uint8 (H,W,C) for the model, and back to PNG or WebP.

What happens to unusual pictures: the orientation in EXIF is applied, where it can be read; transparency is laid over
white; palettes become their colours; 16-bit samples keep their high byte; CMYK becomes RGB; colour and grey become what
the model has. Animations are refused, because taking one frame would lose the others silently. Colour profiles are
ignored.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from service.bundle.fields import PictureSpec
from service.errors import InvalidParameter, NotAPicture, PictureTooLarge, WrongPictureSize
from service.pictures.jpeg_head import SIGNATURE, TooManySegmentsError, has_more_scans, short_head
from service.pictures.pixels import UNREADABLE, forget_texts, is_animated, to_pixels

Pixels = NDArray[np.uint8]
Fit = Literal["exact", "resize", "pad"]
FITS: tuple[Fit, ...] = ("exact", "resize", "pad")

# Naming the plugins registers them; Pillow would otherwise import all it has at the first picture that needs one.
_PLUGINS = (
    *(PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile),
    *(WebPImagePlugin.WebPImageFile, BmpImagePlugin.BmpImageFile),
)
FORMATS = tuple(plugin.format for plugin in _PLUGINS)
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp")
Image.MAX_IMAGE_PIXELS = None  # `open_picture` has its own limit, and Pillow's would hold that down to 179 million
# How often a file may be read: PNG's encoders write a chunk for each 8 KiB or more of pixels. Of the segments of a
# JPEG, Pillow sees few (`short_head`).
READS, BYTES_A_READ = 4096, 512
# A decoder goes over the whole picture for each scan, and 34 bytes are one; encoders write about ten.
MOST_SCANS = 100
# Parts of a PNG that are inflated, each to at most 1 MiB in about 3 ms, when it is read. A file has one profile; Pillow
# counts the characters of texts, but not of one without a name or in a wrong encoding. None is kept: `forget_texts`.
_INFLATED, MOST_INFLATED = (b"zTXt", b"iTXt", b"iCCP"), 64
_PROFILE, MOST_PROFILES = b"iCCP", 16
PngImagePlugin.MAX_TEXT_MEMORY = MOST_TEXT = 8 << 20
# JPEG has no longer ones. A strip of millions of pixels costs far more than its pixels: to shrink it, Pillow makes a
# table of 32 bytes for each.
LARGEST_SIDE = 65_535
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", SIGNATURE, b"RIFF", b"BM")
_BASE64 = (b"data:", b"iVBORw0K", b"/9j/", b"UklGR")  # a data URI, and what signatures become
_DAMAGED = "The picture is damaged or cut off; send the whole file."
_TOO_MANY_PARTS = "The picture has too many or too large segments or chunks; save it again without metadata."
_TEXT_LIMITS = "MAX_TEXT_"  # what Pillow's message names when a text or all of them are too large
LARGEST_WEBP_SIDE = 16_383  # pixels; the format has 14 bits for it


@dataclass(frozen=True, slots=True)
class Picture:
    """`pixels` is what the model sees; the picture fills it from the top left corner to `width` and `height`.

    They are smaller than the pixels only where ?fit=pad has added a border on the right and below.
    """

    pixels: Pixels  # (H, W, C) uint8
    width: int
    height: int


class TooManyPartsError(OSError):
    """A file of so many chunks that reading them would take longer than reading pixels."""


class _FewParts(io.BytesIO):
    """Bytes that may be read a limited number of times: Pillow reads a chunk in two to four."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = READS + len(data) // BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise TooManyPartsError
        return super().read(size)


def inflated_parts(data: bytes) -> int:
    """How many parts of the file `open_picture` may have to inflate."""
    return sum(map(data.count, _INFLATED)) if data.startswith(_SIGNATURES[0]) else 0


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """The header of a picture, checked. Nothing of its size takes memory yet; for a WebP, it takes addresses.

    Raises:
        NotAPicture: none of the four formats, a broken header, an animation, a JPEG of many scans, or a BMP of runs.
        PictureTooLarge: more than `max_pixels` pixels, or than `LARGEST_SIDE` a side.
    """
    parts = inflated_parts(data)
    if parts > MOST_INFLATED or (parts > MOST_PROFILES and data.count(_PROFILE) > MOST_PROFILES):
        raise NotAPicture(_TOO_MANY_PARTS)
    try:
        data, exif = short_head(data) if data.startswith(SIGNATURE) else (data, None)
        # a byte is read once at most: a file of few bytes has few parts
        image = Image.open(io.BytesIO(data) if len(data) <= READS else _FewParts(data), formats=FORMATS)
    except UNREADABLE as error:
        if data.startswith(_SIGNATURES):
            raise _unreadable(error) from error
        raise NotAPicture(f"Send a PNG, JPEG, WebP or BMP picture; {_what_it_is(data)}.") from error
    forget_texts(image)
    if exif is not None:
        image.info["exif"] = exif
    if image.width * image.height > max_pixels:
        raise PictureTooLarge(f"{image.width}x{image.height} is more than {max_pixels} pixels; make it smaller.")
    check_side(image.width, image.height)
    if is_animated(image):
        raise NotAPicture("The picture is animated; send one frame of it.")
    if image.format == "JPEG" and has_more_scans(data, MOST_SCANS):
        raise NotAPicture(f"The JPEG has more than {MOST_SCANS} scans; save it again.")
    # which Pillow decodes byte by byte, in Python
    if image.format == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise NotAPicture("The BMP is run-length encoded; save it as a PNG.")
    return image


def open_to_fit(data: bytes, max_pixels: int, spec: PictureSpec, fit: Fit) -> Image.Image:
    """As `open_picture`, which does not know that `fit` may enlarge the picture, a narrow one many times."""
    image = open_picture(data, max_pixels)
    width, height = fitted_size(image, spec, fit)
    if width * height > max_pixels:
        raise PictureTooLarge(
            f"{image.width}x{image.height} becomes {width}x{height} with ?fit={fit}, which is more than {max_pixels} "
            "pixels; make it smaller."
        )
    return image


def fitted_size(image: Image.Image, spec: PictureSpec, fit: Fit) -> tuple[int, int]:
    """Width and height of what will be encoded."""
    return image.size if fit == "exact" else target_size(image.width, image.height, spec)


def check_side(width: int, height: int) -> None:
    """Raises PictureTooLarge."""
    if max(width, height) > LARGEST_SIDE:
        raise PictureTooLarge(f"{width}x{height} has more than {LARGEST_SIDE} pixels a side; cut it.")


def _what_it_is(data: bytes) -> str:
    """Of a file that is no picture: what beginners send."""
    if not data:
        return "this file is empty, perhaps as it had been read before"
    if data.startswith(_BASE64):
        return "this is base64, send the bytes that it stands for"
    return "these bytes are none of them"


def _unreadable(error: Exception) -> NotAPicture:
    too_many = isinstance(error, TooManyPartsError | TooManySegmentsError) or _TEXT_LIMITS in str(error)
    return NotAPicture(_TOO_MANY_PARTS if too_many else _DAMAGED)


def to_picture(image: Image.Image, spec: PictureSpec, fit: Fit) -> Picture:
    """Decode the opened image and make it what the model takes.

    Raises:
        NotAPicture: the pixels cannot be decoded, for example because the file is cut off.
        WrongPictureSize: with fit `exact`, another size than the model's.
    """
    try:
        image = to_pixels(image, spec.channels)
    except UNREADABLE as error:
        raise _unreadable(error) from error
    fitted = fit_image(image, spec, fit)
    pixels = np.asarray(fitted).reshape(fitted.height, fitted.width, spec.channels)
    shown = image if fit == "pad" and spec.any_size else fitted
    return Picture(pixels, shown.width, shown.height)


def target_size(width: int, height: int, spec: PictureSpec) -> tuple[int, int]:
    """The nearest valid (width, height) that holds the picture: the model's own, or the next multiples."""
    if not spec.any_size:
        return spec.width, spec.height
    factor = spec.multiple_of
    return -(-width // factor) * factor, -(-height // factor) * factor


def fit_image(image: Image.Image, spec: PictureSpec, fit: Fit) -> Image.Image:
    """The image in the model's size, or the next valid one. Raises WrongPictureSize with fit `exact`."""
    size = target_size(image.width, image.height, spec)
    if image.size == size:
        return image
    if fit == "exact":
        raise WrongPictureSize(f"{wrong_size(image.width, image.height, spec)} Add ?fit=resize or ?fit=pad.")
    if fit == "resize":
        return image.resize(size, Image.Resampling.BICUBIC)
    return _pad(image, size, anchored=spec.any_size)


def wrong_size(width: int, height: int, spec: PictureSpec) -> str:
    """The sentence about a picture that has another size than the model takes."""
    if spec.any_size:
        return f"Width and height must be multiples of {spec.multiple_of}, not {width}x{height}."
    return f"The model takes {spec.width}x{spec.height} pixels, not {width}x{height}."


def _pad(image: Image.Image, size: tuple[int, int], anchored: bool) -> Image.Image:
    """Anchored top left, the last row and column repeated; or shrunk to fit where larger, and centred on black."""
    if anchored:
        right, bottom = size[0] - image.width, size[1] - image.height
        borders = ((0, bottom), (0, right), (0, 0))
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        padded = np.pad(pixels, borders, mode="edge")
        return Image.fromarray(padded[:, :, 0] if image.mode == "L" else padded)
    if image.width > size[0] or image.height > size[1]:
        image = ImageOps.contain(image, size, Image.Resampling.BICUBIC)
    return _centre(image, size)


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new(image.mode, size, 0)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def check_can_hold(media_type: str, height: int, width: int) -> None:
    """Raises InvalidParameter where the format has no pictures of this size. For what is still to be decoded."""
    if media_type == "image/webp" and max(height, width) > LARGEST_WEBP_SIDE:
        raise InvalidParameter(
            f"A WebP picture has at most {LARGEST_WEBP_SIDE} pixels a side, not {width}x{height}; Accept: image/png."
        )


def write_picture(pixels: Pixels, media_type: str = "image/png") -> bytes:
    """uint8 (H,W,C) -> PNG, or lossless WebP: what was decoded is what arrives. See `check_can_hold`."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    stream = io.BytesIO()
    if media_type == "image/webp":
        image.save(stream, "WEBP", lossless=True)
    else:
        image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
