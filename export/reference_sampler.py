"""The oracle of the samplers: a teacher-forced forward of the rows so far for each pixel, then inverse-CDF sampling in
plain numpy.

In: any function from codes and labels to integer logits. Out: the codes that the exported sampler must draw from the
same uniforms, bit for bit. Slow on purpose: h * w forwards. `export.verify_prior` compares every sampler with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle.fields import GUIDANCE_STEPS, UNIFORM_BITS

Codes = NDArray[np.int64]
LogitsOf = Callable[[Codes, Codes], NDArray[np.int32]]  # codes (B,h,w), labels (B,) -> logits (B,h,w,K)


@dataclass(frozen=True)
class Controls:
    """One value a sample: inverse_temperature float32 (B,), top_k int64 (B,), top_p and guidance float32 (B,)."""

    inverse_temperature: NDArray[np.float32]
    top_k: Codes
    top_p: NDArray[np.float32]
    guidance: NDArray[np.float32] | None = None  # multiples of 1/16

    @classmethod
    def off(cls, batch: int, codebook_size: int) -> Controls:
        """Temperature 1, no filters, no guidance."""
        ones = np.ones(batch, np.float32)
        return cls(ones, np.full(batch, codebook_size, np.int64), ones)


@dataclass(frozen=True)
class Known:
    """Codes that are given instead of drawn: codes int64 (B,h,w), kept where mask bool (B,h,w) is true."""

    codes: Codes
    mask: NDArray[np.bool_]

    @classmethod
    def nothing(cls, shape: tuple[int, ...]) -> Known:
        """For uniforms of this shape."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.bool_))


def _scaled(total: int, fraction: np.float32) -> int:
    return total * int(fraction * np.float32(1 << UNIFORM_BITS)) >> UNIFORM_BITS


def draw(
    logits: NDArray[np.int32],
    uniform: np.float32,
    table: NDArray[np.int32],
    inverse_temperature: np.float32,
    top_k: int,
    top_p: np.float32,
) -> int:
    """One code from the integer logits (K,) of one position."""
    scaled = np.round((logits.max() - logits).astype(np.float32) * inverse_temperature)
    index = np.minimum(scaled, len(table) - 1).astype(np.int64)
    frequencies = table[index].astype(np.int64)
    k_threshold = np.sort(index)[top_k - 1]
    frequencies[index > k_threshold] = 0
    order = np.argsort(index, kind="stable")
    mass = np.cumsum(frequencies[order])
    reached = int((mass < _scaled(int(mass[-1]), top_p)).sum())
    frequencies[index > min(k_threshold, index[order][reached])] = 0
    cumulative = np.cumsum(frequencies)
    return int((cumulative <= _scaled(int(cumulative[-1]), uniform)).sum())


def guided(
    labelled: NDArray[np.int32], unlabelled: NDArray[np.int32], guidance: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Logits (B,K) moved away from those without a label, in exact fractions, rounded half to even."""
    steps = np.round(guidance.astype(np.float64) * GUIDANCE_STEPS).astype(np.int64)[:, None]
    sixteenths = GUIDANCE_STEPS * unlabelled.astype(np.int64) + steps * (labelled.astype(np.int64) - unlabelled)
    return np.round(sixteenths / GUIDANCE_STEPS).astype(np.int32)


def sample(
    logits_of: LogitsOf,
    uniforms: NDArray[np.float32],
    labels: Codes,
    table: NDArray[np.int32],
    controls: Controls,
    no_label: int = 0,
    known: Known | None = None,
) -> Codes:
    """uniforms (B,h,w) -> codes (B,h,w). `no_label` is what guidance leads away from. What a position depends on lies
    in its row and above, so no more is computed."""
    codes = np.zeros(uniforms.shape, np.int64)
    known = known or Known.nothing(uniforms.shape)
    batch, height, width = uniforms.shape
    for i, j in np.ndindex(height, width):
        begun = np.ascontiguousarray(codes[:, : i + 1])
        logits = logits_of(begun, labels)[:, i, j]
        if controls.guidance is not None:
            logits = guided(logits, logits_of(begun, np.full_like(labels, no_label))[:, i, j], controls.guidance)
        for b in range(batch):
            filters = controls.inverse_temperature[b], int(controls.top_k[b]), controls.top_p[b]
            drawn = draw(logits[b], uniforms[b, i, j], table, *filters)
            codes[b, i, j] = known.codes[b, i, j] if known.mask[b, i, j] else drawn
    return codes
