"""The context model sees nothing that comes later, and its rate teaches an encoder codes that are predictable."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.training.conftest import tiny_config
from training.models.building import build_autoencoder
from training.models.context_model import REACH, CausalConv, ContextModel, scale_gradient
from training.models.scalar_quantizer import FiniteScalarQuantizer

LEVELS = (5, 3)


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_a_position_sees_those_before_it_within_reach_and_no_other() -> None:
    torch.manual_seed(0)
    conv, x = CausalConv(1, 1, REACH), torch.zeros(1, 1, 7, 8, requires_grad=True)
    conv(x)[0, 0, 3, 4].backward()
    assert x.grad is not None
    seen = {(int(row) - 3, int(column) - 4) for row, column in torch.nonzero(x.grad[0, 0])}
    square = [(row, column) for row in range(-REACH, REACH + 1) for column in range(-REACH, REACH + 1)]
    assert seen == {place for place in square if place < (0, 0)}


def test_a_digit_is_predicted_from_earlier_codes_and_from_the_digits_before_it() -> None:
    torch.manual_seed(0)
    model = ContextModel((4, 3, 2))
    for d in range(3):
        x = latents(1, 3, 5, 6).requires_grad_()
        model(x)[d][0, :, 2, 3].sin().sum().backward()
        assert x.grad is not None
        here = x.grad[0, :, 2, 3].abs() > 0
        assert here.tolist() == [earlier < d for earlier in range(3)]
        flat = x.grad.abs().sum((0, 1)).flatten()
        assert flat[: 2 * 6 + 3].sum() > 0 and flat[2 * 6 + 4 :].sum() == 0


def test_the_border_is_told_from_a_code_of_zeros() -> None:
    torch.manual_seed(0)
    (found,) = ContextModel((3,))(torch.zeros(1, 1, 6, 6))
    assert not torch.allclose(found[0, :, 0, 0], found[0, :, 3, 3])


def test_the_digits_are_distributions() -> None:
    for logs, level in zip(ContextModel(LEVELS)(latents(2, 2, 4, 5)), LEVELS, strict=True):
        assert logs.shape == (2, level, 4, 5)
        torch.testing.assert_close(logs.exp().sum(1), torch.ones(2, 4, 5))


def test_the_gradient_is_scaled_and_the_value_is_not() -> None:
    x = torch.tensor([3.0, -1.0], requires_grad=True)
    y = scale_gradient(x, 0.25)
    y.sum().backward()
    assert y.tolist() == [3, -1] and x.grad is not None and x.grad.tolist() == [0.25, 0.25]


def test_the_rate_is_what_codes_cost_and_what_others_would_cost_in_their_place() -> None:
    """Against numpy: -log p of the code's digits, and the same expected under the soft assignment of its latent."""
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(LEVELS, context_rate_weight=0.5)
    bounded = torch.tanh(latents(2, 2, 3, 4))
    codes = quantizer.assign(torch.atanh(bounded))
    vectors = quantizer.lookup(codes)
    assert quantizer.context is not None
    loss, nats = quantizer.context_rate(bounded, vectors, codes)

    logs = [part.detach().double().numpy() for part in quantizer.context(vectors)]
    error = sum((2 / (level - 1)) ** 2 / 12 for level in LEVELS)  # of rounding
    cost = expected = 0.0
    for d, level in enumerate(LEVELS):
        digits = (codes.numpy() // math.prod(LEVELS[:d])) % level
        cost -= np.take_along_axis(logs[d], digits[:, None], 1).mean()
        grid = np.linspace(-1, 1, level)
        soft = np.exp(-((bounded[:, d, None].double().numpy() - grid[:, None, None]) ** 2) / error)
        expected -= (soft / soft.sum(1, keepdims=True) * logs[d]).sum(1).mean()
    assert nats.item() == pytest.approx(cost, rel=1e-5)
    assert loss.item() == pytest.approx(cost + 0.5 * expected, rel=1e-5)


def test_the_model_learns_at_one_weight_and_the_encoder_at_its_own() -> None:
    """Both gradients of the rate to the latents grow with the weight, those to the model do not."""
    found = {}
    for weight in (0.5, 1.0):
        torch.manual_seed(0)
        quantizer, z = FiniteScalarQuantizer(LEVELS, context_rate_weight=weight), latents(1, 2, 4, 4).requires_grad_()
        quantizer(z).loss.backward()
        assert quantizer.context is not None and z.grad is not None
        found[weight] = (z.grad, [parameter.grad for parameter in quantizer.context.parameters()])
    torch.testing.assert_close(found[1.0][0], 2 * found[0.5][0])
    assert found[0.5][0].abs().sum() > 0
    for half, whole in zip(found[0.5][1], found[1.0][1], strict=True):
        assert half is not None and half.abs().sum() > 0
        torch.testing.assert_close(half, whole)


def test_descent_on_the_rate_makes_codes_predictable() -> None:
    """Codes of noise cost fewer bits where their latents may follow what is predicted; all are still in use where the
    entropy of the codes is asked for as well."""
    bits, used = {}, {}
    for weight in (1e-9, 1.0):
        torch.manual_seed(0)
        quantizer = FiniteScalarQuantizer((3, 3), usage_weight=0.5, context_rate_weight=weight)
        z = latents(1, 2, 12, 12).requires_grad_()
        model = torch.optim.Adam(quantizer.parameters(), 0.01)
        moved = torch.optim.Adam([z], 0.02)
        for _ in range(200):
            quantized = quantizer(z)
            model.zero_grad()
            moved.zero_grad()
            quantized.loss.backward()
            model.step()
            moved.step()
        bits[weight] = quantized.metrics["context_bits"].item()
        used[weight] = quantized.metrics["perplexity"].item()
    assert bits[1.0] < 0.6 * bits[1e-9]
    assert used[1.0] > 7


def test_without_the_weight_there_is_no_model_and_a_run_with_it_has_one() -> None:
    assert FiniteScalarQuantizer(LEVELS).context is None
    config = tiny_config("autoencoder.quantizer.kind=fsq", "autoencoder.quantizer.context_rate_weight=0.25")
    model = build_autoencoder(config.autoencoder, (1, 28, 28), 0)
    quantizer = model.quantizer
    assert isinstance(quantizer, FiniteScalarQuantizer) and quantizer.context_rate_weight == 0.25
    assert any(name.startswith("quantizer.context.") for name in model.state_dict())
    assert quantizer(latents(1, 3, 4, 4)).metrics["context_bits"] > 0
