"""The proof that float32 sums are exact, and the frequency table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.exactness import ExactnessError, frequency_table, partial_sum_bounds, prove_exact
from training.prior import EXACT_LIMIT, STREAM_LIMIT, PixelCNN


def test_every_layer_is_bounded(prior: PixelCNN) -> None:
    bounds = partial_sum_bounds(prior)
    layers = {name.rsplit(".", 1)[0] for name, _ in prior.named_parameters() if name.endswith("weight")}
    assert set(bounds) - {"guidance"} == layers - {"context"}  # part of every horizontal layer's bound
    assert prove_exact(prior) == max(bounds.values()) < EXACT_LIMIT


def test_the_bound_holds_for_the_worst_input(prior: PixelCNN) -> None:
    """Inputs at their limits with the signs of one output's weights reach the bound, less label and gate shift."""
    layer = prior.vertical[0].taps
    weight = layer.quantized_weight()  # type: ignore[operator,union-attr]
    worst = torch.sign(weight) * STREAM_LIMIT  # (inputs, outputs)
    reached = (worst * weight).sum(0).max() * 128
    bound = partial_sum_bounds(prior)["vertical.0.taps"]
    assert 0.9 * bound < reached <= bound


def test_weights_that_could_round_are_refused() -> None:
    prior = PixelCNN(8, channels=200, vertical_layers=1, horizontal_layers=1)
    with torch.no_grad():
        prior.vertical[0].taps.weight.fill_(1.0)  # type: ignore[union-attr]
    with pytest.raises(ExactnessError, match=r"vertical\.0\.taps: partial sums may reach \d+"):
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
