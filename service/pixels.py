"""The pixels of an opened picture file: upright, with the channels that a model has.

In: a Pillow image of any mode. Out: one of mode `L` or `RGB`. Training decodes its picture files here as well, so that
a model is trained on the pixels that it is served; hence nothing but numpy and Pillow is imported.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I")


def is_animated(image: Image.Image) -> bool:
    """More than one frame. The second picture of a phone's JPEG (MPO) is no frame but another size or view."""
    return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def to_pixels(image: Image.Image, channels: int) -> Image.Image:
    """Decode the image and apply its EXIF orientation; raises what Pillow raises on broken bytes."""
    image.load()
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    return to_channels(image, channels)


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit grey -> `L`, or `LA` where one level is transparent."""
    levels = np.asarray(image)
    high = (levels >> 8).astype(np.uint8)
    if "transparency" not in image.info:
        return Image.fromarray(high)
    alpha = np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(high), Image.fromarray(alpha)))


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Any Pillow mode -> `L` or `RGB`."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT:
        image = _high_bytes(image)
    if isinstance(given := image.info.get("transparency"), tuple) and max(given) > 255:  # of 16-bit colours
        image.info["transparency"] = tuple(level >> 8 for level in given)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)
