"""Few samples on a CPU are drawn several rows at once: the same codes, in whatever company they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, load_bundle
from service.bundle.fields import DIAGONAL_GRAPHS, NOT_IN_VERSION
from service.bundle.manifest import version_of
from service.inference.sessions import CPU, SessionMaker
from service.prior.draws import Codes, Draw
from service.prior.sampling import RowSampler
from service.prior.shear import Shear
from tests.service.prior.test_sampling import GRID, random_draws
from tests.tiny_bundle import CODEBOOK_SIZE, tiny_prior, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("diagonal")
    write_tiny_bundle(folder, prior=tiny_prior(vertical_layers=1))
    return load_bundle(folder)


def filters(draw: Draw) -> bool:
    return draw.top_k < CODEBOOK_SIZE or draw.top_p < 1


def free_draws(count: int, *, filtered: bool = False) -> list[Draw]:
    """Without guidance, so that they may be drawn diagonally; with filters or without."""
    plain = [draw for draw in random_draws(64) if filters(draw) == filtered and draw.guidance == 1]
    return plain[:count]


def mixed_draws(count: int) -> list[Draw]:
    return [*free_draws(count - count // 2), *free_draws(count // 2, filtered=True)]


def by_rows(bundle: Bundle, draws: list[Draw]) -> Codes:
    """As if the bundle had no such graph."""
    sampler = RowSampler(bundle, SessionMaker(CPU, 1), 64, 64, warm=False)
    places = [sampler.open(draw) for draw in draws]
    return np.stack([sampler.advance(places) for _ in range(GRID[0])], axis=1)


class Broken:
    def run(self, *arguments: object) -> None:
        raise AssertionError("this graph must not run")


@pytest.mark.parametrize(
    "draws",
    [free_draws(1), free_draws(4), free_draws(1, filtered=True), free_draws(4, filtered=True), mixed_draws(3)],
    ids=["one", "four", "one filtered", "four filtered", "three mixed"],
)
def test_few_samples_are_drawn_diagonally(bundle: Bundle, draws: list[Draw]) -> None:
    count = len(draws)
    sampler = RowSampler(bundle, SessionMaker(CPU, 2), 8, 16)
    sampler._unfiltered = sampler._filtered = sampler._guided = Broken()
    for _ in range(3):  # places are used again
        places = [sampler.open(draw, count) for draw in draws]
        codes = np.stack([sampler.advance(places) for _ in range(GRID[0])], axis=1)
        assert (codes == by_rows(bundle, draws)).all()
        for place in places:
            sampler.close(place)


def test_more_are_not(bundle: Bundle) -> None:
    draws = free_draws(5)
    sampler = RowSampler(bundle, SessionMaker(CPU, 1), 8, 16)
    assert sampler._diagonal is not None
    sampler._diagonal._sessions = dict.fromkeys(DIAGONAL_GRAPHS, Broken())  # type: ignore[assignment]
    places = [sampler.open(draw, 5) for draw in draws]
    codes = np.stack([sampler.advance(places) for _ in range(GRID[0])], axis=1)
    assert (codes == by_rows(bundle, draws)).all()


def test_filters_run_only_where_a_sample_has_some(bundle: Bundle) -> None:
    """They take a third of the time beside."""
    sampler = RowSampler(bundle, SessionMaker(CPU, 1), 8, 16, warm=False)
    assert sampler._diagonal is not None
    sampler._diagonal._sessions["prior_diagonal_filtered"] = Broken()  # type: ignore[assignment]
    assert sampler.advance([sampler.open(draw, 2) for draw in free_draws(2)]).shape == (2, GRID[1])
    with pytest.raises(AssertionError, match="this graph must not run"):
        sampler.advance([sampler.open(draw, 2) for draw in mixed_draws(2)])


def test_a_bundle_of_an_earlier_version_draws_filtered_samples_by_rows(bundle: Bundle) -> None:
    """It has one diagonal only."""
    graphs = {name: spec for name, spec in bundle.manifest.graphs.items() if name != "prior_diagonal_filtered"}
    earlier = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": graphs}))
    draws = mixed_draws(2)
    sampler = RowSampler(earlier, SessionMaker(CPU, 1), 8, 16)
    places = [sampler.open(draw, 2) for draw in draws]
    assert [sampler._graph[place] for place in places] == ["diagonal", "filtered"]
    codes = np.stack([sampler.advance(places) for _ in range(GRID[0])], axis=1)
    assert (codes == by_rows(bundle, draws)).all()


def test_one_more_than_it_has_places_for_is_drawn_by_rows(bundle: Bundle) -> None:
    """Samples that began alone one after the other, and pause."""
    draws = free_draws(5)
    sampler = RowSampler(bundle, SessionMaker(CPU, 1), 8, 16, warm=False)
    places = [sampler.open(draw, 1) for draw in draws]
    assert [sampler._graph[place] for place in places] == ["diagonal"] * 4 + ["unfiltered"]
    codes = np.stack([sampler.advance(places) for _ in range(GRID[0])], axis=1)
    assert (codes == by_rows(bundle, draws)).all()


def test_it_can_be_checked_when_all_its_samples_are_drawn(bundle: Bundle) -> None:
    """There is no next call for the first place then: the sampler would be taken for dead."""
    sampler = RowSampler(bundle, SessionMaker(CPU, 1), 4, 4, warm=False)
    places = [sampler.open(draw, 4) for draw in free_draws(4)]
    for _ in range(GRID[0]):
        sampler.advance(places)
    sampler.check(4)


def test_a_fresh_sample_has_empty_caches(bundle: Bundle) -> None:
    """As docs/bundle-format.md says, whatever the graph makes of them."""
    sampler = RowSampler(bundle, SessionMaker(CPU, 1), 4, 4, warm=False)
    assert sampler._diagonal is not None
    table = sampler._diagonal._caches._table
    place = sampler.open(free_draws(1)[0], 1)
    sampler.advance([place])
    assert table.any()
    sampler.close(place)
    sampler.open(free_draws(1)[0], 1)
    assert not table.any()


def test_nothing_changes_in_any_company(bundle: Bundle) -> None:
    """Samples with every control come and go, pause and are given up, some drawn diagonally, and keep their codes."""
    draws = random_draws(40)
    expected = by_rows(bundle, draws)
    sampler, random = RowSampler(bundle, SessionMaker(CPU, 1), 6, 12), np.random.default_rng(0)
    waiting, under_way, rows = list(range(len(draws))), dict[int, int](), dict[int, list[Codes]]()
    diagonal = 0
    while waiting or under_way:
        batch = int(random.integers(1, 7))
        while waiting and sampler.free_places and random.random() < 0.5:
            one = waiting.pop()
            under_way[one], rows[one] = sampler.open(draws[one], batch), []
            diagonal += sampler._graph[under_way[one]] == "diagonal"
        chosen = random.permutation(list(under_way))[:batch].tolist()
        if not chosen:
            continue
        for one, row in zip(chosen, sampler.advance([under_way[one] for one in chosen]), strict=True):
            rows[one].append(row)
            given_up = len(rows[one]) < GRID[0] and random.random() < 0.03
            if given_up or len(rows[one]) == GRID[0]:
                sampler.close(under_way.pop(one))
    for one, found in rows.items():
        assert (np.array(found) == expected[one][: len(found)]).all()
    assert 3 < diagonal < len(draws)
    assert sum(len(found) == GRID[0] for found in rows.values()) > 20


def test_a_grid_survives_the_shear() -> None:
    grid = np.arange(2 * 5 * 8).reshape(2, 5, 8)
    shear = Shear(bands=3, columns=9, grid=(5, 8))
    sheared = shear.of(grid)
    assert sheared.shape == (2, 7, 9)
    assert (sheared[0, 2] == [16, 17, 18, 11, 12, 13, 6, 7, 0]).all()  # rows 2, 1 and 0, and nothing beside the grid
    assert (shear.undone(sheared) == grid).all()
    assert shear.row_exists.tolist()[:3] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert shear.row_exists.tolist()[-2:] == [[0, 1, 1], [0, 0, 1]]


def test_a_gpu_does_not_open_it(bundle: Bundle) -> None:
    opened: list[str] = []

    @dataclass(frozen=True)
    class OnCuda:
        provider: str = "CUDAExecutionProvider"
        threads: int = 1
        resident = False

        def open(self, path: Path, **options: object) -> Any:
            opened.append(path.stem)
            return SessionMaker(CPU, 1).open(path)

    sampler = RowSampler(bundle, OnCuda(), 4, 4, warm=False)  # type: ignore[arg-type]
    assert {*DIAGONAL_GRAPHS} < bundle.manifest.graphs.keys()
    assert not {*DIAGONAL_GRAPHS} & {*opened}
    place = sampler.open(free_draws(1)[0], 1)
    assert sampler.advance([place]).shape == (1, GRID[1])


def test_a_bundle_keeps_its_version_with_and_without_it(bundle: Bundle) -> None:
    """So its codes and containers stay valid."""
    without = {name: spec for name, spec in bundle.manifest.graphs.items() if name not in NOT_IN_VERSION}
    assert len(without) < len(bundle.manifest.graphs)
    assert version_of(without) == bundle.manifest.version
