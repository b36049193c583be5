"""Likelihood. In: codes (B,h,w). Out: their information content under the prior, in bits, from exact frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.codec.codec_model import CodecModel
from service.codec.prior_coding import intervals
from service.codec.tiles import groups_of, tiles_of
from service.prior.draws import Codes

CODES_AT_ONCE = 1 << 16  # of one grid under several labels


def bits_under(model: CodecModel, grid: Codes, labels: Sequence[int]) -> list[float]:
    """codes (h,w) -> its bits under each label, a few at a time: memory follows the grid, not how many labels a model
    has."""
    at_once = max(1, CODES_AT_ONCE // grid.size)
    parts = [np.array(labels[start : start + at_once], np.int64) for start in range(0, len(labels), at_once)]
    return [bits for part in parts for bits in bits_of(model, np.repeat(grid[None], len(part), axis=0), part).tolist()]


def bits_of(model: CodecModel, codes: Codes, labels: Codes) -> NDArray[np.float64]:
    """codes (B,h,w), labels (B,) -> (B,): sum of log2(total / frequency), teacher-forced, at temperature 1.

    A grid larger than the prior's is the sum of its tiles, as in the container.
    """
    assert model.prior is not None
    bits = np.zeros(len(codes))
    for group in groups_of(tiles_of(len(codes), codes.shape[1:], model.native_grid)):
        pictures = np.array([tile.picture for tile in group])
        found = intervals(model.prior, np.stack([codes[tile.where] for tile in group]), labels[pictures])
        per_code = np.log2(found[..., 2] / found[..., 1])
        np.add.at(bits, pictures, per_code.sum(axis=(1, 2)))
    return bits
