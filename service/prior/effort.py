"""Rate-distortion optimised encoding: codes that cost fewer bits under the prior, for a little distortion.

In: padded pictures, and how much a bit weighs. Out: codes that any decoder takes like others. Each code is the vector
that minimises distance + lambda * bits, position by position in raster order, the prior given the codes chosen so far;
what a choice does to the bits of later codes is not looked at. The distance is the squared one between latents, which
stands for the distortion of pixels. lambda is `effort` times the mean distance to the nearest vector in the picture, so
that one number means the same for every model: 0 takes the nearest vectors, 1 spends a whole mean error to save a bit.

Without effort the service takes the quantizer's codes, not those of 0 here: a quantizer that was trained with a rate
weight already prefers common codes, and an effort that weighs bits less than it does saves nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.codec.codec_model import CodecModel, LatentGraphs, Pixels
from service.codec.prior_coding import Codes, Floats, IntegerPrior, Logits, frequencies, walk
from service.codec.tiles import groups_of, tiles_of
from service.inference.windows import run_in_parts, run_in_windows
from service.stopping import check_stop

LARGEST_EFFORT = 4.0  # at 3, an MNIST model's error has more than doubled
MOST_DISTANCES = 1 << 21  # that are computed at once: 8 MiB
MOST_TOGETHER = 8  # pictures of the model's size, or no more pixels, that the encoder sees at once


def choose_codes(model: CodecModel, pixels: Pixels, effort: float, labels: Codes) -> Codes:
    """uint8 (B,H,W,C) of whole codes, labels (B,) -> codes (B,h,w). The model must have a prior and latent graphs."""
    assert model.latents is not None and model.prior is not None
    latents = _latents(model, model.latents, pixels)
    count, height, width, _ = latents.shape
    weights = effort * _mean_errors(model.latents, latents, model.codebook_size)  # (B,)
    codes = np.empty((count, height, width), np.int64)
    for group in groups_of(tiles_of(count, (height, width), model.native_grid)):
        pictures = np.array([tile.picture for tile in group])
        vectors = np.stack([latents[tile.where] for tile in group])
        chosen = _choose_group(model.latents, model.prior, vectors, weights[pictures], labels[pictures])
        for tile, grid in zip(group, chosen, strict=True):
            codes[tile.where] = grid
    return codes


def _latents(model: CodecModel, graphs: LatentGraphs, pixels: Pixels) -> Floats:
    """uint8 (B,H,W,C) -> (B,h,w,D)."""
    most_pixels = MOST_TOGETHER * math.prod(model.native_size)

    def run(window: Pixels) -> Floats:
        most = max(1, min(MOST_TOGETHER, most_pixels // math.prod(window.shape[1:3])))
        found: Floats = run_in_parts(graphs.latents, window, most)
        return found

    latents: Floats = run_in_windows(run, pixels, scale_in=model.multiple_of, scale_out=1)
    return latents


def _mean_errors(graphs: LatentGraphs, latents: Floats, codebook_size: int) -> NDArray[np.float64]:
    """(B,): the mean squared distance to the nearest vector. All distances at once could be gigabytes, even those of a
    row."""
    count, height, width, _ = latents.shape
    columns = max(1, MOST_DISTANCES // (count * codebook_size))
    nearest = np.empty((count, height, width), np.float32)
    for row in range(height):
        for start in range(0, width, columns):
            check_stop()
            part = slice(row, row + 1), slice(start, start + columns)
            errors = graphs.distances(np.ascontiguousarray(latents[:, *part])).min(axis=-1)
            nearest[:, *part] = np.maximum(errors, 0)  # |z|^2 + |e|^2 - 2 z.e may cancel to less
    means: NDArray[np.float64] = nearest.mean(axis=(1, 2), dtype=np.float64)
    return means


def _choose_group(
    graphs: LatentGraphs, prior: IntegerPrior, vectors: Floats, weights: NDArray[np.float64], labels: Codes
) -> Codes:
    """vectors (B,h,w,D), weights (B,), labels (B,) -> codes (B,h,w)."""

    def choose(logits: Logits, row: int, column: int) -> Codes:
        frequency = frequencies(logits, prior.frequency_table)
        bits = np.log2(frequency.sum(axis=-1, keepdims=True) / frequency)  # (B,K)
        given = np.ascontiguousarray(vectors[:, row : row + 1, column : column + 1])
        distances = graphs.distances(given)[:, 0, 0].astype(np.float64)
        chosen: Codes = (distances + weights[:, None] * bits).argmin(axis=-1)
        return chosen

    return walk(prior, vectors.shape[1], vectors.shape[2], labels, choose)
