"""What the codec needs to know of a bundle.

In: the manifest and the prior's graphs. Out: a `CodecModel`, which tests also make without a bundle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import Manifest
from service.codec.container import MODEL_PREFIX_BYTES
from service.codec.prior_coding import Floats, IntegerPrior, PriorGraphs
from service.codec.static_coding import FrequencyTable

Pixels = NDArray[np.uint8]


class LatentGraphs(Protocol):
    """The graphs encoder and distances of a bundle."""

    def latents(self, images: Pixels) -> Floats:
        """uint8 (B,H,W,C) -> (B,h,w,D)."""

    def distances(self, latents: Floats) -> Floats:
        """(B,h,w,D) -> (B,h,w,K), squared."""


@dataclass(frozen=True)
class CodecModel:
    """What codec and container need to know of a bundle."""

    name: str
    version: str  # 64 hexadecimal digits
    channels: int
    codebook_size: int
    native_grid: tuple[int, int]  # codes of a picture of the training size; the largest tile of the prior
    multiple_of: int  # pixels a code, in each direction
    any_size: bool
    code_histogram: tuple[int, ...]
    prior: IntegerPrior | None
    latents: LatentGraphs | None = None  # for service/prior/effort.py; not every bundle has them

    @classmethod
    def of(cls, manifest: Manifest, graphs: PriorGraphs | None, latents: LatentGraphs | None = None) -> CodecModel:
        """The model of a bundle; `graphs` may only be None where the bundle has no prior."""
        spec, prior = manifest.prior, None
        if spec is not None:
            if graphs is None:
                raise ValueError(f"model {manifest.name} has a prior: open its graphs to code with it")
            shapes = (spec.cache_shape, spec.pixel_cache_shape)
            prior = IntegerPrior(graphs, manifest.codes.codebook_size, spec.frequency_table, spec.label_count, *shapes)
        return cls(
            name=manifest.name,
            version=manifest.version,
            channels=manifest.picture.channels,
            codebook_size=manifest.codes.codebook_size,
            native_grid=(manifest.codes.height, manifest.codes.width),
            multiple_of=manifest.picture.multiple_of,
            any_size=manifest.picture.any_size,
            code_histogram=manifest.code_histogram,
            prior=prior,
            latents=latents,
        )

    @property
    def native_size(self) -> tuple[int, int]:
        return self.native_grid[0] * self.multiple_of, self.native_grid[1] * self.multiple_of

    @property
    def prefix(self) -> bytes:
        return bytes.fromhex(self.version)[:MODEL_PREFIX_BYTES]

    @cached_property
    def table(self) -> FrequencyTable:
        return FrequencyTable(self.code_histogram)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 over all that decides the meaning of the bytes; every checksum of a container covers it."""
        frequency_table = self.prior.frequency_table if self.prior else ()
        lines = [self.version, *(",".join(map(str, numbers)) for numbers in (self.code_histogram, frequency_table))]
        return hashlib.sha256("\n".join(lines).encode("ascii")).digest()

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Pixels (H, W) -> codes (h, w), rounded up: the picture is padded before it is encoded."""
        return -(-size[0] // self.multiple_of), -(-size[1] // self.multiple_of)
