"""Containers behind HTTP: the codec with a bundle's sessions under it, and its errors as problems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from service import codec
from service.codec.codec_model import CodecModel
from service.codec.container import MEDIA_TYPE
from service.codec.container_errors import ContainerError, OverLimitError, TileError
from service.codec.prior_coding import Codes
from service.errors import InvalidContainer, InvalidParameter, PictureTooLarge, TooManyItems
from service.inference import windows
from service.settings import Settings

__all__ = ["MEDIA_TYPE", "announced", "model_prefix", "pack", "tile_pixels", "unpack", "unpack_tile"]


def pack(model: CodecModel, codes: Codes, size: tuple[int, int], label: int | None, indexed: bool) -> bytes:
    """codes (B,h,w) of pictures of `size` (height, width), which may all have one label -> the shortest container."""
    labels = None if label is None else np.full(len(codes), label, np.int64)
    return codec.encode(model, codes, size=size, labels=labels, indexed=indexed)


def unpack(model: CodecModel, body: bytes, settings: Settings) -> codec.Decoded:
    """The codes and the size of their pictures; the limits are checked before anything is allocated.

    Raises:
        TooManyItems, PictureTooLarge: more pictures or pixels than the settings allow. InvalidContainer: any other
        fault of the bytes.
    """
    with _as_problems():
        return codec.decode(model, body, _limits(model, settings))


def model_prefix(body: bytes) -> bytes:
    """The first bytes of the version of the model that the container needs. Raises InvalidContainer."""
    with _as_problems():
        return codec.model_prefix(body)


def announced(model: CodecModel, body: bytes, settings: Settings) -> codec.Announced:
    """What `unpack` would give. Raises as it does, as far as the header tells."""
    with _as_problems():
        return codec.announced(model, body, _limits(model, settings))


def unpack_tile(model: CodecModel, body: bytes, tile: int, settings: Settings) -> codec.DecodedTile:
    """One tile, with as much around it as the decoder network sees. Raises as `unpack`."""
    with _as_problems():
        return codec.decode_tile(model, body, tile, margin=windows.MARGIN, limits=_limits(model, settings))


def tile_pixels(model: CodecModel, found: codec.DecodedTile) -> tuple[slice, slice]:
    """Where the tile lies in the picture that `found.codes` decode to, rows and columns, without the padded border."""
    scale, tile = model.multiple_of, found.tile
    top, left = (tile.top - found.top) * scale, (tile.left - found.left) * scale
    height = min(tile.height * scale, found.size[0] - tile.top * scale)
    width = min(tile.width * scale, found.size[1] - tile.left * scale)
    return slice(top, top + height), slice(left, left + width)


def _limits(model: CodecModel, settings: Settings) -> codec.Limits:
    """A picture is as large as it was when it was encoded: what /encode took, /decode takes back."""
    return codec.Limits(
        max_pictures=settings.max_pictures_per_request,
        max_codes=settings.max_pixels_per_request // model.multiple_of**2,
        max_pixels=settings.max_pixels,
    )


@contextmanager
def _as_problems() -> Iterator[None]:
    try:
        yield
    except OverLimitError as error:
        problem = TooManyItems if error.of_pictures else PictureTooLarge
        raise problem(_sentence(error)) from error
    except TileError as error:
        raise InvalidParameter(_sentence(error)) from error
    except ContainerError as error:
        raise InvalidContainer(_sentence(error)) from error


def _sentence(error: ContainerError) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."
