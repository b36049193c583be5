"""What /generate is asked for. In: the JSON body and the manifest. Out: `Wanted`, checked against the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.bundle.fields import GUIDANCE_STEPS, LARGEST_GUIDANCE, UNIFORM_BITS
from service.bundle.manifest import Manifest
from service.errors import InvalidParameter, MalformedRequest
from service.prior.draws import SEED_LIMIT, Codes, Draw, fresh_seed, uniforms
from service.wire.schemas import LARGE, MOST_FIELDS, ListOf, excess_of

COLDEST, HOTTEST = 0.01, 100.0  # float32(1 / temperature) times any distance of logits stays finite and exact enough
_VALUE_BYTES = 64  # of JSON for each value, its indentation included
Rows = Annotated[ListOf[ListOf[int | None]], Field(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class KnownCodes(_Body):
    """`codes` (h,w) where `mask` (h,w) is true; elsewhere they are ignored."""

    codes: ListOf[ListOf[int]]
    mask: ListOf[ListOf[bool]]


class GenerateRequest(_Body):
    """Every field may be left out: `{}` is one sample with a new seed."""

    n: int = Field(1, ge=1, description="Number of samples.")
    label: int | None = Field(None, ge=0, description="Index into the model's labels; null: any.")
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT, json_schema_extra=LARGE)] | None = Field(
        None, description="The same seed gives the same pictures; null: a new one."
    )
    temperature: float = Field(1.0, ge=COLDEST, le=HOTTEST, description="Below 1: safer; above 1: wilder.")
    top_k: int | None = Field(
        None, ge=1, description="Draw from the k most likely codes only (and equals of the k-th)."
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Draw from the most likely codes that reach probability p together; null: from all, at a "
        "temperature below 1 from all that are possible.",
    )
    guidance: float = Field(
        1.0,
        ge=1,
        le=LARGEST_GUIDANCE,
        description="How strongly samples are pushed towards `label`, which it needs: 1 (not at all) to "
        f"{LARGEST_GUIDANCE}, rounded to 1/{GUIDANCE_STEPS}; 1.5 is a clear push.",
    )
    known: Rows | KnownCodes | None = Field(None, description="Codes to keep, (h,w), null where they are to be drawn.")
    preview: bool = Field(False, description="text/event-stream only: each row comes with the picture so far.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The samples to draw, and what the answer repeats."""

    draws: Sequence[Draw]
    seed: int
    label: int | None
    preview: bool

    @property
    def labels(self) -> Codes:
        """int64 (n,): as the prior's graphs take them."""
        return np.array([draw.label for draw in self.draws], np.int64)


def read_wanted(body: bytes, manifest: Manifest, max_samples: int) -> Wanted:
    """Raises MalformedRequest when it is not JSON, InvalidParameter when the model cannot do it."""
    prior, codes = manifest.prior, manifest.codes
    assert prior is not None
    asked = _parse(body, (codes.height, codes.width))
    if asked.n > max_samples:
        raise InvalidParameter(f"n: at most {max_samples} samples a request, not {asked.n}; send several requests.")
    if asked.label is not None and asked.label >= prior.label_count:
        if not prior.label_count:
            raise InvalidParameter(f"label is {asked.label}, but there are no labels: leave it out.")
        raise InvalidParameter(f"label: must be 0..{prior.label_count - 1}, or none; not {asked.label}.")
    if asked.top_k is not None and asked.top_k > codes.codebook_size:
        raise InvalidParameter(f"top_k: must lie in 1..{codes.codebook_size}, not {asked.top_k}.")
    if asked.guidance != 1:
        _require_guidance(asked, manifest)
    grid = (codes.height, codes.width)
    known_codes, known_mask = _known(asked.known, grid, codes.codebook_size)
    seed = fresh_seed() if asked.seed is None else asked.seed
    top_p = np.float32(_nucleus(asked, codes.codebook_size, prior.frequency_table[0]))
    draws = [
        Draw(
            uniforms=uniforms(seed, index, grid),
            label=prior.label_count if asked.label is None else asked.label,
            inverse_temperature=np.float32(1 / asked.temperature),
            top_k=asked.top_k or codes.codebook_size,
            top_p=top_p,
            known_codes=known_codes,
            known_mask=known_mask,
            guidance=np.float32(round(asked.guidance * GUIDANCE_STEPS) / GUIDANCE_STEPS),
        )
        for index in range(asked.n)
    ]
    return Wanted(draws, seed, asked.label, asked.preview)


def _nucleus(asked: GenerateRequest, codebook_size: int, largest_frequency: int) -> float:
    """No code's frequency is below 1, for the entropy coder's sake. Below temperature 1 nobody asks for what lies
    there: it would be drawn as often in the coldest sample. Out: `top_p`, a multiple of 2^-24, that always drops it."""
    if asked.top_p is not None or asked.temperature >= 1:
        return 1.0 if asked.top_p is None else asked.top_p
    # the others have at least the frequency of the likeliest code, and what lies there at most 1 for each of the rest
    wanted = largest_frequency / (largest_frequency + codebook_size - 1)
    return math.floor(wanted * (1 << UNIFORM_BITS)) / (1 << UNIFORM_BITS)


def _require_guidance(asked: GenerateRequest, manifest: Manifest) -> None:
    if "prior_row_guided" not in manifest.graphs:
        lacks = "labels to guide by" if not manifest.labels else "graph for it, as its bundle is of an earlier version"
        raise InvalidParameter(f"guidance: model {manifest.name!r} has no {lacks}; leave it out.")
    if asked.label is None:
        raise InvalidParameter("guidance needs a label to push towards.")


def _parse(body: bytes, grid: tuple[int, int]) -> GenerateRequest:
    most = MOST_FIELDS + 2 * grid[0] * grid[1]  # `known` with a mask is the largest that makes sense
    if len(body) > _VALUE_BYTES * most:
        raise InvalidParameter(
            f"The JSON has {len(body)} bytes; no request for {grid[0]}x{grid[1]} codes needs more than "
            f"{_VALUE_BYTES * most}."
        )
    if excess := excess_of(body, lists=most, values=most):
        raise InvalidParameter(f"The JSON has {excess}; no request for {grid[0]}x{grid[1]} codes needs them.")
    try:
        return GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise MalformedRequest(f"The body is not JSON: {first['msg']}.")
    where = str(first["loc"][0]) if first["loc"] else "the body"
    if first["type"] == "extra_forbidden":
        raise InvalidParameter(f"Unknown field {where[:40]!r}; there are {', '.join(GenerateRequest.model_fields)}.")
    if where == "label":
        raise InvalidParameter("label: send its number, from 0; GET /models lists the labels' names in this order.")
    if where == "known":
        raise InvalidParameter('known: send rows of codes with null for unknown, or {"codes": rows, "mask": rows}.')
    raise InvalidParameter(f"{where}: {first['msg']}.")


def _known(
    known: Rows | KnownCodes | None, grid: tuple[int, int], codebook_size: int
) -> tuple[Codes, NDArray[np.bool_]]:
    """Codes (h,w), 0 where nothing is known, and the mask (h,w)."""
    if known is None:
        return np.zeros(grid, np.int64), np.zeros(grid, np.bool_)
    if isinstance(known, KnownCodes):
        codes, mask = _grid(known.codes, grid, "known.codes"), _grid(known.mask, grid, "known.mask")
    else:
        codes = _grid(known, grid, "known")
        mask = np.array([[code is not None for code in row] for row in known], np.bool_)
    codes = np.where(mask, codes, 0)
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise InvalidParameter(f"known: codes must lie in 0..{codebook_size - 1}.")
    return codes.astype(np.int64), mask.astype(np.bool_)


def _grid(rows: Sequence[Sequence[object]], grid: tuple[int, int], name: str) -> NDArray[np.object_]:
    height, width = grid
    if len(rows) != height or any(len(row) != width for row in rows):
        raise InvalidParameter(f"{name}: must be {height} rows of {width}; null stands for an unknown code.")
    return np.array(rows, np.object_)
