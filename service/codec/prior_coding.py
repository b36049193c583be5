"""Codes to intervals and back under the integer prior.

In: groups of code grids of one shape, or range decoders at their start, and the prior's graphs behind `PriorGraphs`.
Out: (cumulative, frequency, total) a code, or the codes. Everything that decides an interval is an integer, so
encoder and decoder agree on any machine; docs/bundle-format.md has the step from logits to frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.codec.range_coder import TOTAL_LIMIT, RangeDecoder
from service.stopping import check_stop

Codes = NDArray[np.int64]
Floats = NDArray[np.float32]
Logits = NDArray[np.int32]

LOGITS_A_CALL = 1 << 21  # of the teacher-forced graph: its int64 frequencies take 16 MiB


class PriorGraphs(Protocol):
    """The graphs prior, prior_context and prior_pixel of a bundle. B, h and w are free; w <= codes.width."""

    def logits(self, codes: Codes, labels: Codes) -> Logits:
        """codes (B,h,w), labels (B,) -> (B,h,w,K), teacher-forced."""

    def context(self, codes_above: Codes, labels: Codes, caches: Floats) -> tuple[Floats, Floats]:
        """(B,w), (B,), (B,layers+1,w,channels) -> context (B,w,context_channels), next caches."""

    def pixel(self, context: Floats, previous_codes: Codes, left: Floats) -> tuple[Logits, Floats]:
        """(B,context_channels), (B,), (B,*pixel_cache_shape) -> logits (B,K), next left."""


@dataclass(frozen=True)
class IntegerPrior:
    """The graphs and the numbers of the manifest's `prior` section."""

    graphs: PriorGraphs
    codebook_size: int
    frequency_table: tuple[int, ...]
    label_count: int
    cache_shape: tuple[int, int, int]  # layers + 1, w, channels
    pixel_cache_shape: tuple[int, int, int]

    @property
    def no_label(self) -> int:
        """The label of a picture without one: 0 for an unconditional prior, which knows no other."""
        return self.label_count


def frequencies(logits: Logits, table: tuple[int, ...]) -> NDArray[np.int64]:
    """(..., K) int32 -> (..., K) int64 >= 1: what lies `d` below the largest logit has frequency table[d]."""
    distance = logits.max(axis=-1, keepdims=True).astype(np.int64) - logits
    looked_up: NDArray[np.int64] = np.asarray(table, np.int64)[np.minimum(distance, len(table) - 1)]
    return looked_up


def intervals(prior: IntegerPrior, grids: Codes, labels: Codes) -> NDArray[np.int64]:
    """(B,h,w) codes, (B,) labels -> (B,h,w,3): cumulative, frequency, total of every code."""
    result = np.empty((*grids.shape, 3), np.int64)
    grids_a_call = max(1, LOGITS_A_CALL // (grids[0].size * prior.codebook_size))
    for start in range(0, len(grids), grids_a_call):
        check_stop()
        part = slice(start, start + grids_a_call)
        logits = prior.graphs.logits(grids[part], labels[part])  # (b, h, w, K)
        result[part] = _intervals_of(frequencies(logits, prior.frequency_table), grids[part])
    return result


def _intervals_of(frequency: NDArray[np.int64], codes: Codes) -> NDArray[np.int64]:
    upper = frequency.cumsum(axis=-1)
    total = upper[..., -1]
    assert total.max() < TOTAL_LIMIT
    own = np.take_along_axis(frequency, codes[..., None], axis=-1)[..., 0]
    return np.stack([np.take_along_axis(upper, codes[..., None], axis=-1)[..., 0] - own, own, total], axis=-1)


def decode_group(
    prior: IntegerPrior, decoders: Sequence[RangeDecoder], height: int, width: int, labels: Codes
) -> Codes:
    """Decode grids of one shape together, one range decoder a grid: the same one for all, or one each.

    Out: codes (B,h,w) int64 in [0, K). The order of symbols is position by position in raster order, grid by grid.
    """

    def choose(logits: Logits, row: int, column: int) -> Codes:
        return decode_codes(decoders, frequencies(logits, prior.frequency_table))

    return walk(prior, height, width, labels, choose)


Choose = Callable[[Logits, int, int], Codes]  # logits (B,K) of a row and a column -> codes (B,)


def walk(prior: IntegerPrior, height: int, width: int, labels: Codes, choose: Choose) -> Codes:
    """Fill B grids together, position by position in raster order: the prior says what to expect, `choose` what it is.

    labels (B,) -> codes (B,h,w) int64.
    """
    count = len(labels)
    codes = np.empty((count, height, width), np.int64)
    above = np.full((count, width), -1, np.int64)  # -1: outside the grid
    caches = np.zeros((count, prior.cache_shape[0], width, prior.cache_shape[2]), np.float32)
    for row in range(height):
        check_stop()
        context, caches = prior.graphs.context(above, labels, caches)
        left = np.zeros((count, *prior.pixel_cache_shape), np.float32)
        previous = np.full(count, -1, np.int64)
        for column in range(width):
            logits, left = prior.graphs.pixel(np.ascontiguousarray(context[:, column]), previous, left)
            previous = choose(logits, row, column)
            codes[:, row, column] = previous
        above = codes[:, row]
    return codes


def decode_codes(decoders: Sequence[RangeDecoder], frequency: NDArray[np.int64]) -> Codes:
    """One code from each decoder, in order. frequency (B,K) -> (B,) int64."""
    count, codebook_size = frequency.shape
    boundaries = np.zeros((count, codebook_size + 1), np.int64)
    np.cumsum(frequency, axis=1, out=boundaries[:, 1:])
    flat, stride = boundaries.reshape(-1).data, codebook_size + 1
    decoded = [
        decoder.decode(flat, index * stride, index * stride + codebook_size) for index, decoder in enumerate(decoders)
    ]
    return np.asarray(decoded, np.int64)
