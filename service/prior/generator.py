"""The generator of one bundle: its row sampler and their scheduler, opened and closed with the model."""

from __future__ import annotations

import math
from typing import cast

from service.bundle import Bundle
from service.errors import NoPrior
from service.inference.sessions import CUDA, SessionMaker
from service.prior.sampling import RowSampler
from service.prior.scheduler import Scheduler
from service.registry.model import Model, OnDeath
from service.settings import Settings
from service.telemetry.metrics import Metrics

NAME = "generator"
# A CPU's row takes time nearly in proportion to its samples: a wider one would only delay small requests in it. On a
# GPU it takes the time of its several hundred kernels: 256 samples took 1.4 times as long as 64 (docs/gpu.md).
SLOTS_ON_CUDA, SLOTS_ON_CPU = 256, 64
FILLED_BESIDE_OTHERS_ON_CPU = 0.75  # of the slots, by a request of many samples (benchmarks/generation_load.py)


def slots_of(settings: Settings, maker: SessionMaker) -> int:
    """How many samples advance in one call."""
    return settings.max_generate_batch or (SLOTS_ON_CUDA if maker.provider == CUDA else SLOTS_ON_CPU)


def filled_beside_others(slots: int, maker: SessionMaker) -> int:
    return slots if maker.provider == CUDA else math.ceil(FILLED_BESIDE_OTHERS_ON_CPU * slots)


def open_generator(
    bundle: Bundle, settings: Settings, maker: SessionMaker, metrics: Metrics, on_death: OnDeath
) -> Scheduler | None:
    """None where the bundle has no prior."""
    if bundle.manifest.prior is None:
        return None
    bound = metrics.generation.of(bundle.manifest.name)
    slots = slots_of(settings, maker)
    # twice as many places, for those that pause: see service.prior.turns.choose
    sampler = RowSampler(bundle, maker, slots, places=2 * slots, warm=False)
    filled = filled_beside_others(slots, maker)
    scheduler = Scheduler(sampler, settings.max_queued_samples, settings.engine_stall_s, bound, on_death, filled)
    try:
        scheduler.in_its_thread(sampler.warm_up)  # onnxruntime keeps a CUDA graph for the thread that captured it
    except BaseException:
        scheduler.close("It could not be opened.")
        raise
    return scheduler


def generator_of(model: Model) -> Scheduler:
    """Raises NoPrior where the model cannot generate."""
    if NAME not in model.companions:
        raise NoPrior(f"Model {model.manifest.name!r} was exported without a prior; GET /models lists those with one.")
    return cast(Scheduler, model.companions[NAME])
