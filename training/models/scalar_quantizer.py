"""Finite scalar quantization: latents (B,D,h,w) -> codes (B,h,w) int64 in [0,K) by rounding each of D numbers.

The third of the quantizers of `training.models.quantizers`, with their interface. Sources: arXiv:2309.15505 (FSQ), for
codes that are all used arXiv:2310.05737, and for codes that are predictable arXiv:1801.04260.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.models.context_model import ContextModel, scale_gradient
from training.models.quantizers import DEFAULTS, Quantized, perplexity, rows_of, straight_through
from training.models.ranks import mean_over_ranks, sum_over_ranks


class FiniteScalarQuantizer(nn.Module):
    """FSQ (arXiv:2309.15505): each of D numbers is bounded and rounded to one of `levels[d]` values.

    The codebook is the grid itself, K = prod(levels); nothing is learned. Unlike the paper's listing, an even number of
    levels is not shifted by half a step: the grid is symmetric, and z = 0 lies between two of its values.

    Args:
        levels: how many values each of the D numbers can have.
        usage_weight: of the entropy of the batch's codes, in nats, which training then also maximises: an encoder
            that nothing tells otherwise leaves most of the grid unused.
        context_rate_weight: of the nats that a code costs after those before it, by a model that learns beside;
            training then prefers codes that are predictable, which a prior stores in fewer bits.
    """

    levels: Tensor  # (D,) int64
    strides: Tensor  # (D,) int64: mixed-radix weights of the code index

    def __init__(
        self,
        levels: tuple[int, ...],
        *,
        usage_weight: float = DEFAULTS.usage_weight,
        context_rate_weight: float = DEFAULTS.context_rate_weight,
    ) -> None:
        super().__init__()
        if any(level < 2 for level in levels):
            raise ValueError(f"levels are {levels}, each must be at least 2")
        self.codebook_size, self.dimension = math.prod(levels), len(levels)
        self.usage_weight, self.context_rate_weight = usage_weight, context_rate_weight
        self.context = ContextModel(levels) if context_rate_weight else None
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("strides", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))

    def bounded(self, latents: Tensor) -> Tensor:
        """(B,D,h,w) -> tanh, in [-1,1]: the codebook has `levels` even steps of each number, both ends too."""
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

    def digits(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) int64 -> (B,D,h,w) int64, digit d in [0,levels[d])."""
        return (codes[:, None] // self.strides[:, None, None]) % self.levels[:, None, None]

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) int64 -> vectors (B,D,h,w) float32 in [-1,1]."""
        return self.digits(codes).float() / (self.levels - 1).float()[:, None, None] * 2 - 1

    def soft_digits(self, bounded: Tensor) -> list[Tensor]:
        """(B,D,h,w) in [-1,1] -> for each digit d the probabilities of its values, (B*h*w,levels[d]).

        A latent belongs to each code by the softmax of its negative squared distances, in units of the mean squared
        error of rounding (a step squared over 12, of each number). Over a grid, that is the product of those of the D
        numbers.
        """
        rounding_error = (2 / (self.levels - 1)).square().sum() / 12
        shares = []
        for number, levels in zip(rows_of(bounded).T, self.levels.tolist(), strict=True):
            distances = (number[:, None] - torch.linspace(-1, 1, levels, device=number.device)).square()
            shares.append(torch.softmax(-distances / rounding_error, dim=1))
        return shares

    def usage_entropy(self, bounded: Tensor) -> Tensor:
        """(B,D,h,w) in [-1,1] -> (): the entropy in nats, at most log K, of the mean soft assignment of the batch, over
        all processes: the second term of the entropy penalty of arXiv:2310.05737. The gradient pulls latents to codes
        that are rare."""
        *others, last = self.soft_digits(bounded)
        product = last.new_ones(len(last), 1)
        for share in others:
            product = (product[:, :, None] * share[:, None]).flatten(1)
        with torch.autocast(bounded.device.type, enabled=False):
            usage = mean_over_ranks(product.T @ last / len(last))  # (K / last levels, last levels)
        entropy: Tensor = torch.special.entr(usage.clamp(min=1e-12)).sum()  # at 0 the gradient would be infinite
        return entropy

    def context_rate(self, bounded: Tensor, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to a loss, and the mean nats of a code under the context model, both ().

        The model learns by its cross entropy, at the full weight; the encoder at `context_rate_weight`: by what its
        codes tell of those after them (straight through `vectors`), and by what other codes would cost in their place
        (the soft assignment of `bounded`).
        """
        assert self.context is not None
        weight = self.context_rate_weight
        predicted = self.context(scale_gradient(vectors, weight))
        costs = zip(predicted, self.digits(codes).unbind(1), strict=True)
        nats = torch.stack([nn.functional.nll_loss(logs, digit) for logs, digit in costs]).sum()
        soft = zip(self.soft_digits(bounded), predicted, strict=True)
        expected = torch.stack([(share * -rows_of(logs).detach()).sum(1).mean() for share, logs in soft]).sum()
        return nats + weight * expected, nats.detach()

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B,D,h,w), not yet bounded."""
        bounded = self.bounded(latents)
        codes = self.assign(latents)
        vectors = straight_through(bounded, self.lookup(codes))
        counts = sum_over_ranks(torch.bincount(codes.flatten(), minlength=self.codebook_size).float())
        metrics = {"perplexity": perplexity(counts), "codes_used": (counts > 0).sum().float()}
        loss = latents.new_zeros((), dtype=torch.float32)
        if self.usage_weight:
            loss = loss - self.usage_weight * self.usage_entropy(bounded)
        if self.context is not None:
            rate, nats = self.context_rate(bounded, vectors, codes)
            loss, metrics["context_bits"] = loss + rate, nats / math.log(2)
        return Quantized(vectors, codes, loss, metrics)
