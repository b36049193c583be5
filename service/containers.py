"""Containers behind HTTP: the codec with a bundle's sessions under it, and its errors as problems."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service import codec
from service.bundle import Bundle
from service.codec_model import CodecModel
from service.container import MEDIA_TYPE
from service.container_errors import ContainerError, OverLimitError
from service.errors import InvalidContainer, TooManyItems
from service.prior_sessions import codec_model
from service.sessions import SessionMaker
from service.settings import Settings

__all__ = ["MEDIA_TYPE", "open_codec", "pack", "unpack"]

Codes = NDArray[np.int64]


def open_codec(bundle: Bundle, maker: SessionMaker) -> CodecModel:
    return codec_model(bundle, maker.open)


def pack(model: CodecModel, codes: Codes, size: tuple[int, int]) -> bytes:
    """codes (B,h,w) of pictures of `size` (height, width) -> the shortest container."""
    return codec.encode(model, codes, size=size)


def unpack(model: CodecModel, body: bytes, settings: Settings) -> codec.Decoded:
    """The codes and the size of their pictures; the limits are checked before anything is allocated.

    Raises:
        TooManyItems: more pictures or pixels than the settings allow. InvalidContainer: any other fault of the bytes.
    """
    max_codes = settings.max_pixels_per_request // model.multiple_of**2
    try:
        return codec.decode(model, body, codec.Limits(settings.max_pictures_per_request, max_codes))
    except OverLimitError as error:
        raise TooManyItems(f"{error}.") from error
    except ContainerError as error:
        raise InvalidContainer(f"{error}.") from error
