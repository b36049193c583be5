"""Containers behind HTTP: the codec with a bundle's sessions under it, and its errors as problems."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service import codec
from service.bundle import Bundle
from service.codec_model import CodecModel
from service.container_errors import ContainerError, OverLimitError
from service.errors import InvalidContainer, TooManyItems
from service.prior_coding import Floats, Logits
from service.sessions import SessionMaker
from service.settings import Settings

MEDIA_TYPE = "application/vnd.vqserve.codes"
Codes = NDArray[np.int64]


class PriorSessions:
    """The three graphs of the prior that the codec runs, as its `PriorGraphs`."""

    def __init__(self, bundle: Bundle, maker: SessionMaker) -> None:
        self._prior = maker.open(bundle.graph_path("prior"))
        self._context = maker.open(bundle.graph_path("prior_context"))
        self._pixel = maker.open(bundle.graph_path("prior_pixel"))

    def logits(self, codes: Codes, labels: Codes) -> Logits:
        logits: Logits = self._prior.run(["logits"], {"codes": codes, "labels": labels})[0]
        return logits

    def context(self, codes_above: Codes, labels: Codes, caches: Floats) -> tuple[Floats, Floats]:
        given = {"codes_above": codes_above, "labels": labels, "caches": caches}
        context, next_caches = self._context.run(["context", "next_caches"], given)
        return context, next_caches

    def pixel(self, context: Floats, previous_codes: Codes, left: Floats) -> tuple[Logits, Floats]:
        given = {"context": context, "previous_codes": previous_codes, "left": left}
        logits, next_left = self._pixel.run(["logits", "next_left"], given)
        return logits, next_left


def open_codec(bundle: Bundle, maker: SessionMaker) -> CodecModel:
    graphs = PriorSessions(bundle, maker) if bundle.manifest.prior is not None else None
    return CodecModel.of(bundle.manifest, graphs)


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
