"""A prior of a few integers, exact and fast, that looks left, up the whole column and at the label.

In: a seed. Out: a `CodecModel` with `TinyGraphs` behind it, for tests and for the fuzzer, which decodes millions.
It keeps state in `caches` and `left` like a real prior, so a caller that mixes them up decodes other codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.codec.codec_model import CodecModel
from service.codec.prior_coding import IntegerPrior

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

STATES = 5  # a column or a row is remembered as (3 * state + code + 1) modulo this
FREQUENCY_TABLE = (60000, 20000, 7000, 2500, 900, 300, 100, 30, 10, 3, 1)


class TinyGraphs:
    """logits = table[state of the column above, state of the row to the left, label]."""

    def __init__(self, codebook_size: int, label_count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._table = random.integers(0, 12, (STATES, STATES, label_count + 1, codebook_size), np.int32)
        self.batches: list[int] = []  # that arrived at `pixel`

    def logits(self, codes: Ints, labels: Ints) -> NDArray[np.int32]:
        above = _states_before(codes.transpose(0, 2, 1)).transpose(0, 2, 1)  # (B, h, w)
        left = _states_before(codes)
        logits: NDArray[np.int32] = self._table[above, left, labels[:, None, None]]  # (B, h, w, K)
        return logits

    def context(self, codes_above: Ints, labels: Ints, caches: Floats) -> tuple[Floats, Floats]:
        assert caches.shape == (len(labels), 1, codes_above.shape[1], 1)
        state = caches[:, 0, :, 0]
        state = np.where(codes_above < 0, state, (3 * state + codes_above + 1) % STATES).astype(np.float32)
        label = np.broadcast_to(labels[:, None], state.shape)
        return np.stack([state, label], axis=-1).astype(np.float32), state[:, None, :, None]

    def pixel(self, context: Floats, previous_codes: Ints, left: Floats) -> tuple[NDArray[np.int32], Floats]:
        self.batches.append(len(context))
        state = left[:, 0, 0, 0]
        state = np.where(previous_codes < 0, state, (3 * state + previous_codes + 1) % STATES)
        above, label = context.astype(np.int64).T
        return self._table[above, state.astype(np.int64), label], state.astype(np.float32)[:, None, None, None]


def _states_before(codes: Ints) -> Ints:
    """(..., n) -> (..., n): the state after the codes before each position along the last axis."""
    states = np.zeros(codes.shape, np.int64)
    for index in range(1, codes.shape[-1]):
        states[..., index] = (3 * states[..., index - 1] + codes[..., index - 1] + 1) % STATES
    return states


def tiny_model(
    *,
    codebook_size: int = 12,
    native_grid: tuple[int, int] = (3, 4),
    label_count: int = 3,
    any_size: bool = True,
    channels: int = 1,
    seed: int = 7,
) -> CodecModel:
    graphs = TinyGraphs(codebook_size, label_count, seed)
    prior = IntegerPrior(graphs, codebook_size, FREQUENCY_TABLE, label_count, (1, native_grid[1], 1), (1, 1, 1))
    histogram = tuple(1000 // (1 + code) for code in range(codebook_size))
    version = f"{seed:02x}ab3c" + "0" * 58
    return CodecModel("tiny", version, channels, codebook_size, native_grid, 4, any_size, histogram, prior)


def draw_codes(model: CodecModel, shape: tuple[int, int, int], seed: int) -> Ints:
    """Codes (B,h,w) that the model's prior finds likely: each the most likely one, or a random one in a quarter."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, model.codebook_size, shape)
    assert model.prior is not None
    labels = np.full(shape[0], model.prior.no_label)
    for _ in range(shape[1] + shape[2]):  # after pass n, the positions with row + column < n no longer change
        likely = model.prior.graphs.logits(codes, labels).argmax(axis=-1)
        codes = np.where(np.random.default_rng(seed).random(shape) < 0.25, codes, likely)
    return codes
