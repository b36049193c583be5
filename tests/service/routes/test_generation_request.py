"""What a /generate asks for, read without a server: the values at the edges, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.bundle import load_bundle
from service.bundle.fields import UNIFORM_BITS
from service.bundle.manifest import Manifest
from service.errors import InvalidParameter
from service.prior.draws import SEED_LIMIT, uniforms
from service.routes.generation_request import Wanted, read_wanted
from service.wire.schemas import MOST_FIELDS
from tests.service.conftest import Generating

MOST = 4
GRID = (7, 7)


@pytest.fixture(scope="module")
def manifest(generating: Generating) -> Manifest:
    """Three labels, 16 codes in 7x7, guidance."""
    return load_bundle(generating.folders[0]).manifest


def wanted(manifest: Manifest, **asked: Any) -> Wanted:
    return read_wanted(json.dumps(asked).encode(), manifest, MOST)


@pytest.mark.parametrize(
    "asked",
    [
        {"n": MOST},
        {"label": 2},
        {"seed": SEED_LIMIT - 1},
        {"temperature": 0.01},
        {"temperature": 100},
        {"top_k": 16},
        {"top_p": 1},
        {"guidance": 8, "label": 0},
        {"known": [[15] * 7] * 7},
    ],
    ids=json.dumps,
)
def test_the_largest_and_smallest_values_are_taken(manifest: Manifest, asked: dict[str, Any]) -> None:
    assert len(wanted(manifest, **asked).draws) == asked.get("n", 1)


@pytest.mark.parametrize(
    "asked",
    [
        {"n": MOST + 1},
        {"seed": SEED_LIMIT},
        {"temperature": 0.0099},
        {"temperature": 100.1},
        {"n": "1"},
        {"guidance": 1.1},
        {"known": [[1] * 7] * 8},
    ],
    ids=json.dumps,
)
def test_what_lies_beyond_is_not(manifest: Manifest, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        wanted(manifest, **asked)


def test_label_and_seed_may_be_0(manifest: Manifest) -> None:
    """Which is not the same as none."""
    found = wanted(manifest, label=0, seed=0, n=2)
    assert (found.seed, found.label, found.labels.tolist()) == (0, 0, [0, 0])
    assert wanted(manifest).labels.tolist() == [3]
    for index, draw in enumerate(found.draws):
        assert (draw.uniforms == uniforms(0, index, GRID)).all()


@pytest.mark.parametrize(("guidance", "found"), [(1.03, 1), (1.04, 1 + 1 / 16), (1.5, 1.5), (7.99, 8)])
def test_guidance_is_rounded_to_sixteenths(manifest: Manifest, guidance: float, found: float) -> None:
    assert wanted(manifest, label=1, guidance=guidance).draws[0].guidance == found


def test_a_temperature_is_passed_on_as_its_inverse(manifest: Manifest) -> None:
    assert wanted(manifest, temperature=4).draws[0].inverse_temperature == 0.25


def test_what_the_mask_leaves_out_may_be_anything(manifest: Manifest) -> None:
    codes, mask = [[99] * 7] * 6 + [[5] * 7], [[False] * 7] * 6 + [[True] * 7]
    (draw,) = wanted(manifest, known={"codes": codes, "mask": mask}).draws
    assert (draw.known_codes == np.repeat([0, 5], [42, 7]).reshape(GRID)).all()
    assert (draw.known_mask == mask).all()


def test_a_body_is_bounded_in_bytes_and_in_values(manifest: Manifest) -> None:
    """Blanks are bytes too; a grid and its mask, indented, have room."""
    most = 64 * (MOST_FIELDS + 2 * 49)
    assert len(read_wanted(b"{}".ljust(most), manifest, MOST).draws) == 1
    with pytest.raises(InvalidParameter, match=f"has {most + 1} bytes"):
        read_wanted(b"{}".ljust(most + 1), manifest, MOST)
    more = MOST_FIELDS + 2 * 49 + 2
    for known, what in (([[1] * more], "values"), ([[]] * more, "lists")):
        with pytest.raises(InvalidParameter, match=f"more than {more - 2} {what}"):
            wanted(manifest, known=known)
    grid = {"codes": [[15] * 7] * 7, "mask": [[True] * 7] * 7}
    assert len(read_wanted(json.dumps({"known": grid}, indent=8).encode(), manifest, MOST).draws) == 1


def test_an_unknown_field_is_named_in_part(manifest: Manifest) -> None:
    with pytest.raises(InvalidParameter, match=r"Unknown field 'x{40}';"):
        wanted(manifest, **{"x" * 50: 1})


def test_a_model_without_the_guided_graph_has_no_guidance(manifest: Manifest) -> None:
    graphs = {name: spec for name, spec in manifest.graphs.items() if name != "prior_row_guided"}
    unguided = manifest.model_copy(update={"graphs": graphs})
    assert wanted(unguided, label=1, guidance=1).labels.tolist() == [1]
    with pytest.raises(InvalidParameter, match="has no graph for it, as its bundle is of an earlier version"):
        wanted(unguided, label=1, guidance=2)
    with pytest.raises(InvalidParameter, match="no labels to guide by"):
        wanted(unguided.model_copy(update={"labels": None}), label=1, guidance=2)


@pytest.mark.parametrize("codebook_size", [2, 16, 512, 2048, 8192, 40_000, 65_536])
def test_below_temperature_1_what_only_the_coder_needs_is_not_drawn(manifest: Manifest, codebook_size: int) -> None:
    """At 0.01 a code that is impossible was drawn as often as at 1: in every second picture of `models/photos-f8`."""
    assert manifest.prior is not None
    table = (1 << (31 - codebook_size.bit_length()), 1)
    prior = manifest.prior.model_copy(update={"frequency_table": table})
    large = manifest.model_copy(
        update={"prior": prior, "codes": manifest.codes.model_copy(update={"codebook_size": codebook_size})}
    )
    for impossible in (1, codebook_size // 2, codebook_size - 1):
        total = table[0] * (codebook_size - impossible) + impossible
        kept = int(wanted(large, temperature=0.99).draws[0].top_p * (1 << UNIFORM_BITS)) * total >> UNIFORM_BITS
        assert kept <= total - impossible
        assert kept > total * (table[0] / (table[0] + codebook_size) - 2**-UNIFORM_BITS) - 1


@pytest.mark.parametrize("asked", [{}, {"temperature": 2.0}, {"temperature": 0.5, "top_p": 1}])
def test_else_every_code_may_be_drawn(manifest: Manifest, asked: dict[str, Any]) -> None:
    assert wanted(manifest, **asked).draws[0].top_p == 1
