"""Finite scalar quantization against numpy oracles: codes, gradients, and the entropy that spreads the codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.training.models.test_quantizers import oracle_codes
from training.models.scalar_quantizer import FiniteScalarQuantizer

LEVELS = (4, 3, 5)


def test_fsq_codes_and_vectors_are_inverse() -> None:
    quantizer = FiniteScalarQuantizer(LEVELS)
    codes = torch.arange(quantizer.codebook_size).reshape(1, 6, 10)
    vectors = quantizer.lookup(codes)
    assert len({tuple(v.tolist()) for v in quantizer.codebook}) == math.prod(LEVELS) == quantizer.codebook_size
    assert torch.equal(quantizer.assign(torch.atanh(vectors * 0.999)), codes)


def test_fsq_takes_the_nearest_grid_point_and_passes_the_gradient_through_tanh() -> None:
    quantizer = FiniteScalarQuantizer(LEVELS)
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5)).requires_grad_()
    quantized = quantizer(z)
    rows = torch.tanh(z.detach()).movedim(1, -1).reshape(-1, 3).double().numpy()
    assert quantized.codes.flatten().tolist() == oracle_codes(rows, quantizer.codebook.double().numpy()).tolist()
    quantized.vectors.sum().backward()
    torch.testing.assert_close(z.grad, 1 - torch.tanh(z.detach()) ** 2)


def test_fsq_refuses_a_level_of_one() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        FiniteScalarQuantizer((4, 1))


def test_fsq_of_a_latent_that_is_no_number_is_a_code_and_a_loss_that_is_none() -> None:
    """Its code lay far below 0, and counting codes failed before the look at the loss could tell of a divergence."""
    latents = torch.full((1, 2, 1, 1), math.nan)
    quantized = FiniteScalarQuantizer((5, 3))(latents)
    assert 0 <= int(quantized.codes) < 15
    assert quantized.vectors.isnan().all()


def test_usage_entropy_is_that_of_the_mean_soft_assignment() -> None:
    quantizer = FiniteScalarQuantizer(LEVELS)
    bounded = torch.tanh(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(6)))
    rows, codebook = bounded.movedim(1, -1).reshape(-1, 1, 3).double().numpy(), quantizer.codebook.double().numpy()
    error = sum((2 / (level - 1)) ** 2 / 12 for level in LEVELS)  # of rounding
    weights = np.exp(-((rows - codebook) ** 2).sum(-1) / error)
    usage = (weights / weights.sum(1, keepdims=True)).mean(0)
    assert quantizer.usage_entropy(bounded).item() == pytest.approx(-(usage * np.log(usage)).sum(), rel=1e-5)


def test_usage_entropy_has_its_most_where_all_codes_are_used_alike_and_less_where_one_is() -> None:
    quantizer = FiniteScalarQuantizer((2, 2))
    everywhere = quantizer.codebook.T[None, :, :, None]
    assert quantizer.usage_entropy(everywhere).item() == pytest.approx(math.log(4), rel=1e-6)
    alone = quantizer.usage_entropy(everywhere[:, :, :1]).item()
    assert 0 < alone < 0.7 * math.log(4)  # soft: some of it is its neighbours'


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_the_weighted_entropy_with_its_sign(weight: float) -> None:
    quantizer = FiniteScalarQuantizer(LEVELS, usage_weight=weight)
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    entropy = quantizer.usage_entropy(quantizer.bounded(z)).item()
    assert quantizer(z).loss.item() == pytest.approx(-weight * entropy) and entropy > 1


def test_descent_on_the_loss_alone_spreads_latents_over_the_codes() -> None:
    """Latents that all lie near one code end on nearly all of them; without the weight nothing moves them."""
    ends = {}
    for weight in (0.0, 1.0):
        quantizer = FiniteScalarQuantizer((3, 3), usage_weight=weight)
        z = (0.1 * torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(8))).requires_grad_()
        optimizer = torch.optim.Adam([z], 0.05)
        for _ in range(150):
            optimizer.zero_grad()
            (quantizer(z).loss + 0 * z.sum()).backward()
            optimizer.step()
        ends[weight] = quantizer(z).metrics["perplexity"].item()
    assert ends[0.0] == pytest.approx(1) and ends[1.0] > 8


def test_the_gradient_is_finite_where_some_codes_are_too_far_to_count() -> None:
    """The share of a code at the other end of 64 levels is 0 in float32, where the entropy's slope has no end."""
    z = torch.full((1, 2, 2, 2), -9.0, requires_grad=True)
    FiniteScalarQuantizer((64, 64), usage_weight=1.0)(z).loss.backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_under_mixed_precision_usage_and_rate_are_those_of_float32() -> None:
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer((8, 8, 8), usage_weight=1.0, context_rate_weight=1.0)
    latents = torch.randn(4, 3, 8, 8)
    expected = quantizer(latents).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(latents).loss, expected)
