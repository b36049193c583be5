"""Do the graphs of a prior compute what its module computes? Bit for bit: the arithmetic is exact.

In: sessions, the trained prior, codes of real pictures. Out: how much was compared, or `VerificationError`:

    logits    of the whole grid, and pixel by pixel, as an entropy decoder computes them
    samplers  each draws the codes of the naive loop over `prior`, with filters, guidance and known codes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.reference_sampler import Codes, Controls, Known, sample
from export.sessions import Sessions, VerificationError, batches
from service.bundle.fields import DIAGONAL_GRAPHS, GUIDANCE_STEPS, LARGEST_GUIDANCE, UNIFORM_BITS, GraphName
from service.prior.shear import Shear
from training.models.prior import PixelCNN
from training.report.evaluation import grids_a_batch

SAMPLES = 16
KNOWN_SHARE = 0.25  # of the codes, where some are known


def compare_logits(prior: PixelCNN, run: Sessions, codes: Codes, labels: Codes) -> int:
    compared = 0
    for batch, label in batches(grids_a_batch(codes[0].size, prior.codebook_size), codes, labels):
        expected = prior(torch.from_numpy(batch), torch.from_numpy(label)).numpy()
        found = run.run("prior", codes=batch, labels=label)[0]
        if not np.array_equal(found, expected):
            raise VerificationError("the prior's logits differ between ONNX and PyTorch: its sums are not exact")
        compared += found.size
    return compared


def compare_pixel_by_pixel(run: Sessions, codes: Codes, labels: Codes) -> None:
    """What the entropy decoder runs gives the logits of `prior`: codes (B,h,w), labels (B,).

    Raises:
        VerificationError: a logit differs.
    """
    expected = run.run("prior", codes=codes, labels=labels)[0]
    found = np.stack(list(pixel_by_pixel_logits(run, codes, labels)), axis=1).reshape(expected.shape)
    if not np.array_equal(found, expected):
        raise VerificationError("prior_context and prior_pixel disagree with the teacher-forced prior")


def pixel_by_pixel_logits(run: Sessions, codes: Codes, labels: Codes) -> Iterator[NDArray[np.generic]]:
    """The logits (B,K) of each position in raster order, as an entropy decoder computes them."""
    batch, height, width = codes.shape
    cache_shape = run.sessions["prior_context"].get_inputs()[2].shape
    left_shape = run.sessions["prior_pixel"].get_inputs()[2].shape[1:]
    caches: NDArray[np.generic] = np.zeros((batch, cache_shape[1], width, cache_shape[3]), np.float32)
    none = np.full((batch, width), -1, np.int64)
    for i in range(height):
        above = codes[:, i - 1] if i else none
        context, caches = run.run("prior_context", codes_above=above, labels=labels, caches=caches)
        left: NDArray[np.generic] = np.zeros((batch, *left_shape), np.float32)
        for j in range(width):
            previous = codes[:, i, j - 1] if j else none[:, 0]
            column = np.ascontiguousarray(context[:, j])
            logits, left = run.run("prior_pixel", context=column, previous_codes=previous, left=left)
            yield logits


def _grids(uniforms: NDArray[np.float32], known: Known | None) -> dict[str, NDArray[Any]]:
    """What a sampler is given of each position, by the name of its input: (B,h,w) each."""
    known = known or Known.nothing(uniforms.shape)
    return {"uniforms": uniforms, "known_codes": known.codes, "known_mask": known.mask}


def sample_rows(
    run: Sessions,
    graph: GraphName,
    uniforms: NDArray[np.float32],
    labels: Codes,
    controls: Controls,
    known: Known | None = None,
) -> Codes:
    """The exported sampler: one call a row. uniforms (B,h,w) -> codes (B,h,w)."""
    names = {value.name for value in run.sessions[graph].get_inputs()}
    settings = {name: value for name, value in vars(controls).items() if name in names}
    shape = next(value.shape for value in run.sessions[graph].get_inputs() if value.name == "caches")
    caches: NDArray[np.generic] = np.zeros((len(uniforms), *shape[1:]), np.float32)
    grids, rows = _grids(uniforms, known), []
    for i in range(uniforms.shape[1]):
        row = {name: np.ascontiguousarray(grid[:, i]) for name, grid in grids.items()}
        codes, caches = run.run(graph, labels=labels, caches=caches, **row, **settings)
        rows.append(codes)
    return np.stack(rows, axis=1).astype(np.int64)


def sample_diagonally(
    run: Sessions,
    graph: GraphName,
    uniforms: NDArray[np.float32],
    labels: Codes,
    controls: Controls,
    known: Known | None = None,
) -> Codes:
    """The exported sampler of several rows a call. uniforms (B,h,w) -> codes (B,h,w)."""
    shapes = {value.name: value.shape[1:] for value in run.sessions[graph].get_inputs()}
    settings = {name: value for name, value in vars(controls).items() if name in shapes}
    (bands,), (columns,) = shapes["row_exists"], shapes["uniforms"]
    shear = Shear(bands, columns, (uniforms.shape[1], uniforms.shape[2]))
    sheared = {name: shear.of(grid) for name, grid in _grids(uniforms, known).items()}
    caches: NDArray[np.generic] = np.zeros((len(uniforms), *shapes["caches"]), np.float32)
    calls = []
    for call in range(shear.calls):
        inputs = {name: np.ascontiguousarray(grid[:, call]) for name, grid in sheared.items()}
        inputs["row_exists"] = np.tile(shear.row_exists[call], (len(uniforms), 1))
        codes, caches = run.run(graph, labels=labels, caches=caches, **inputs, **settings)
        calls.append(codes)
    return shear.undone(np.stack(calls, axis=1).astype(np.int64))


def compare_samplers(run: Sessions, table: NDArray[np.int32], grid: tuple[int, ...], prior: PixelCNN) -> int:
    """Every sampler draws what the naive loop over `prior` draws, at the top of large grids. Returns how many codes.

    Raises:
        VerificationError: a code differs.
    """
    rng = np.random.default_rng(1)
    height, width = min(grid[0], 8), grid[1]
    samples = min(SAMPLES, grids_a_batch(height * width, prior.codebook_size))
    numerators = rng.integers(0, 1 << UNIFORM_BITS, (samples, height, width))
    uniforms = (numerators / (1 << UNIFORM_BITS)).astype(np.float32)
    labels = rng.integers(0, prior.label_count + 1, samples)

    def logits_of(codes: Codes, labels: Codes) -> NDArray[np.int32]:
        return run.run("prior", codes=codes, labels=labels)[0].astype(np.int32)

    compared = 0
    for controls, known, graphs in _cases(prior, uniforms.shape, rng):
        expected = sample(logits_of, uniforms, labels, table, controls, no_label=prior.label_count, known=known)
        for graph in graphs:
            if graph not in run.sessions:  # a diagonal: not every grid has them
                continue
            draw = sample_diagonally if graph in DIAGONAL_GRAPHS else sample_rows
            if not np.array_equal(draw(run, graph, uniforms, labels, controls, known), expected):
                raise VerificationError(
                    f"{graph} draws other codes than the teacher-forced sampler from the same uniforms"
                )
            compared += expected.size
    return compared


def _cases(
    prior: PixelCNN, shape: tuple[int, ...], rng: np.random.Generator
) -> Iterator[tuple[Controls, Known, tuple[GraphName, ...]]]:
    """What to ask for, what is known of grids of this `shape` (B,h,w), and which graphs can draw it."""
    samples = shape[0]
    free = Controls.off(samples, prior.codebook_size)
    warm = replace(free, inverse_temperature=rng.uniform(0.5, 2, samples).astype(np.float32))
    filtered = Controls(
        warm.inverse_temperature,
        rng.integers(1, prior.codebook_size + 1, samples),
        rng.uniform(0.1, 1, samples).astype(np.float32),
    )
    nothing, some = Known.nothing(shape), _some_known(shape, prior.codebook_size)
    yield free, nothing, ("prior_row",)
    yield warm, some, ("prior_row_unfiltered", "prior_diagonal")
    yield filtered, some, ("prior_row", "prior_diagonal_filtered")
    if prior.label_count:
        grid_of_guidance = rng.integers(GUIDANCE_STEPS, GUIDANCE_STEPS * LARGEST_GUIDANCE + 1, samples)
        guided = replace(filtered, guidance=(grid_of_guidance / GUIDANCE_STEPS).astype(np.float32))
        yield guided, some, ("prior_row_guided",)


def _some_known(shape: tuple[int, ...], codebook_size: int) -> Known:
    rng = np.random.default_rng(2)
    return Known(rng.integers(0, codebook_size, shape), rng.random(shape) < KNOWN_SHARE)
