"""Whether what a config describes can become a bundle: told before the training, not by the export after it.

In: a config and the shape of its pictures. Out: nothing, or a ConfigError. The limits are those of the manifest
(docs/bundle-format.md), which the service keeps, and that of float32: what lies too close in one number gets other
codes from another order of its sums, and the export refuses more than a few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from service.bundle.fields import LARGEST_CODEBOOK, LARGEST_TRAINED_SIDE, MOST_CACHED, MOST_CHANNELS, MOST_CODES_A_SIDE
from training.config import AutoencoderConfig, ConfigError, PriorConfig, RunConfig
from training.models.prior import state_shapes

MOST_IN_ONE_NUMBER = 64  # values; of 100 evenly spread ones, 1 of 10,000 latents may get another code


class Count(NamedTuple):
    """What a manifest counts, and how to have less of it."""

    what: str
    found: int
    most: int
    remedy: str


def require_exportable(config: RunConfig, picture: tuple[int, int, int]) -> None:
    """Raises ConfigError where a bundle cannot hold the VQ-VAE and its prior for pictures of (C, H, W).

    The other systems have no bundle, and so no limits.
    """
    if config.autoencoder.system != "vqvae":
        return
    for count in counts(config, picture):
        if count.found > count.most:
            raise ConfigError(
                f"{count.what} would be {count.found:,}, and a bundle holds at most {count.most:,}, so the run could "
                f"not be exported: {count.remedy}"
            )


def require_apart(config: AutoencoderConfig) -> None:
    """Raises ConfigError where float32 may not tell the codes apart: one number for many of them."""
    if config.system != "vqvae":
        return
    size, levels = config.quantizer.codebook_size, max(config.quantizer.levels)
    if config.quantizer.kind == "fsq" and levels > MOST_IN_ONE_NUMBER:
        raise ConfigError(
            f"autoencoder.quantizer.levels has a number of {levels:,} levels, too fine for float32, so the run could "
            f"not be exported: give each at most {MOST_IN_ONE_NUMBER}, and take more numbers for as many codes"
        )
    if config.quantizer.kind != "fsq" and config.dimension == 1 and size > MOST_IN_ONE_NUMBER:
        raise ConfigError(
            f"autoencoder.quantizer.codebook_size is {size:,}, and in one number float32 cannot tell so many codes "
            "apart, so the run could not be exported: set autoencoder.dimension to 2 or more, or at most "
            f"{MOST_IN_ONE_NUMBER} codes"
        )


def counts(config: RunConfig, picture: tuple[int, int, int]) -> Iterator[Count]:
    """All that a manifest limits, for pictures of (C, H, W)."""
    grid = config.grid(picture)
    yield Count("the longer side of the pictures", max(picture[1:]), LARGEST_TRAINED_SIDE, "set a smaller data.crop")
    yield Count(
        "the longer side of the code grid",
        max(grid),
        MOST_CODES_A_SIDE,
        "set a smaller data.crop, or a larger autoencoder.downsampling",
    )
    yield from _of_codebook(config.autoencoder)
    if config.prior is not None:
        yield from _of_prior(config.prior, grid[1])


def _of_codebook(config: AutoencoderConfig) -> Iterator[Count]:
    size, dimension, keys = config.quantizer.codebook_size, config.dimension, ("quantizer.codebook_size", "dimension")
    if config.quantizer.kind == "fsq":
        size, dimension = math.prod(config.quantizer.levels), len(config.quantizer.levels)
        keys = "quantizer.levels", "quantizer.levels"
    yield Count("the codebook's size", size, LARGEST_CODEBOOK, f"lower autoencoder.{keys[0]}")
    yield Count("the numbers of a code's vector", dimension, MOST_CHANNELS, f"lower autoencoder.{keys[1]}")


def _of_prior(config: PriorConfig, width: int) -> Iterator[Count]:
    """Of a grid `width` codes wide."""
    shapes = state_shapes(config.channels, config.vertical_layers, config.horizontal_layers, width)
    yield Count(
        "what the prior keeps of the rows above a code",
        math.prod(shapes.cache_shape),
        MOST_CACHED,
        "lower prior.channels or prior.vertical_layers, or set a smaller data.crop",
    )
    yield Count(  # as many numbers as `pixel_cache_shape`, whose bound is the higher one
        "the channels of the prior's context",
        shapes.context_channels,
        MOST_CHANNELS,
        "lower prior.channels or prior.horizontal_layers",
    )
