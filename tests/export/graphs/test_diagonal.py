"""Several rows at once: the schedule never reads what is not there, and the graph draws the naive sampler's codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from export.graphs.diagonal_graph import band_of, diagonal, worthwhile
from export.graphs.diagonal_schedule import Position, Schedule, schedule, taps
from export.graphs.prior_graphs import PriorGraphWriter
from export.reference_sampler import Controls, Known, sample
from export.verify_prior import sample_diagonally, sample_rows
from service.bundle.fields import DIAGONAL_GRAPHS, GraphName
from tests.export.conftest import TABLE, K
from tests.export.graphs.test_prior_graphs import CONFIGURATIONS, inputs, sessions, torch_logits
from training.models.frequencies import frequency_table
from training.models.prior import PixelCNN

SIZES = [(7, 1, 2), (9, 2, 4), (9, 2, 3), (10, 2, 5), (32, 6, 12), (32, 6, 16), (33, 6, 7), (6, 4, 5)]
HEIGHT = 9


def replay(plan: Schedule, layers: int) -> dict[tuple[int, int, int], int]:
    """Run the schedule over a grid: how often each (layer, row, column) was computed. Reading what is missing fails."""
    computed: dict[tuple[int, int, int], int] = {}
    remembered: list[set[Position]] = [set() for _ in range(layers)]  # by layer, rows of the grid
    for call in range(HEIGHT + plan.bands - 1):
        present = [set(positions) for positions in remembered]
        steps = [one.step for one in plan.passes] + [plan.band]
        for one, end in zip(plan.passes, steps[1:], strict=True):
            for layer, outputs in enumerate(one.outputs, 1):
                for output in outputs:
                    for row, column in [*taps(output), output]:
                        outside = not 0 <= column < plan.width or row + call - (layer == 1) < 0
                        assert outside or row + call >= HEIGHT or (row + call, column) in present[layer - 1]
                    key = (layer, output[0] + call, output[1])
                    computed[key] = computed.get(key, 0) + 1
                    if layer < layers:
                        present[layer].add((output[0] + call, output[1]))
            for row, column in plan.drawn(one.step, end):
                if 0 <= row + call < HEIGHT and column < plan.width:
                    assert (layers, row + call, column) in computed, "a code is drawn before its context"
                present[0].add((row + 1 + call, column))
        remembered = [{(r + 1 + call, c) for r, c in kept} & present[i] for i, kept in enumerate(plan.kept)]
    return computed


@pytest.mark.parametrize(("width", "layers", "band"), SIZES)
def test_everything_is_computed_once_and_nothing_is_read_before(width: int, layers: int, band: int) -> None:
    computed = replay(schedule(width, layers, band), layers)
    for layer in range(1, layers + 1):
        for row in range(HEIGHT):
            assert [computed.get((layer, row, column)) for column in range(width)] == [1] * width


def test_a_band_of_twice_the_depth_needs_two_passes() -> None:
    assert [one.step for one in schedule(32, 6, 12).passes] == [0, 6]
    assert [one.step for one in schedule(32, 6, 8).passes] == [0, 2, 4, 6]


@pytest.mark.parametrize("band", [3, 9])
def test_a_band_is_wider_than_the_stack_is_deep_and_narrower_than_the_grid(band: int) -> None:
    with pytest.raises(ValueError, match=f"a band of {band} columns is none for 3 vertical layers over 9 columns"):
        schedule(9, 3, band)


@pytest.mark.parametrize(("threads", "level"), CONFIGURATIONS)
@pytest.mark.parametrize(("width", "band"), [(13, None), (12, 4), (7, 5)])
@pytest.mark.parametrize("graph", DIAGONAL_GRAPHS)
def test_diagonal_codes_are_the_naive_samplers(
    prior: PixelCNN, graph: GraphName, width: int, band: int | None, threads: int, level: ort.GraphOptimizationLevel
) -> None:
    """With labels, temperatures and known codes, where the last band is ragged, whole, and has two columns."""
    model = diagonal(PriorGraphWriter(prior), width, TABLE, band, filters=graph == "prior_diagonal_filtered")
    codes, labels, uniforms = inputs(5, 5, width)
    random = np.random.default_rng(4)
    known = Known(codes, random.random(codes.shape) < 0.3)
    controls = replace(Controls.off(5, K), inverse_temperature=random.uniform(0.5, 2, 5).astype(np.float32))
    if graph == "prior_diagonal_filtered":
        controls = replace(controls, top_k=np.array([1, 3, K, 5, K]), top_p=np.array([1, 0.8, 0.3, 0.9, 1], np.float32))
    expected = sample(
        lambda codes, labels: torch_logits(prior, codes, labels), uniforms, labels, TABLE, controls, known=known
    )
    run = sessions({graph: model}, threads, level)
    assert np.array_equal(sample_diagonally(run, graph, uniforms, labels, controls, known), expected)
    for one in (slice(0, 1), slice(3, 4)):
        alone = Controls(*(values[one] for values in (controls.inverse_temperature, controls.top_k, controls.top_p)))
        some = Known(known.codes[one], known.mask[one])
        found = sample_diagonally(run, graph, uniforms[one], labels[one], alone, some)
        assert np.array_equal(found, expected[one])


def test_the_photographs_size_draws_what_rows_draw() -> None:
    """32 x 32 codes of 512, the size it is made for, against the row graph: three bands, the last one ragged."""
    torch.manual_seed(0)
    prior = PixelCNN(512, 0, channels=16, vertical_layers=6, horizontal_layers=2, head_channels=32)
    models = PriorGraphWriter(prior).all(32, frequency_table(512).numpy())
    random = np.random.default_rng(0)
    uniforms = (random.integers(0, 1 << 24, (2, 32, 32)) / (1 << 24)).astype(np.float32)
    labels, run = np.zeros(2, np.int64), sessions(models)
    filters = Controls(np.ones(2, np.float32), np.array([100, 512]), np.array([1, 0.9], np.float32))
    filtered = sample_rows(run, "prior_row", uniforms, labels, filters)
    assert np.array_equal(sample_diagonally(run, "prior_diagonal_filtered", uniforms, labels, filters), filtered)
    expected = sample_rows(run, "prior_row_unfiltered", uniforms, labels, Controls.off(2, 512))
    assert not np.array_equal(filtered, expected)
    assert np.array_equal(sample_diagonally(run, "prior_diagonal", uniforms, labels, Controls.off(2, 512)), expected)
    assert len(np.unique(expected)) > 100


def test_only_grids_of_at_least_two_bands_have_the_graph(prior: PixelCNN) -> None:
    graphs = PriorGraphWriter(prior)
    assert band_of(graphs) == 6
    assert [width for width in range(1, 30) if worthwhile(graphs, width)] == list(range(12, 30))
    assert not {*DIAGONAL_GRAPHS} & graphs.all(11, TABLE).keys()
    assert {*DIAGONAL_GRAPHS} < graphs.all(12, TABLE).keys()


def test_a_diagonal_that_would_hand_on_more_than_a_manifest_holds_is_left_out() -> None:
    """With a shallow vertical stack it hands on four times what `prior_row` does, and the export failed at its end."""
    fits, exceeds = ({"vertical_layers": 1, "horizontal_layers": 6, "channels": channels} for channels in (455, 456))
    assert worthwhile(PriorGraphWriter(PixelCNN(K, **fits, head_channels=2)), 1024)  # 9,203 vectors
    assert not worthwhile(PriorGraphWriter(PixelCNN(K, **exceeds, head_channels=2)), 1024)
