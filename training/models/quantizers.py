"""Quantizers: latents (B,D,h,w) float32 -> codes (B,h,w) int64 in [0,K) and their vectors, with a gradient.

Three ways to a codebook, one interface: `EMAQuantizer` (exponential moving averages), `GradientQuantizer` (the VQ loss)
and, in `training.models.scalar_quantizer`, one without a codebook to learn. Sources: arXiv:1711.00937 (eq. 1-3 and
appendix A.1); entropy-constrained assignment after Chou, Lookabaugh and Gray, "Entropy-constrained vector
quantization", 1989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.config import QuantizerConfig
from training.models.ranks import from_first_rank, gather_over_ranks, sum_over_ranks

DEFAULTS = QuantizerConfig()


@dataclass
class Quantized:
    """`vectors` (B,D,h,w) carries the straight-through gradient; `loss` is what the quantizer adds to training."""

    vectors: Tensor
    codes: Tensor  # (B,h,w) int64 in [0,K)
    loss: Tensor
    metrics: dict[str, Tensor]


def straight_through(latents: Tensor, vectors: Tensor) -> Tensor:
    """z + sg[z_q - z]: the value of `vectors`, the gradient of `latents` (the lecture's "design your own gradient")."""
    return latents + (vectors - latents).detach()


def commitment_loss(latents: Tensor, vectors: Tensor) -> Tensor:
    """||z_e(x) - sg[e]||^2, mean over elements: the third term of eq. 3; it reaches the encoder only."""
    return nn.functional.mse_loss(latents, vectors.detach())


def codebook_loss(latents: Tensor, vectors: Tensor) -> Tensor:
    """||sg[z_e(x)] - e||^2, mean over elements: the second (VQ) term of eq. 3; it reaches the codebook only."""
    return nn.functional.mse_loss(vectors, latents.detach())


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the code histogram `counts` (K,): K when all codes are used equally, 1 when one is."""
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-(p * torch.log(p.clamp(min=1e-300))).sum())


def nearest(latents: Tensor, codebook: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(N,D), (K,D) -> codes (N,) int64 and squared distances (N,) float32; ties go to the lowest index.

    k = argmin_j ||z - e_j||^2 + offset_j. With offset_j = lambda * bits_j >= 0 this is the nearest vector in D+1
    dimensions, z extended by 0 and e_j by sqrt(offset_j). ||z||^2 does not change the argmin and is left out of it.
    """
    half = 0.5 * (codebook.square().sum(1) if offsets is None else codebook.square().sum(1) + offsets)
    with torch.autocast(latents.device.type, enabled=False):  # else mixed precision would round the distances
        codes = torch.argmin(half - latents @ codebook.T, dim=1)
    return codes, (latents - codebook[codes]).square().sum(1)


def rows_of(latents: Tensor) -> Tensor:
    """(B,D,h,w) -> (B*h*w, D) float32: distances are never taken in half precision, they decide codes."""
    return latents.movedim(1, -1).reshape(-1, latents.shape[1]).float()


def _grid(rows: Tensor, like: Tensor) -> Tensor:
    """(B*h*w, D) -> (B,D,h,w)."""
    batch, _, height, width = like.shape
    return rows.reshape(batch, height, width, -1).movedim(-1, 1)


def spread_sample(rows: Tensor, count: int) -> Tensor:
    """Choose `count` of `rows` (N,D) far from each other: k-means++ seeding (Arthur and Vassilvitskii, 2007).

    Each next row is drawn with probability proportional to its squared distance from those already chosen, so that a
    background which fills half of all pictures gets one code and not half of the codebook.
    """
    chosen = rows[torch.randint(len(rows), (1,), device=rows.device)]
    distances = (rows - chosen).square().sum(1)
    for _ in range(count - 1):
        total = distances.sum()
        weights = distances if 0 < total < math.inf else torch.ones_like(distances)
        new = rows[torch.multinomial(weights, 1)]
        chosen = torch.cat([chosen, new])
        distances = torch.minimum(distances, (rows - new).square().sum(1))
    return chosen


class VectorQuantizer(nn.Module):
    """What both learned codebooks share: data-dependent initialisation, usage statistics, dead-code restart.

    Args:
        codebook_size: K.
        dimension: D.
        commitment_cost: beta of eq. 3.
        rate_weight: lambda of the entropy-constrained assignment, in units of the mean squared quantization error a
            bit; 0 is the plain nearest neighbour.
        usage_decay: decay of the usage statistics a step, and of the codebook of `EMAQuantizer`.
        start_step: steps in which latents pass unquantized, so that the codebook starts from a trained encoder's
            latents; the first ones lie in a tiny ball that the encoder leaves at once, and the codebook would die
            there.
        restart_every: steps between looks for dead codes; 0 switches restarts off.
        restart_below: a code is dead when fewer than this part of the mean count chose it since the last look.
    """

    codebook: Tensor  # (K,D) float32
    cluster_size: Tensor  # (K,) float32, N_i of the lecture: moving average of how many latents chose code i
    window_counts: Tensor  # (K,) float32: how many latents chose each code since the last look for dead codes
    mean_error: Tensor  # () float32: moving average of the squared quantization error of a latent
    step: Tensor
    initialised: Tensor

    def __init__(
        self,
        codebook_size: int,
        dimension: int,
        *,
        commitment_cost: float = DEFAULTS.commitment_cost,
        rate_weight: float = DEFAULTS.rate_weight,
        usage_decay: float = DEFAULTS.usage_decay,
        start_step: int = DEFAULTS.start_step,
        restart_every: int = DEFAULTS.restart_every,
        restart_below: float = DEFAULTS.restart_below,
    ) -> None:
        super().__init__()
        self.codebook_size, self.dimension = codebook_size, dimension
        self.commitment_cost, self.rate_weight, self.usage_decay = commitment_cost, rate_weight, usage_decay
        self.start_step, self.restart_every, self.restart_below = start_step, restart_every, restart_below
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.register_buffer("window_counts", torch.zeros(codebook_size))
        self.register_buffer("mean_error", torch.zeros(()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def offsets(self) -> Tensor | None:
        """(K,) float32: lambda * mean error * bits of each code under its usage; None for the plain nearest vector."""
        if self.rate_weight == 0:
            return None
        total = self.cluster_size.sum().clamp(min=1e-6)
        share = (self.cluster_size / total).clamp(min=1e-3 / self.codebook_size)
        return -torch.log2(share) * self.rate_weight * self.mean_error

    def assign(self, latents: Tensor) -> Tensor:
        """Latents (B,D,h,w) -> codes (B,h,w) int64."""
        codes, _ = nearest(rows_of(latents), self.codebook, self.offsets())
        return codes.reshape(latents.shape[0], *latents.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) int64 -> vectors (B,D,h,w) float32."""
        return self.codebook[codes].movedim(-1, 1)

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (B,D,h,w). In training mode the codebook and its statistics move too; before `start_step`, and in a
        validation before the codebook has started, latents pass as they are and every code is 0."""
        rows = rows_of(latents)
        if self.training and self.step < self.start_step:
            self.step.add_(1)
            return self._unquantized(latents)
        if not self.initialised:
            if not self.training:  # a validation before the codebook has started
                return self._unquantized(latents)
            self._initialise(gather_over_ranks(rows.detach()))
        codes, errors = nearest(rows.detach(), self.codebook, self.offsets())
        vectors = _grid(self.codebook[codes], latents)
        loss, metrics = self._loss(latents.float(), vectors)
        counts = sum_over_ranks(torch.bincount(codes, minlength=self.codebook_size).float())
        if self.training:
            with torch.no_grad():
                self._track(rows.detach(), codes, errors, counts)
        metrics |= {"perplexity": perplexity(counts), "codes_used": (counts > 0).sum().float()}
        grid = codes.reshape(latents.shape[0], *latents.shape[2:])
        return Quantized(straight_through(latents.float(), vectors), grid, loss, metrics)

    def _unquantized(self, latents: Tensor) -> Quantized:
        codes = torch.zeros(latents.shape[0], *latents.shape[2:], dtype=torch.int64, device=latents.device)
        names, zero = (*self._loss(latents, latents)[1], "perplexity", "codes_used"), latents.new_zeros(())
        return Quantized(latents.float(), codes, zero, dict.fromkeys(names, zero))

    def _loss(self, latents: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        commitment = commitment_loss(latents, vectors)
        return self.commitment_cost * commitment, {"commitment": commitment.detach()}

    @torch.no_grad()
    def _initialise(self, rows: Tensor) -> None:
        """Data-dependent start: the codebook is `codebook_size` well-spread latents of the first batch."""
        self.codebook.data.copy_(from_first_rank(spread_sample(rows, self.codebook_size)))
        self.cluster_size.fill_(len(rows) / self.codebook_size)
        self.initialised.fill_(True)

    def _track(self, rows: Tensor, codes: Tensor, errors: Tensor, counts: Tensor) -> None:
        decay = self.usage_decay
        # N_i(t) = N_i(t-1) * gamma + n_i(t) * (1 - gamma)
        self.cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
        self.window_counts.add_(counts)
        batch_error = sum_over_ranks(errors.sum()) / counts.sum()
        blend = decay if self.mean_error > 0 else 0.0
        self.mean_error.mul_(blend).add_(batch_error, alpha=1 - blend)
        self._update(rows, codes)
        self.step.add_(1)
        if self.restart_every and self.step % self.restart_every == 0:
            self._restart_dead_codes(gather_over_ranks(rows), gather_over_ranks(errors))

    def _restart_dead_codes(self, rows: Tensor, errors: Tensor) -> None:
        """Move dead codes to latents drawn in proportion to their error: where the codebook is poor, not busy."""
        dead = torch.nonzero(self.window_counts < self.restart_below * self.window_counts.mean()).flatten()
        self.window_counts.zero_()
        dead = dead[: int((errors > 0).sum())]
        # Errors that are not finite are those of a run that diverges: the next look at its loss ends it.
        if len(dead) == 0 or not torch.isfinite(errors.sum()):
            return
        vectors = from_first_rank(rows[torch.multinomial(errors, len(dead))].contiguous())
        self.codebook.data[dead] = vectors
        self.cluster_size[dead] = self.cluster_size.mean()

    def _update(self, rows: Tensor, codes: Tensor) -> None:
        """What the learned codebook does with a batch beyond its gradient."""


class EMAQuantizer(VectorQuantizer):
    """Codebook by exponential moving averages (appendix A.1; the lecture's N_i, m_i and e_i = m_i / N_i)."""

    cluster_sum: Tensor  # (K,D) float32, m_i of the lecture

    def __init__(self, codebook_size: int, dimension: int, **options: float) -> None:
        super().__init__(codebook_size, dimension, **options)  # type: ignore[arg-type]
        self.register_buffer("codebook", torch.zeros(codebook_size, dimension))
        self.register_buffer("cluster_sum", torch.zeros(codebook_size, dimension))

    def _update(self, rows: Tensor, codes: Tensor) -> None:
        sums = torch.zeros_like(self.cluster_sum).index_add_(0, codes, rows)
        # m_i(t) = m_i(t-1) * gamma + sum_j z_ij(t) * (1 - gamma)
        self.cluster_sum.mul_(self.usage_decay).add_(sum_over_ranks(sums), alpha=1 - self.usage_decay)
        # e_i(t) = m_i(t) / N_i(t), where the code has been used at all; nothing is smoothed into the averages
        used = self.cluster_size > 1e-5
        self.codebook[used] = self.cluster_sum[used] / self.cluster_size[used, None]

    def _restart_dead_codes(self, rows: Tensor, errors: Tensor) -> None:
        super()._restart_dead_codes(rows, errors)
        self.cluster_sum.copy_(self.codebook * self.cluster_size[:, None])

    def _initialise(self, rows: Tensor) -> None:
        super()._initialise(rows)
        self.cluster_sum.copy_(self.codebook * self.cluster_size[:, None])


class GradientQuantizer(VectorQuantizer):
    """Codebook by the gradient of the VQ loss (eq. 3, second term)."""

    def __init__(self, codebook_size: int, dimension: int, **options: float) -> None:
        super().__init__(codebook_size, dimension, **options)  # type: ignore[arg-type]
        self.codebook = nn.Parameter(torch.zeros(codebook_size, dimension))

    def _loss(self, latents: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super()._loss(latents, vectors)
        vq = codebook_loss(latents, vectors)
        return loss + vq, metrics | {"vq": vq.detach()}
