"""The prior of a bundle behind the codec's `PriorGraphs`. In: a bundle and what opens a graph file. Out: logits.

Anything with `run(None, inputs)` serves as a session: onnxruntime's, or ONNX's reference evaluator in the tests, which
must give the same integers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.bundle import Bundle
from service.bundle.fields import GraphName
from service.codec.codec_model import CodecModel, Pixels
from service.codec.prior_coding import Codes, Floats, Logits
from service.inference.sessions import Session


class PriorSessions:
    """Implements `PriorGraphs`; shapes and dtypes are those of docs/bundle-format.md."""

    def __init__(self, prior: Session, context: Session, pixel: Session) -> None:
        self._prior, self._context, self._pixel = prior, context, pixel

    def logits(self, codes: Codes, labels: Codes) -> Logits:
        (logits,) = self._prior.run(None, {"codes": codes, "labels": labels})
        return logits  # type: ignore[no-any-return]

    def context(self, codes_above: Codes, labels: Codes, caches: Floats) -> tuple[Floats, Floats]:
        inputs = {"codes_above": codes_above, "labels": labels, "caches": caches}
        context, next_caches = self._context.run(None, inputs)
        return context, next_caches

    def pixel(self, context: Floats, previous_codes: Codes, left: Floats) -> tuple[Logits, Floats]:
        inputs = {"context": context, "previous_codes": previous_codes, "left": left}
        logits, next_left = self._pixel.run(None, inputs)
        return logits, next_left


class LatentSessions:
    """Implements `LatentGraphs`."""

    def __init__(self, encoder: Session, distances: Session) -> None:
        self._encoder, self._distances = encoder, distances

    def latents(self, images: Pixels) -> Floats:
        (latents,) = self._encoder.run(None, {"images": images})
        return latents  # type: ignore[no-any-return]

    def distances(self, latents: Floats) -> Floats:
        (distances,) = self._distances.run(None, {"latents": latents})
        return distances  # type: ignore[no-any-return]


def codec_model(bundle: Bundle, open_session: Callable[[Path], Session]) -> CodecModel:
    """The codec's model of a bundle, with its prior where it has one."""
    if bundle.manifest.prior is None:
        return CodecModel.of(bundle.manifest, None)
    names: tuple[GraphName, ...] = ("prior", "prior_context", "prior_pixel")
    graphs = PriorSessions(*(open_session(bundle.graph_path(name)) for name in names))
    if "distances" not in bundle.manifest.graphs:
        return CodecModel.of(bundle.manifest, graphs)
    encoder, distances = open_session(bundle.graph_path("encoder")), open_session(bundle.graph_path("distances"))
    return CodecModel.of(bundle.manifest, graphs, LatentSessions(encoder, distances))
