"""One version of one model. In: a bundle. Out: its engine, its codec and what is opened with them, or nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from service.bundle import Bundle
from service.bundle.manifest import Manifest
from service.codec.codec_model import CodecModel
from service.inference.engine import Engine
from service.inference.graph_faults import faults_at_start_of
from service.inference.label_check import require_labels
from service.inference.prior_sessions import codec_model
from service.inference.sessions import SessionMaker
from service.settings import Settings
from service.telemetry.metrics import Metrics, ModelMetrics

_NOT_OPENED = "Another part of the model could not be opened."


class Part(Protocol):
    """What is opened with a model and closed with it."""

    def why_not_ready(self) -> str | None:
        """Why it takes no work, if it does not."""

    def close(self, reason: str) -> None:
        """`reason` is for those whose requests are not answered any more."""


class Companion(Part, Protocol):
    """A part beside the engine, such as the model's generator."""

    slots: int  # samples that one call of it advances


@dataclass(frozen=True)
class Model:
    """One version of one model, ready to serve."""

    bundle: Bundle
    engine: Engine
    codec: CodecModel
    metrics: ModelMetrics
    companions: Mapping[str, Companion]

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def why_not_ready(self) -> str | None:
        """Why the engine or a companion takes no work, if one does not."""
        return next((reason for part in self._parts if (reason := part.why_not_ready())), None)

    def close(self, reason: str) -> None:
        """`reason` is for those whose requests are not answered any more."""
        for part in self._parts:
            part.close(reason)

    @property
    def _parts(self) -> tuple[Part, ...]:
        return (self.engine, *self.companions.values())


OnDeath = Callable[[], None]
OpenCompanion = Callable[[Bundle, Settings, SessionMaker, Metrics, OnDeath], Companion | None]


def open_model(
    bundle: Bundle,
    settings: Settings,
    maker: SessionMaker,
    metrics: Metrics,
    companions: Mapping[str, OpenCompanion],
    on_death: OnDeath,
) -> Model:
    """`on_death` is called when the engine or a companion has failed on known input.

    Raises:
        BundleError: onnxruntime refuses a graph of it, the manifest says something else of it, or there is no memory
            for it. DeviceError: it would run elsewhere. CountsError: there is no file for its counts.
    """
    maker = replace(maker, bundle=bundle)
    with faults_at_start_of(bundle), ExitStack() as undo:
        require_labels(bundle, maker)
        of_model = metrics.open_model(bundle.manifest, maker.provider)
        engine = Engine(bundle, settings, maker, of_model, lambda _: on_death())
        undo.callback(engine.close, _NOT_OPENED)
        opened: dict[str, Companion] = {}
        for name, open_companion in companions.items():
            companion = open_companion(bundle, settings, maker, metrics, on_death)
            if companion is not None:
                undo.callback(companion.close, _NOT_OPENED)
                opened[name] = companion
        model = Model(bundle, engine, codec_model(bundle, maker.open), of_model, opened)
        undo.pop_all()
    return model
