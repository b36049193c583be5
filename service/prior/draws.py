"""What one sample is drawn from: its uniforms, which follow from a seed, its label, controls and known codes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle.fields import UNIFORM_BITS

Codes = NDArray[np.int64]
Floats = NDArray[np.float32]

SEED_LIMIT = 1 << 53  # the integers below it survive every JSON parser
UNGUIDED = np.float32(1)
LARGEST_UNIFORM = np.float32(1 - 2**-UNIFORM_BITS)


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(8)) % SEED_LIMIT


def uniforms(seed: int, index: int, grid: tuple[int, int]) -> Floats:
    """float32 (h,w) in [0,1): the top 24 bits of each number of the Philox4x64-10 stream with the key (seed, index)."""
    stream = np.random.Philox(key=np.array([seed, index], np.uint64))
    numbers = stream.random_raw(grid[0] * grid[1]) >> np.uint64(64 - UNIFORM_BITS)
    return (numbers.astype(np.float32) / np.float32(1 << UNIFORM_BITS)).reshape(grid)


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample. `known_codes` are kept where `known_mask` is true; top_k = K and top_p = 1 mean no filter.

    A `guidance` other than 1 needs a bundle with `prior_row_guided`.
    """

    uniforms: Floats  # (h,w) in [0,1)
    label: int
    inverse_temperature: np.float32
    top_k: int
    top_p: np.float32
    known_codes: Codes  # (h,w) in [0,K)
    known_mask: NDArray[np.bool_]  # (h,w)
    guidance: np.float32 = UNGUIDED
