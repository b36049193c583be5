"""The proof that float32 sums are exact, and the frequency table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.models.exactness import ExactnessError, partial_sum_bounds, prove_exact
from training.models.frequencies import frequency_table
from training.models.prior import EMBEDDING_LIMIT, EXACT_LIMIT, STREAM_LIMIT, PixelCNN


@pytest.fixture
def prior() -> PixelCNN:
    torch.manual_seed(0)
    return PixelCNN(24, 3, channels=12, vertical_layers=3, horizontal_layers=2, head_channels=20)


def test_every_layer_is_bounded(prior: PixelCNN) -> None:
    bounds = partial_sum_bounds(prior)
    layers = {name.rsplit(".", 1)[0] for name, _ in prior.named_parameters() if name.endswith("weight")}
    assert set(bounds) - {"guidance"} == layers - {"context"}  # part of every horizontal layer's bound
    assert prove_exact(prior) == max(bounds.values()) < EXACT_LIMIT


@pytest.mark.parametrize(("layer", "largest"), [(0, EMBEDDING_LIMIT), (1, STREAM_LIMIT)])
def test_the_bound_holds_for_the_worst_input(layer: int, largest: int) -> None:
    """Inputs at their limits with the signs of one output's weights reach the bound, less label and gate shift."""
    torch.manual_seed(0)
    prior = PixelCNN(8, channels=64, vertical_layers=2, horizontal_layers=1)
    weight = prior.vertical[layer].taps.quantized_weight()  # type: ignore[operator,union-attr]
    worst = torch.sign(weight) * largest  # (inputs, outputs)
    reached = (worst * weight).sum(0).max() * 128
    bound = partial_sum_bounds(prior)[f"vertical.{layer}.taps"]
    assert 0.9 * bound < reached <= bound


def test_weights_that_could_round_are_refused() -> None:
    prior = PixelCNN(8, channels=200, vertical_layers=1, horizontal_layers=1)
    with torch.no_grad():
        prior.vertical[0].taps.weight.fill_(1.0)  # type: ignore[union-attr]
    with pytest.raises(ExactnessError, match=r"vertical\.0\.taps: partial sums may reach \d+"):
        prove_exact(prior)


def test_a_bound_that_is_infinite_is_one_that_is_too_large(prior: PixelCNN) -> None:
    """It was a traceback, of a learning rate that is much too high."""
    assert prior.head.bias is not None
    with torch.no_grad():
        prior.head.bias.fill_(3e38)
    with pytest.raises(ExactnessError, match="head: partial sums may reach"):
        prove_exact(prior)


@pytest.mark.parametrize("codebook_size", [2, 16, 512, 1000, 1024])
def test_a_cumulative_table_fits_int32(codebook_size: int) -> None:
    table = frequency_table(codebook_size).numpy().astype(np.int64)
    assert table[0] * codebook_size < 1 << 31
    assert table[0] * codebook_size * 4 > 1 << 31  # and wastes at most two bits
    assert table[-1] == 1
    assert (np.diff(table) <= 0).all()


def test_the_table_is_the_exponential() -> None:
    table = frequency_table(512).numpy()
    distances = np.arange(len(table))
    np.testing.assert_allclose(table, table[0] * np.exp(-distances / 64), atol=0.5)


def test_a_prior_whose_guided_logits_could_round_is_refused() -> None:
    """The same head is exact without labels, where there is no guidance."""
    for labels in (0, 1):
        prior = PixelCNN(8, labels, channels=8, vertical_layers=1, horizontal_layers=1, head_channels=300)
        with torch.no_grad():
            prior.head.weight.fill_(0.99)
        bounds = partial_sum_bounds(prior)
        assert bounds["head"] < EXACT_LIMIT
        if not labels:
            prove_exact(prior)
            continue
        largest = 300 * 255 * 127 / 128 + 1
        assert bounds["guidance"] == int(largest * 17 * 16) >= EXACT_LIMIT
        with pytest.raises(ExactnessError, match="guidance: partial sums may reach"):
            prove_exact(prior)


# A tiny prior by hand: every weight and bias in integers, as the graphs hold them. Columns 0-3 of label_bias and of the
# taps are the gates of vertical.0; label_bias and context go on with those of horizontal.0 and horizontal.1.
HAND_MADE: dict[str, dict[tuple[int, ...], int]] = {
    "vertical.0.taps.weight": {(0, 1): 3, (11, 1): -4, (5, 2): 6},
    "label_bias": {(0, 1): 10, (1, 1): -20, (0, 2): 90, (1, 7): -30, (0, 8): 50},
    "context.weight": {(0, 3): -2, (1, 3): 5, (1, 4): 8},
    "horizontal.0.taps.weight": {(2, 3): -1, (5, 3): 1},
    "horizontal.1.taps.weight": {(0, 0): 4},
    "vertical.0.out.weight": {(0, 1): 2, (1, 1): -3, (0, 0): 4},
    "horizontal.0.out.weight": {(1, 0): -6},
    "horizontal.1.out.weight": {(1, 1): 1},
    "hidden.weight": {(0, 1): 7, (1, 1): -8},
    "hidden.bias": {(1,): -9},
    "head.weight": {(0, 0): -100, (1, 0): 127},
    "head.bias": {(0,): 60},
}
# Embeddings are at most 127, activations 1023, products of gates 64 * 64, hidden units 255; the hard sigmoid adds
# 32 * 4 * 128 = 16384.
BOUNDS = {
    "vertical.0.taps": (3 + 4) * 127 + 20 + 16384,  # column 1; column 2 reaches 6 * 127 + 90 + 16384
    "horizontal.0.taps": (1 + 1) * 127 + (2 + 5) * 1023 + 30 + 16384,
    "horizontal.1.taps": 4 * 1023 + 8 * 1023 + 50 + 16384,
    "vertical.0.out": (2 + 3) * 4096,
    "horizontal.0.out": 6 * 4096,
    "horizontal.1.out": 1 * 4096,
    "hidden": (7 + 8) * 1023 + 9,
    "head": (100 + 127) * 255 + 60,  # 57945
    "guidance": 123405,  # 57945 / 128 + 1 logits, 17 times in sixteenths: 123405.125
}


def hand_made() -> PixelCNN:
    prior = PixelCNN(2, 1, channels=2, vertical_layers=1, horizontal_layers=2, head_channels=2)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    for name, entries in HAND_MADE.items():
        for index, integer in entries.items():
            put(prior, name, index, integer)
    return prior


def put(prior: PixelCNN, name: str, index: tuple[int, ...], integer: int) -> None:
    """Weights are multiples of 1/128 and embeddings of 1/64, biases of 1/128 of an activation unit, which is 1/64."""
    scale = {"weight": 128, "embedding": 64}.get(name.rsplit(".", 1)[-1], 128 * 64)
    with torch.no_grad():
        dict(prior.named_parameters())[name][index] = integer / scale


def test_the_bounds_are_those_computed_by_hand() -> None:
    assert partial_sum_bounds(hand_made()) == BOUNDS
    assert prove_exact(hand_made()) == BOUNDS["guidance"]


@pytest.mark.parametrize(
    ("name", "index", "integer", "growth"),
    [
        ("vertical.0.taps.weight", (0, 1), 4, {"vertical.0.taps": 127}),
        ("vertical.0.taps.weight", (7, 1), -1, {"vertical.0.taps": 127}),
        ("horizontal.0.taps.weight", (2, 3), -2, {"horizontal.0.taps": 127}),
        ("horizontal.1.taps.weight", (5, 0), 1, {"horizontal.1.taps": 1023}),
        ("context.weight", (0, 3), -3, {"horizontal.0.taps": 1023}),
        ("context.weight", (0, 4), 1, {"horizontal.1.taps": 1023}),
        ("label_bias", (1, 1), -21, {"vertical.0.taps": 1}),
        ("label_bias", (0, 1), 11, {}),  # the other label's is larger
        ("label_bias", (1, 7), -31, {"horizontal.0.taps": 1}),
        ("label_bias", (0, 8), 51, {"horizontal.1.taps": 1}),
        ("vertical.0.out.weight", (1, 1), -4, {"vertical.0.out": 4096}),
        ("horizontal.0.out.weight", (0, 0), 1, {"horizontal.0.out": 4096}),
        ("horizontal.1.out.weight", (0, 1), -1, {"horizontal.1.out": 4096}),
        ("hidden.weight", (0, 1), 8, {"hidden": 1023}),
        ("hidden.bias", (1,), -10, {"hidden": 1}),
        ("head.weight", (0, 0), -101, {"head": 255, "guidance": 542}),  # 255 / 128 * 17 * 16 = 541.875
        ("head.weight", (1, 0), 200, {}),  # the graphs hold 127 at most
        ("head.bias", (0,), 61, {"head": 1, "guidance": 2}),  # 17 * 16 / 128 = 2.125
        ("embedding", (0, 0), 127, {}),  # at most 127, so below what a stream may reach
    ],
)
def test_each_weight_counts(name: str, index: tuple[int, ...], integer: int, growth: dict[str, int]) -> None:
    prior = hand_made()
    put(prior, name, index, integer)
    assert partial_sum_bounds(prior) == {layer: bound + growth.get(layer, 0) for layer, bound in BOUNDS.items()}


def test_the_last_weight_below_the_limit_is_accepted_and_the_next_refused() -> None:
    """16384 * 1023 + 16384 is 2^24: 129 weights of 127 are one less than 16384, and the next may not be 1."""
    prior = PixelCNN(2, channels=22, vertical_layers=2, horizontal_layers=1, head_channels=1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    for row in range(129):
        put(prior, "vertical.1.taps.weight", (row, 0), (-1) ** row * 127)
    assert prove_exact(prior) == (1 << 24) - 1023
    put(prior, "vertical.1.taps.weight", (129, 0), 1)
    with pytest.raises(ExactnessError, match=r"^vertical\.1\.taps: partial sums may reach 16777216, float32 is exact"):
        prove_exact(prior)


def test_a_sum_of_one_unit_less_than_the_limit_is_accepted() -> None:
    prior = hand_made()
    put(prior, "hidden.weight", (0, 1), 0)
    put(prior, "hidden.weight", (1, 1), 0)
    put(prior, "hidden.bias", (1,), (1 << 24) - 1)
    assert prove_exact(prior) == (1 << 24) - 1
    put(prior, "hidden.bias", (1,), 1 << 24)
    with pytest.raises(ExactnessError, match="hidden: partial sums may reach 16777216"):
        prove_exact(prior)
