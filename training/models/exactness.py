"""The proof that the prior is exact: no partial sum of any matrix product can reach 2^24 units of its grid.

In: a trained `PixelCNN`. Out: the largest bound over all accumulators, or `ExactnessError` with the layer's name.

A float32 holds every integer of magnitude up to 2^24. If sum(|w|) * max|a| + |bias| stays below that in units of the
accumulator's grid, every partial sum in every order is an integer that float32 holds, so no order of summation can
round (Balle, Johnston and Minnen, "Integer networks for data compression with latent-variable models", ICLR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.bundle.fields import GUIDANCE_STEPS, LARGEST_GUIDANCE
from training.errors import TrainingError
from training.models.prior import (
    EMBEDDING_LIMIT,
    EXACT_LIMIT,
    GATE_LIMIT,
    HEAD_LIMIT,
    STREAM_LIMIT,
    WEIGHT_SCALE,
    FixedPointLinear,
    PixelCNN,
    quantized_bias,
)


class ExactnessError(TrainingError):
    """A layer's sums may reach 2^24, so that float32 may round them and codes may differ between machines."""


def _sums(linear: FixedPointLinear, largest_input: int) -> Tensor:
    """(outputs,): sum |w| * max |a| with w in integers, so in 1/128 of the unit of `largest_input`: behind a gate
    that is 1/64 of an activation unit."""
    integers = (linear.quantized_weight().cpu().double() * WEIGHT_SCALE).abs()  # not every device has float64
    return integers.sum(0) * largest_input


def _units(bias: Tensor) -> Tensor:
    return quantized_bias(bias).cpu().double().abs() * WEIGHT_SCALE


@torch.no_grad()
def partial_sum_bounds(prior: PixelCNN) -> dict[str, int]:
    """The largest possible magnitude of a partial sum in each layer, in units of its accumulator's grid."""
    gates = 2 * prior.channels
    half = 4 * GATE_LIMIT // 2 * WEIGHT_SCALE  # the +1/2 of the hard sigmoid, before its division by 4
    labels = torch.split(_units(prior.label_bias).amax(0), gates)
    contexts = torch.split(_sums(prior.context, STREAM_LIMIT), gates)
    bounds: dict[str, Tensor] = {}
    for index, layer in enumerate(prior.vertical):
        sums = _sums(layer.taps, STREAM_LIMIT if index else EMBEDDING_LIMIT)  # type: ignore[arg-type]
        bounds[f"vertical.{index}.taps"] = sums + labels[index] + half
    for index, layer in enumerate(prior.horizontal):
        sums, label = _sums(layer.taps, STREAM_LIMIT if index else EMBEDDING_LIMIT), labels[len(prior.vertical) + index]  # type: ignore[arg-type]
        bounds[f"horizontal.{index}.taps"] = sums + contexts[index] + label + half
    for stack in ("vertical", "horizontal"):
        for index, layer in enumerate(getattr(prior, stack)):
            bounds[f"{stack}.{index}.out"] = _sums(layer.out, GATE_LIMIT * GATE_LIMIT)
    assert prior.hidden.bias is not None and prior.head.bias is not None
    bounds["hidden"] = _sums(prior.hidden, STREAM_LIMIT) + _units(prior.hidden.bias)
    bounds["head"] = _sums(prior.head, HEAD_LIMIT) + _units(prior.head.bias)
    if prior.label_count:  # free + g * (labelled - free), in units of the guidance's grid
        largest_logit = bounds["head"].max() / WEIGHT_SCALE + 1
        bounds["guidance"] = largest_logit * (2 * LARGEST_GUIDANCE + 1) * GUIDANCE_STEPS
    # of weights that are finite a bound may not be
    return {name: int(bound.max().clamp(max=float(1 << 62))) for name, bound in bounds.items()}


def prove_exact(prior: PixelCNN) -> int:
    """The largest bound of all layers.

    Raises:
        ExactnessError: a bound is 2^24 or more.
    """
    bounds = partial_sum_bounds(prior)
    worst = max(bounds, key=bounds.__getitem__)
    if bounds[worst] >= EXACT_LIMIT:
        raise ExactnessError(
            f"{worst}: partial sums may reach {bounds[worst]}, float32 is exact below {EXACT_LIMIT}: "
            "train the prior with a larger trainer.prior.weight_decay, a smaller trainer.prior.learning_rate or fewer "
            "prior.channels"
        )
    return bounds[worst]
