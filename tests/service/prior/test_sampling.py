"""The row sampler: its numbers are Philox's, and nothing but a sample's own draw decides its codes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service.bundle import load_bundle
from service.inference.sessions import CPU, CUDA, ORT_ERRORS, SessionMaker
from service.inference.split_batches import SplitBatches
from service.prior.draws import SEED_LIMIT, Codes, Draw, fresh_seed, uniforms
from service.prior.sampling import RowSampler
from tests.service.conftest import Generating
from tests.tiny_bundle import CODEBOOK_SIZE

GRID = (7, 7)
MASK = (1 << 64) - 1


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four 64-bit numbers."""
    x, (k0, k1) = [counter, 0, 0, 0], key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * x[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * x[2], 1 << 64)
        x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return x


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (7, 3), (SEED_LIMIT - 1, 63)])
def test_uniforms_are_the_top_bits_of_philox(seed: int, index: int) -> None:
    """A seed means the same picture whatever numpy does to its other generators."""
    raw = [number for counter in range(1, 14) for number in philox(counter, (seed, index))][:49]
    expected = np.array([number >> 40 for number in raw], np.float64) / 2**24
    found = uniforms(seed, index, GRID)
    assert found.dtype == np.float32
    assert (found.ravel() == expected).all()
    assert found.max() < 1


def test_fresh_seeds_differ_and_survive_json() -> None:
    seeds = {fresh_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert max(seeds) < SEED_LIMIT
    assert max(seeds) > SEED_LIMIT // 2


@dataclass(frozen=True)
class Maker:
    """Opens sessions with these options, whatever is asked for; `provider` decides only whether batches are padded."""

    provider: Any
    always_threads: int
    optimisation: ort.GraphOptimizationLevel
    threads: int = 1
    batches: list[int] = field(default_factory=list)
    resident = False

    def open(self, path: Path) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.graph_optimization_level = self.always_threads, self.optimisation
        session = ort.InferenceSession(path, options, providers=[CPU])
        batches = self.batches

        class Recording:
            def run(self, names: None, feeds: dict[str, Any]) -> Any:
                batches.append(len(feeds["uniforms"]))
                return session.run(names, feeds)

        return Recording()


def random_draws(count: int) -> list[Draw]:
    """Every control at once: half of them filter, a third know some codes."""
    random = np.random.default_rng(3)
    return [
        Draw(
            uniforms=uniforms(index, 0, GRID),
            label=index % 4,
            inverse_temperature=np.float32(random.uniform(0.3, 3)),
            top_k=int(random.integers(1, CODEBOOK_SIZE)) if index % 2 else CODEBOOK_SIZE,
            top_p=np.float32(random.uniform(0.2, 1)) if index % 4 == 1 else np.float32(1),
            known_codes=random.integers(0, CODEBOOK_SIZE, GRID),
            known_mask=random.random(GRID) < (0.3 if index % 3 == 0 else 0),
            guidance=np.float32(1 + index % 5 / 2 if index % 5 > 2 else 1),
        )
        for index in range(count)
    ]


def drawn(sampler: RowSampler, draws: list[Draw]) -> Codes:
    places = [sampler.open(draw) for draw in draws]
    codes = np.stack([sampler.advance(places) for _ in range(GRID[0])], axis=1)
    for place in places:
        sampler.close(place)
    return codes


def test_codes_are_the_same_at_any_batch_thread_count_and_optimisation(generating: Generating) -> None:
    bundle, draws = load_bundle(generating.folders[0]), random_draws(64)
    off, full = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    expected = drawn(RowSampler(bundle, Maker(CPU, 1, full), 64, 64), draws)  # type: ignore[arg-type]
    for threads, optimisation in ((2, full), (1, off), (2, off)):
        sampler = RowSampler(bundle, Maker(CPU, threads, optimisation, threads), 64, 64)  # type: ignore[arg-type]
        assert (drawn(sampler, draws) == expected).all()
        assert all((drawn(sampler, [draw])[0] == codes).all() for draw, codes in zip(draws, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_thread_draws_its_part_of_a_large_batch(generating: Generating, threads: int) -> None:
    maker = Maker(CPU, 1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL, threads)
    sampler = RowSampler(load_bundle(generating.folders[0]), maker, 16, 16, warm=False)  # type: ignore[arg-type]
    draws = [draw for draw in random_draws(48) if draw.guidance == 1][:16]
    expected = np.concatenate([drawn(sampler, [draw]) for draw in draws])
    for count, parts in ((7, [7]), (8, [4, 4]), (9, [4, 5]), (12, [6, 6]), (16, [8, 8])):
        if threads == 1:
            parts = [count]
        if threads == 3 and count >= 12:
            parts = [4, 4, 4] if count == 12 else [5, 5, 6]
        maker.batches.clear()
        assert (drawn(sampler, draws[:count]) == expected[:count]).all()
        assert sorted(maker.batches) == sorted(parts * GRID[0])


def test_a_part_has_one_thread(generating: Generating) -> None:
    split = SplitBatches(SessionMaker(CPU, 2), generating.folders[0] / "prior.onnx")
    assert split._session.get_session_options().intra_op_num_threads == 1


def test_a_part_that_fails_fails_the_batch(generating: Generating) -> None:
    split = SplitBatches(SessionMaker(CPU, 2), generating.folders[0] / "prior.onnx")
    codes = np.zeros((8, *GRID), np.int64)
    codes[-1] = CODEBOOK_SIZE  # in the second part only
    with pytest.raises(ORT_ERRORS, match="out of data bounds"):
        split.run(None, {"codes": codes, "labels": np.zeros(8, np.int64)})


def test_the_first_batch_is_the_one_whose_memory_is_to_be_planned(generating: Generating) -> None:
    maker = Maker(CPU, 1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    RowSampler(load_bundle(generating.folders[0]), maker, 12, 12)  # type: ignore[arg-type]
    graphs = len(maker.batches) // 12
    assert maker.batches[: 2 * graphs] == [1] * graphs + [12] * graphs


def test_samples_at_different_rows_share_a_call(generating: Generating) -> None:
    sampler = RowSampler(load_bundle(generating.folders[0]), SessionMaker(CPU, 1), 4, 8)
    draws = random_draws(6)
    expected = [drawn(sampler, [draw])[0] for draw in draws]
    places = [sampler.open(draw) for draw in draws]
    rows: list[list[Codes]] = [[] for _ in draws]
    random = np.random.default_rng(0)
    while waiting := [index for index, done in enumerate(rows) if len(done) < GRID[0]]:
        chosen = random.permutation(waiting)[: random.integers(1, 5)]
        for index, row in zip(chosen, sampler.advance([places[index] for index in chosen]), strict=True):
            rows[index].append(row)
    assert (np.array(rows) == np.array(expected)).all()


def test_on_a_gpu_batches_are_padded_to_sizes_seen_at_start(generating: Generating) -> None:
    maker = Maker(CUDA, 1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    sampler = RowSampler(load_bundle(generating.folders[0]), maker, 12, 12)  # type: ignore[arg-type]
    warm, draws = set(maker.batches), random_draws(11)
    assert warm == {1, 2, 4, 8, 12}
    expected = drawn(RowSampler(load_bundle(generating.folders[0]), SessionMaker(CPU, 1), 12, 12), draws)
    maker.batches.clear()
    for count in (1, 3, 7, 11):
        assert (drawn(sampler, draws[:count]) == expected[:count]).all()
    assert set(maker.batches) <= warm
    unguided = [draw for draw in draws if draw.guidance == 1]
    for count, size in ((1, 1), (2, 2), (3, 4), (4, 4)):  # no larger than they must
        maker.batches.clear()
        drawn(sampler, unguided[:count])
        assert set(maker.batches) == {size}


def test_on_a_cpu_every_size_runs_as_it_is_and_has_run_at_the_start(generating: Generating) -> None:
    maker = Maker(CPU, 1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    sampler = RowSampler(load_bundle(generating.folders[0]), maker, 12, 12)  # type: ignore[arg-type]
    assert set(maker.batches) == set(range(1, 13))
    maker.batches.clear()
    for count in (3, 7, 12):
        drawn(sampler, random_draws(count))
    assert sum(maker.batches) == (3 + 7 + 12) * GRID[0]  # nothing but the samples themselves


def test_large_batches_of_a_cpu_are_not_all_run_at_the_start(generating: Generating) -> None:
    maker = Maker(CPU, 1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    RowSampler(load_bundle(generating.folders[0]), maker, 300, 300)  # type: ignore[arg-type]
    assert set(maker.batches) == {*range(1, 65), 300}


def test_the_graph_with_filters_runs_only_where_something_is_filtered(generating: Generating) -> None:
    sampler = RowSampler(load_bundle(generating.folders[0]), SessionMaker(CPU, 1), 4, 4)

    class Broken:
        def run(self, *arguments: object) -> None:
            raise AssertionError("this graph must not run")

    filtered, sampler._filtered = sampler._filtered, Broken()
    free = [draw for draw in random_draws(12) if draw.top_k == CODEBOOK_SIZE and draw.top_p == 1][:3]
    expected = drawn(sampler, free)
    sampler._filtered, sampler._unfiltered = filtered, Broken()
    filtering = next(draw for draw in random_draws(12) if draw.top_k < CODEBOOK_SIZE)
    assert (drawn(sampler, [*free, filtering])[:3] == expected).all()


def test_whoever_draws_once_need_not_wait_for_all_sizes(generating: Generating) -> None:
    maker = Maker(CPU, 1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    sampler = RowSampler(load_bundle(generating.folders[0]), maker, 3, 3, warm=False)  # type: ignore[arg-type]
    assert maker.batches == []
    draws = random_draws(3)
    expected = drawn(RowSampler(load_bundle(generating.folders[0]), SessionMaker(CPU, 1), 3, 3), draws)
    assert (drawn(sampler, draws) == expected).all()


def test_what_pads_a_batch_touches_no_sample(generating: Generating) -> None:
    """Three of four samples under way are padded to four, and not with the one that waits for the next call."""
    maker = Maker(CUDA, 1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    sampler = RowSampler(load_bundle(generating.folders[0]), maker, 4, 4)  # type: ignore[arg-type]
    draws = [draw for draw in random_draws(12) if draw.guidance == 1][1:5]
    expected = [drawn(sampler, [draw])[0] for draw in draws]
    first, *others = [sampler.open(draw) for draw in draws]
    for row in range(GRID[0]):
        assert (sampler.advance(others) == [codes[row] for codes in expected[1:]]).all()
        assert (sampler.advance([first])[0] == expected[0][row]).all()


@pytest.mark.parametrize("control", [{"top_k": CODEBOOK_SIZE - 1}, {"top_p": np.float32(0.99)}])
def test_either_filter_needs_the_graph_with_filters(generating: Generating, control: dict[str, float]) -> None:
    sampler = RowSampler(load_bundle(generating.folders[0]), SessionMaker(CPU, 1), 4, 4, warm=False)
    free = next(draw for draw in random_draws(12) if draw.top_k == CODEBOOK_SIZE and draw.guidance == 1)
    sampler._unfiltered = None
    drawn(sampler, [replace(free, **control)])  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        drawn(sampler, [free])
