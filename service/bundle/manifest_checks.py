"""Are the values of a manifest possible, and do the tensors of its graphs agree with its other fields?

In: its fields. Out: the first fault, as a sentence that names the field, or None. docs/bundle-format.md has the tables.
A dynamic axis where a number is expected contradicts nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from service.bundle.fields import DIAGONAL_GRAPHS, MOST_CACHED, Fields, GraphName, PriorSpec, TensorSpec


class Axis(NamedTuple):
    """What an axis must be, and the field that says so."""

    because: str
    size: int | Literal["dynamic", "a number"]

    def fits(self, found: int | str) -> bool:
        if self.size == "a number":
            return isinstance(found, int)
        return isinstance(found, str) or found == self.size


class Expected(NamedTuple):
    """What the format says of one tensor."""

    dtype: str
    shape: tuple[Axis, ...]


_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")

Tensors = dict[str, Expected]
Graphs = dict[GraphName, tuple[Tensors, Tensors]]  # inputs in any order, outputs in this one

B = Axis("a batch may have any size", "dynamic")
ANY = Axis("a grid may have any size", "dynamic")
FIXED = Axis("this axis is fixed", "a number")


def value_fault(manifest: Fields) -> str | None:
    """The first field whose value is impossible, whatever the graphs are."""
    return next(_value_faults(manifest), None)


def _value_faults(manifest: Fields) -> Iterator[str]:
    yield from _label_faults(manifest.labels or ())
    yield from _per_code_faults(manifest)
    if manifest.prior is not None:
        yield from _cache_faults(manifest.prior)


def _label_faults(labels: Sequence[str]) -> Iterator[str]:
    first: dict[str, int] = {}
    for number, name in enumerate(labels):
        if not name.strip():
            yield f"labels.{number} is empty: each label needs a name"
        if first.setdefault(name, number) != number:
            yield f"labels.{number} is {name!r}, as is labels.{first[name]}: each label needs a name of its own"


def _per_code_faults(manifest: Fields) -> Iterator[str]:
    histogram, colours, k = manifest.code_histogram, manifest.codebook_colours, manifest.codes.codebook_size
    if len(histogram) != k:
        yield f"code_histogram has {len(histogram)} entries, not {k}"
    elif min(histogram) < 0:
        yield f"code_histogram has the entry {min(histogram)}: codes occur 0 times or more"
    elif sum(histogram) >= 1 << 53:
        yield "code_histogram has a sum of 2**53 or more"
    if colours is not None and len(colours) != k:
        yield f"codebook_colours has {len(colours)} entries, not {k}"
    for number, colour in enumerate(colours or ()):
        if not _COLOUR.fullmatch(colour):
            yield f"codebook_colours.{number} is {colour!r}, not #rrggbb"


def _cache_faults(prior: PriorSpec) -> Iterator[str]:
    for field, shape in (("cache_shape", prior.cache_shape), ("pixel_cache_shape", prior.pixel_cache_shape)):
        if math.prod(shape) > MOST_CACHED:
            yield f"prior.{field} is {_text(shape)}, a sample has at most {MOST_CACHED:,} numbers"


def tensor_fault(manifest: Fields) -> str | None:
    """The first field of the manifest that a tensor of its graphs contradicts."""
    return next(_faults(manifest), None)


def _faults(manifest: Fields) -> Iterator[str]:
    expected = _autoencoder(manifest)
    if manifest.prior is not None:
        expected |= _prior(manifest, manifest.prior)
    for graph, sides in expected.items():
        if graph in manifest.graphs:
            spec = manifest.graphs[graph]
            for kind, found, wanted in zip(("inputs", "outputs"), (spec.inputs, spec.outputs), sides, strict=True):
                yield from _side_faults(f"graphs.{graph}.{kind}", found, wanted, ordered=kind == "outputs")
    if manifest.prior is None:
        return
    for graph in DIAGONAL_GRAPHS:
        if graph in manifest.graphs:
            yield from _diagonal_faults(manifest, graph)
    yield from _filtered_diagonal_faults(manifest)
    if "prior_row_guided" in manifest.graphs and not manifest.prior.label_count:
        yield "graphs has prior_row_guided, but prior.label_count is 0: nothing can be guided without labels"


def _side_faults(where: str, found: Sequence[TensorSpec], wanted: Tensors, *, ordered: bool) -> Iterator[str]:
    names = [tensor.name for tensor in found]
    if (names if ordered else sorted(names)) != (list(wanted) if ordered else sorted(wanted)):
        yield f"{where} are {', '.join(names)}, the format has {', '.join(wanted)}"
        return
    for tensor in found:
        dtype, axes = wanted[tensor.name]
        if tensor.dtype != dtype:
            yield f"{where}: {tensor.name} is {tensor.dtype}, the format has {dtype}"
        if len(tensor.shape) != len(axes):
            yield f"{where}: {tensor.name} has {len(tensor.shape)} axes, the format has {len(axes)}"
            continue
        for axis, size in zip(axes, tensor.shape, strict=True):
            if not axis.fits(size):
                yield f"{where}: {tensor.name} has the shape {_text(tensor.shape)}, but {axis.because}"


def _autoencoder(manifest: Fields) -> Graphs:
    picture, codes, free = manifest.picture, manifest.codes, Axis("picture.any_size is true", "dynamic")
    size = (_is("picture.height", picture.height), _is("picture.width", picture.width))
    grid = (_is("codes.height", codes.height), _is("codes.width", codes.width))
    if picture.any_size:
        size = grid = (free, free)
    d, k = _is("codes.dimension", codes.dimension), _is("codes.codebook_size", codes.codebook_size)
    images = {"images": Expected("uint8", (B, *size, _is("picture.channels", picture.channels)))}
    latents = {"latents": Expected("float32", (B, *grid, d))}
    numbers = {"codes": Expected("int64", (B, *grid))}
    return {
        "encoder": (images, latents),
        "quantizer": (latents, numbers),
        "encoder_quantizer": (images, numbers),
        "decoder": (numbers, images),
        "distances": (
            {"latents": Expected("float32", (B, ANY, ANY, d))},
            {"distances": Expected("float32", (B, ANY, ANY, k))},
        ),
    }


def _prior(manifest: Fields, prior: PriorSpec) -> Graphs:
    k, w = _is("codes.codebook_size", manifest.codes.codebook_size), _is("codes.width", manifest.codes.width)
    entries, width, channels = _are("prior.cache_shape", prior.cache_shape)
    doubled = Axis(f"{entries.because} and guidance doubles its first axis", 2 * prior.cache_shape[0])
    context = _is("prior.context_channels", prior.context_channels)
    labels = {"labels": Expected("int64", (B,))}
    temperature = {"inverse_temperature": Expected("float32", (B,))}
    filters = {"top_k": Expected("int64", (B,)), "top_p": Expected("float32", (B,))}
    guidance = {"guidance": Expected("float32", (B,))}
    controls = labels | temperature
    plain, twice = _row(w, (entries, width, channels)), _row(w, (doubled, width, channels))
    bands = _row(FIXED, (Axis("a diagonal keeps one entry", 1), FIXED, channels))
    row_exists = {"row_exists": Expected("float32", (B, FIXED))}
    caches = Expected("float32", (B, entries, ANY, channels))
    left = Expected("float32", (B, *_are("prior.pixel_cache_shape", prior.pixel_cache_shape)))
    return {
        "prior": (
            {"codes": Expected("int64", (B, ANY, ANY)), **labels},
            {"logits": Expected("int32", (B, ANY, ANY, k))},
        ),
        "prior_row": (plain[0] | controls | filters, plain[1]),
        "prior_row_unfiltered": (plain[0] | controls, plain[1]),
        "prior_row_guided": (twice[0] | controls | filters | guidance, twice[1]),
        "prior_diagonal": (bands[0] | controls | row_exists, bands[1]),
        "prior_diagonal_filtered": (bands[0] | controls | filters | row_exists, bands[1]),
        "prior_context": (
            {"codes_above": Expected("int64", (B, ANY)), **labels, "caches": caches},
            {"context": Expected("float32", (B, ANY, context)), "next_caches": caches},
        ),
        "prior_pixel": (
            {"context": Expected("float32", (B, context)), "previous_codes": Expected("int64", (B,)), "left": left},
            {"logits": Expected("int32", (B, k)), "next_left": left},
        ),
    }


def _row(columns: Axis, cache_shape: tuple[Axis, Axis, Axis]) -> tuple[Tensors, Tensors]:
    """What every row graph takes and gives."""
    caches = Expected("float32", (B, *cache_shape))
    taken = {
        "uniforms": Expected("float32", (B, columns)),
        "known_codes": Expected("int64", (B, columns)),
        "known_mask": Expected("bool", (B, columns)),
        "caches": caches,
    }
    return taken, {"sampled_codes": Expected("int64", (B, columns)), "next_caches": caches}


def _shapes(manifest: Fields, graph: GraphName) -> dict[str, tuple[int | str, ...]]:
    spec = manifest.graphs[graph]
    return {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}


def _filtered_diagonal_faults(manifest: Fields) -> Iterator[str]:
    """A sample may pass from one diagonal to the other, according to its company."""
    plain, filtered = DIAGONAL_GRAPHS
    if filtered not in manifest.graphs:
        return
    if plain not in manifest.graphs:
        yield f"graphs has {filtered} without {plain}"
        return
    wanted, found = _shapes(manifest, plain), _shapes(manifest, filtered)
    for name, shape in wanted.items():
        if found[name][1:] != shape[1:]:
            yield f"graphs.{filtered}: {name} has the shape {_text(found[name])}, that of {plain} {_text(shape)}"


def _diagonal_faults(manifest: Fields, graph: GraphName) -> Iterator[str]:
    """Its bands are its own: they must agree among themselves, and cover a row of the grid."""
    where, shapes = f"graphs.{graph}", _shapes(manifest, graph)
    (_, bands), (_, columns) = shapes["row_exists"], shapes["uniforms"]
    assert isinstance(bands, int) and isinstance(columns, int)  # `_side_faults` came first
    width = manifest.codes.width
    if not 1 <= bands <= width <= columns <= 2 * width or columns % bands:
        yield f"{where}: {bands} bands of {columns} columns in all do not hold codes.width, {width}"
    cached = [axis for axis in shapes["caches"] if isinstance(axis, int)]
    if math.prod(cached) > MOST_CACHED:
        yield f"{where}: caches has the shape {_text(shapes['caches'])}, a sample has at most {MOST_CACHED:,} numbers"
    for one, other in (
        *(("uniforms", name) for name in ("known_codes", "known_mask", "sampled_codes")),
        ("caches", "next_caches"),
    ):
        if shapes[one][1:] != shapes[other][1:]:
            yield f"{where}: {one} has the shape {_text(shapes[one])}, {other} {_text(shapes[other])}"


def _is(field: str, value: int) -> Axis:
    return Axis(f"{field} is {value}", value)


def _are(field: str, shape: tuple[int, int, int]) -> tuple[Axis, Axis, Axis]:
    first, second, third = (Axis(f"{field} is {_text(shape)}", size) for size in shape)
    return first, second, third


def _text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
