"""The fields of manifest.json: what each is, and which values it may have. docs/bundle-format.md explains them.

The schema lives here because the service, which consumes bundles, owns the contract; `export` writes by it.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

GraphName = Literal[
    "encoder",
    "quantizer",
    "encoder_quantizer",
    "decoder",
    "distances",
    "prior",
    "prior_row",
    "prior_row_unfiltered",
    "prior_row_guided",
    "prior_diagonal",
    "prior_diagonal_filtered",
    "prior_context",
    "prior_pixel",
]
REQUIRED_GRAPHS: tuple[GraphName, ...] = ("encoder", "quantizer", "encoder_quantizer", "decoder")
PRIOR_GRAPHS: tuple[GraphName, ...] = ("prior", "prior_row", "prior_row_unfiltered", "prior_context", "prior_pixel")
DIAGONAL_GRAPHS: tuple[GraphName, GraphName] = ("prior_diagonal", "prior_diagonal_filtered")
# They draw what the row graphs draw: a bundle that gains or loses them keeps its codes, so its version too.
NOT_IN_VERSION: tuple[GraphName, ...] = DIAGONAL_GRAPHS

UNIFORM_BITS = 24  # uniforms are multiples of 2^-24: float32 holds them exactly
GUIDANCE_STEPS = 16  # guidance is a multiple of 1/16, so that its product with integer logits is exact
LARGEST_GUIDANCE = 8  # what the proof of exactness at export covers
# Memory is taken for what a manifest counts before anything runs, so that a number that nobody can mean must not open.
LARGEST_TRAINED_SIDE = 4096  # pixels, of a training picture
MOST_CODES_A_SIDE = 1024  # of its grid
MOST_CHANNELS = 1 << 16  # of a code's vector, and of `prior_context`
MOST_CACHED = 1 << 22  # numbers a sample: 16 MiB
LARGEST_CODEBOOK = 1 << 16  # K: what is kept for each code grows with it, and so does the start of a service


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=0, lt=1 << 53)]  # which every JSON parser keeps


class TensorSpec(Strict):
    """One named graph input or output. A string in `shape` is a dynamic axis (B, H, W, h, w)."""

    name: str
    dtype: Literal["uint8", "int32", "int64", "float32", "bool"]
    shape: tuple[int | str, ...]


class GraphSpec(Strict):
    """An ONNX file beside the manifest, its SHA-256 as 64 hexadecimal digits, and its tensors.

    `counts_as` is the hash by which a graph enters the bundle's version, where it replaced one that computes the same.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9_]+\.onnx$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    counts_as: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    opset: PositiveInt
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class PictureSpec(Strict):
    """H, W, C of the training pictures. With `any_size`, any multiple of `multiple_of` is a valid height and width."""

    height: int = Field(gt=0, le=LARGEST_TRAINED_SIDE)
    width: int = Field(gt=0, le=LARGEST_TRAINED_SIDE)
    channels: Literal[1, 3]
    any_size: bool
    multiple_of: int = Field(gt=0)


class CodesSpec(Strict):
    """h, w of the code grid of one training picture, K codebook vectors of D numbers."""

    height: int = Field(gt=0, le=MOST_CODES_A_SIDE)
    width: int = Field(gt=0, le=MOST_CODES_A_SIDE)
    codebook_size: int = Field(gt=1, le=LARGEST_CODEBOOK)
    dimension: int = Field(gt=0, le=MOST_CHANNELS)


class PriorSpec(Strict):
    """What the sampler and the codec need to know about the integer prior beside its graphs.

    `frequency_table[d]` is the integer frequency of a code whose logit lies `d` below the largest logit of its
    position; distances beyond the table take its last entry. K * frequency_table[0] < 2**31, all entries >= 1, so that
    cumulative frequencies fit int32. `label_count` is 0 for an unconditional prior; a conditional one knows labels
    0..label_count-1 and `label_count` itself, which means "no label".
    """

    frequency_table: tuple[int, ...] = Field(min_length=2)
    label_count: int = Field(ge=0)
    # (layers + 1, w, channels): `caches` of prior_row is float32 (B, *cache_shape)
    cache_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    # (layers, taps - 1, channels): `left` of prior_pixel, zero at column 0
    pixel_cache_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    context_channels: int = Field(gt=0, le=MOST_CHANNELS)  # prior_context gives float32 (B, w, context_channels)
    largest_partial_sum: NonNegativeInt  # proved at export to be below 2**24: float32 sums are exact in any order

    @model_validator(mode="after")
    def _frequencies_are_usable(self) -> PriorSpec:
        if min(self.frequency_table) < 1:
            raise ValueError("frequency_table entries must be at least 1")
        if any(a < b for a, b in zip(self.frequency_table, self.frequency_table[1:], strict=False)):
            raise ValueError("frequency_table must not increase")
        if self.largest_partial_sum >= 1 << 24:
            raise ValueError("largest_partial_sum must be below 2**24")
        return self


class Quality(Strict):
    """Measured on the test split named in `split`. MSE is the mean over pixels on [0, 1]; PSNR in dB from that MSE."""

    split: str
    pictures: Count
    mse: NonNegativeFloat
    psnr_db: NonNegativeFloat
    perplexity: NonNegativeFloat
    bits_per_code: NonNegativeFloat | None = None  # of the prior, with labels where it has them
    bits_per_code_unlabelled: NonNegativeFloat | None = None


class Parity(Strict):
    """Measured by `export.verify` against PyTorch on real pictures."""

    pictures: Count
    codes_compared: Count
    codes_different: Count
    largest_pixel_difference: Count
    prior_logits_compared: Count = 0
    prior_logits_different: Count = 0
    sampled_codes_compared: Count = 0
    sampled_codes_different: Count = 0


class Provenance(Strict):
    """Where the weights come from: a run's configuration, its pictures, and the code and the libraries it used."""

    config: dict[str, object]
    data_digest: str
    data_licence: str
    commit: str | None
    libraries: dict[str, str]

    @field_validator("config")
    @classmethod
    def _is_json(cls, config: dict[str, object]) -> dict[str, object]:
        json.dumps(config, allow_nan=False)
        return config


class Fields(Strict):
    """All fields of manifest.json, each with a possible value; `Manifest` has checked them against one another."""

    format_version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^[0-9a-f]{64}$")
    family: str
    picture: PictureSpec
    codes: CodesSpec
    labels: tuple[str, ...] | None
    graphs: dict[GraphName, GraphSpec]
    prior: PriorSpec | None
    code_histogram: tuple[int, ...]
    codebook_colours: tuple[str, ...] | None = None  # "#rrggbb" a code: the mean colour of its decoded patch
    quality: Quality
    parity: Parity
    provenance: Provenance
