"""Finite scalar quantization: latents (B,D,h,w) -> codes (B,h,w) int64 in [0,K) by rounding each of D numbers.

The third of the quantizers of `training.quantizers`, with their interface. Sources: arXiv:2309.15505 (FSQ) and, for
codes that are all used, arXiv:2310.05737.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.quantizers import DEFAULTS, Quantized, perplexity, rows_of, straight_through
from training.ranks import mean_over_ranks, sum_over_ranks


class FiniteScalarQuantizer(nn.Module):
    """FSQ (arXiv:2309.15505): each of D numbers is bounded and rounded to one of `levels[d]` values.

    The codebook is the grid itself, K = prod(levels); nothing is learned. Unlike the paper's listing, an even number of
    levels is not shifted by half a step: the grid is symmetric, and z = 0 lies between two of its values.

    Args:
        levels: how many values each of the D numbers can have.
        usage_weight: of the entropy of the batch's codes, in nats, which training then also maximises: an encoder
            that nothing tells otherwise leaves most of the grid unused.
    """

    levels: Tensor  # (D,) int64
    strides: Tensor  # (D,) int64: mixed-radix weights of the code index

    def __init__(self, levels: tuple[int, ...], *, usage_weight: float = DEFAULTS.usage_weight) -> None:
        super().__init__()
        if any(level < 2 for level in levels):
            raise ValueError(f"levels are {levels}, each must be at least 2")
        self.codebook_size, self.dimension, self.usage_weight = math.prod(levels), len(levels), usage_weight
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("strides", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))

    def bounded(self, latents: Tensor) -> Tensor:
        """(B,D,h,w) -> tanh, in (-1,1): the codebook's vectors are `levels` even steps of each number."""
        return torch.tanh(latents.float())

    @property
    def codebook(self) -> Tensor:
        """(K,D) float32 in [-1,1]."""
        return self.lookup(torch.arange(self.codebook_size, device=self.levels.device)[None, None])[0, :, 0].T

    def assign(self, latents: Tensor) -> Tensor:
        """Latents (B,D,h,w) -> codes (B,h,w) int64: the rounded numbers as digits, the first one the lowest."""
        steps = (self.levels - 1)[:, None, None]
        # a NaN would be a code far out of range; as any code, it reaches the loss, whose look at it ends the run
        digits = torch.round((self.bounded(latents) + 1) / 2 * steps).nan_to_num().long()
        return (digits * self.strides[:, None, None]).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) int64 -> vectors (B,D,h,w) float32 in [-1,1]."""
        digits = (codes[:, None] // self.strides[:, None, None]) % self.levels[:, None, None]
        return digits.float() / (self.levels - 1).float()[:, None, None] * 2 - 1

    def usage_entropy(self, bounded: Tensor) -> Tensor:
        """(B,D,h,w) in [-1,1] -> (): the entropy in nats, at most log K, of the mean soft assignment of the batch, over
        all processes: the second term of the entropy penalty of arXiv:2310.05737.

        A latent belongs to each code by the softmax of its negative squared distances, in units of the mean squared
        error of rounding (a step squared over 12, of each number); the gradient pulls latents to codes that are rare.
        Over a grid, that softmax is the product of those of the D numbers.
        """
        rounding_error = (2 / (self.levels - 1)).square().sum() / 12
        shares = []  # of each number, (N,levels)
        for number, levels in zip(rows_of(bounded).T, self.levels.tolist(), strict=True):
            distances = (number[:, None] - torch.linspace(-1, 1, levels, device=number.device)).square()
            shares.append(torch.softmax(-distances / rounding_error, dim=1))
        *others, last = shares
        product = last.new_ones(len(last), 1)
        for share in others:
            product = (product[:, :, None] * share[:, None]).flatten(1)
        with torch.autocast(bounded.device.type, enabled=False):
            usage = mean_over_ranks(product.T @ last / len(last))  # (K / last levels, last levels)
        entropy: Tensor = torch.special.entr(usage.clamp(min=1e-12)).sum()  # at 0 the gradient would be infinite
        return entropy

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B,D,h,w), not yet bounded."""
        bounded = self.bounded(latents)
        codes = self.assign(latents)
        counts = sum_over_ranks(torch.bincount(codes.flatten(), minlength=self.codebook_size).float())
        metrics = {"perplexity": perplexity(counts), "codes_used": (counts > 0).sum().float()}
        loss = -self.usage_weight * self.usage_entropy(bounded) if self.usage_weight else latents.new_zeros(())
        return Quantized(straight_through(bounded, self.lookup(codes)), codes, loss, metrics)
