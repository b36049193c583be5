"""The caches that stay on the device, here the CPU: when they move, and which CUDA graph they would belong to."""

from __future__ import annotations

from typing import Any

import pytest

from service.bundle import load_bundle
from service.inference.sessions import CPU
from service.prior.draws import Codes, Draw
from service.prior.row_caches import DeviceCaches
from service.prior.sampling import RowSampler
from tests.service.conftest import Generating
from tests.service.inference.test_provider_settings import Resident
from tests.service.prior.test_sampling import random_draws


def resident_sampler(generating: Generating) -> tuple[RowSampler, DeviceCaches]:
    sampler = RowSampler(load_bundle(generating.folders[0]), Resident(CPU, 1), 4, 4, warm=False)
    assert isinstance(sampler._caches, DeviceCaches)
    return sampler, sampler._caches


def unguided(count: int) -> list[Draw]:
    """Which share their caches and their calls."""
    return [draw for draw in random_draws(64) if draw.guidance == 1][:count]


def test_while_the_same_samples_advance_nothing_passes_through_the_table(generating: Generating) -> None:
    sampler, caches = resident_sampler(generating)
    gather, batches = caches._gather, list[list[int]]()

    def gathering(index: Codes) -> Any:
        batches.append(index.tolist())
        return gather(index)

    caches._gather = gathering  # type: ignore[method-assign]
    first, second, third = map(sampler.open, unguided(3))
    for places in ([first, second], [first, second, third], [first, second]):
        for _ in range(2):
            sampler.advance(places)
    assert batches == [[first, second], [first, second, third], [first, second]]


def test_every_size_and_turn_of_a_session_is_a_cuda_graph_of_its_own(generating: Generating) -> None:
    """A graph of a batch of one would be replayed for two, in the memory of the other."""
    sampler, caches = resident_sampler(generating)
    places = list(map(sampler.open, unguided(4)))
    for size in range(1, 5):
        for _ in range(2):
            sampler._row[places] = 0
            sampler.advance(places[:size])
    graphs: dict[object, list[str]] = {}
    for memory in caches._memory.values():
        for (session, _), (_, options) in memory._bindings.items():
            graphs.setdefault(session, []).append(options.get_run_config_entry("gpu_graph_id"))
    assert sum(map(len, graphs.values())) >= 8
    for ids in graphs.values():
        assert len(set(ids)) == len(ids)


def test_a_place_that_cannot_be_cleared_is_free(generating: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was lost: once all were, every sample failed, with a sampler that was well."""
    sampler, caches = resident_sampler(generating)

    def broken(place: int) -> None:
        raise RuntimeError("CUDA error 700")

    free, (draw,) = sampler.free_places, unguided(1)
    with monkeypatch.context() as failing:
        failing.setattr(caches, "clear", broken)
        with pytest.raises(RuntimeError, match="CUDA error"):
            sampler.open(draw)
    assert sampler.free_places == free
    sampler.close(sampler.open(draw))
    assert sampler.free_places == free


def test_after_a_run_that_failed_the_device_is_not_asked_for_its_caches(
    generating: Generating, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its samples are lost, and it may never answer again."""
    sampler, caches = resident_sampler(generating)
    places = list(map(sampler.open, unguided(2)))
    sampler.advance(places)
    (memory,) = caches._memory.values()

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error 700")

    monkeypatch.setattr(memory, "run", broken)
    monkeypatch.setattr(memory, "caches", broken)
    with pytest.raises(RuntimeError, match="CUDA error"):
        sampler.advance(places)
    for place in places:
        caches.clear(place)
