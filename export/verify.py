"""Does the bundle compute what the trained modules compute? Measured on real pictures, recorded in the manifest.

In: the trained modules, the ONNX models in memory, pictures uint8 (N,H,W,C) with labels. Out: `Parity`, or
`VerificationError` with the first difference that is not allowed:

    codes      at most 1 in 10,000 may differ, of fewer one, and only where two vectors are nearly as near (float
               rounding)
    pixels     at most 1 of 255 levels apart
    distances  equal to float rounding, on a few pictures
    prior      logits bit-equal, pixel by pixel as over the whole grid; sampled codes equal to the teacher-forced
               sampler's, with known codes too
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.reference_sampler import Codes, Controls, Known, sample
from service.bundle import GUIDANCE_STEPS, LARGEST_GUIDANCE, UNIFORM_BITS, GraphName, Parity
from service.manifest_checks import DIAGONAL_GRAPHS
from service.shear import Shear
from training.autoencoders import VQVAE
from training.evaluation import CODES_A_BATCH, pictures_a_batch
from training.prior import PixelCNN
from training.quantizers import FiniteScalarQuantizer

Pictures = NDArray[np.uint8]
# of codes and pixels, as `export.device_parity` has them, which cannot import what needs PyTorch
LARGEST_PIXEL_DIFFERENCE = 1  # of 255: the two sides may round a half differently
CODES_PER_DIFFERENCE = 10_000
NEAR_TIE = 1e-3  # of the squared distance: float32 convolutions in another order differ by less
DISTANCE_ERROR = 1e-5  # of the largest term: |z|^2 + |e|^2 - 2 z.e cancels, which leaves the error of float32 there
SAMPLES = 16
KNOWN_SHARE = 0.25  # of the codes, where some are known


class VerificationError(RuntimeError):
    """An exported graph does not compute what its module computes."""


@dataclass(frozen=True)
class Sessions:
    """One CPU session a graph."""

    sessions: dict[GraphName, ort.InferenceSession]

    @classmethod
    def of(cls, models: Mapping[GraphName, onnx.ModelProto]) -> Sessions:
        """Opened from memory: nothing is written."""
        providers = ["CPUExecutionProvider"]
        return cls(
            {name: ort.InferenceSession(m.SerializeToString(), providers=providers) for name, m in models.items()}
        )

    def run(self, graph: GraphName, **inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """All outputs in their order; names, shapes and dtypes are those of docs/bundle-format.md."""
        outputs: list[NDArray[np.generic]] = self.sessions[graph].run(None, inputs)
        return outputs


def to_torch(pictures: Pictures) -> torch.Tensor:
    """uint8 (B,H,W,C) -> float32 (B,C,H,W) in [0,1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _batches(size: int, *arrays: NDArray[np.generic]) -> Iterator[tuple[NDArray[np.generic], ...]]:
    for start in range(0, len(arrays[0]), size):
        yield tuple(array[start : start + size] for array in arrays)


@torch.no_grad()
def verify(
    vqvae: VQVAE,
    prior: PixelCNN | None,
    models: Mapping[GraphName, onnx.ModelProto],
    table: NDArray[np.int32],
    pictures: Pictures,
    labels: Codes,
) -> Parity:
    """Compare every graph with its module on all `pictures`.

    Raises:
        VerificationError: a difference beyond what the module docstring allows.
    """
    vqvae.eval()
    run = Sessions.of(models)
    size = pictures_a_batch(*pictures.shape[1:3])
    codes = np.concatenate([vqvae.encode(to_torch(batch)).numpy() for (batch,) in _batches(size, pictures)])  # type: ignore[arg-type]
    parity = Parity(
        pictures=len(pictures),
        codes_compared=codes.size,
        codes_different=_compare_codes(vqvae, run, pictures, codes, size),
        largest_pixel_difference=_compare_pixels(vqvae, run, codes, size),
    )
    if "distances" in models:
        _compare_distances(vqvae, run, pictures[: min(SAMPLES, size)])
    if prior is None:
        return parity
    prior.eval()
    compared = _compare_logits(prior, run, codes, labels)
    compare_pixel_by_pixel(run, codes[:SAMPLES], labels[:SAMPLES])
    sampled = compare_samplers(run, table, codes.shape[1:], prior)
    return parity.model_copy(update={"prior_logits_compared": compared, "sampled_codes_compared": sampled})


def _compare_codes(vqvae: VQVAE, run: Sessions, pictures: Pictures, codes: Codes, size: int) -> int:
    different = 0
    for batch, expected in _batches(size, pictures, codes):
        latents = run.run("encoder", images=batch)[0]
        if not np.isfinite(latents).all():  # both sides would choose the same code for it
            raise VerificationError("the encoder gives latents that are no numbers")
        (split,), (fused,) = run.run("quantizer", latents=latents), run.run("encoder_quantizer", images=batch)
        for found in (split, fused):
            _require_near_ties(vqvae, latents, found, expected)
        different += max(int((split != expected).sum()), int((fused != expected).sum()))
    if different > max(1, codes.size / CODES_PER_DIFFERENCE):
        raise VerificationError(f"{different} of {codes.size} codes differ between ONNX and PyTorch")
    return different


def _require_near_ties(
    vqvae: VQVAE, latents: NDArray[np.generic], found: NDArray[np.generic], expected: NDArray[np.generic]
) -> None:
    where = found != expected
    if not where.any():
        return
    rows, sides = torch.from_numpy(latents[where]), (torch.from_numpy(codes[where]) for codes in (found, expected))
    one, other = (_costs(vqvae, rows, codes) for codes in sides)
    near = (one - other).abs() <= NEAR_TIE * (one + other)  # false for NaN
    if not near.all():
        gap = float(((one - other).abs() / (one + other))[~near].max())
        raise VerificationError(f"a code differs although its vector is {gap:.1%} nearer: this is no rounding")


def _costs(vqvae: VQVAE, latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """What the quantizer makes smallest, in float64: latents (N,D), codes (N,) -> (N,)."""
    quantizer = vqvae.quantizer
    offsets = None if isinstance(quantizer, FiniteScalarQuantizer) else quantizer.offsets()
    squares = (latents.double() - quantizer.codebook[codes].double()).square().sum(1)
    return squares if offsets is None else squares + offsets[codes].double()


def _compare_distances(vqvae: VQVAE, run: Sessions, pictures: Pictures) -> None:
    """What `?effort=` weighs against bits, beside its definition in float64."""
    latents = run.run("encoder", images=pictures)[0]
    found = torch.from_numpy(run.run("distances", latents=latents)[0])  # (B,h,w,K)
    rows = torch.from_numpy(latents).double().flatten(0, 2)
    codebook = vqvae.quantizer.codebook.double()
    expected = torch.cdist(rows, codebook).square().reshape(found.shape)
    largest = torch.stack([expected.max(), rows.square().sum(1).max(), codebook.square().sum(1).max()]).max()
    error = float((found - expected).abs().max() / largest)
    if not error <= DISTANCE_ERROR:  # NaN is an error too
        raise VerificationError(f"distances differ by {error:.1e} of the largest term between ONNX and PyTorch")


def _compare_pixels(vqvae: VQVAE, run: Sessions, codes: Codes, size: int) -> int:
    largest = 0.0
    for (batch,) in _batches(size, codes):
        expected = torch.round(vqvae.decode(torch.from_numpy(batch)) * 255).permute(0, 2, 3, 1).numpy()
        found = run.run("decoder", codes=batch)[0].astype(np.int64)
        largest = float(np.maximum(largest, np.abs(found - expected).max()))  # unlike max(), it keeps NaN
    if not largest <= LARGEST_PIXEL_DIFFERENCE:
        raise VerificationError(f"decoded pixels differ by {largest:.0f} of 255 levels")
    return int(largest)


def _compare_logits(prior: PixelCNN, run: Sessions, codes: Codes, labels: Codes) -> int:
    compared = 0
    for batch, label in _batches(max(1, CODES_A_BATCH // codes[0].size), codes, labels):
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


def sample_rows(
    run: Sessions,
    graph: GraphName,
    uniforms: NDArray[np.float32],
    labels: Codes,
    controls: Controls,
    known: Known | None = None,
) -> Codes:
    """The exported sampler: one call a row. uniforms (B,h,w) -> codes (B,h,w)."""
    known = known or Known.nothing(uniforms.shape)
    names = {value.name for value in run.sessions[graph].get_inputs()}
    settings = {name: value for name, value in vars(controls).items() if name in names}
    shape = next(value.shape for value in run.sessions[graph].get_inputs() if value.name == "caches")
    caches: NDArray[np.generic] = np.zeros((len(uniforms), *shape[1:]), np.float32)
    grids: dict[str, NDArray[Any]]
    grids = {"uniforms": uniforms, "known_codes": known.codes, "known_mask": known.mask}
    rows = []
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
    known = known or Known.nothing(uniforms.shape)
    shapes = {value.name: value.shape[1:] for value in run.sessions[graph].get_inputs()}
    settings = {name: value for name, value in vars(controls).items() if name in shapes}
    (bands,), (columns,) = shapes["row_exists"], shapes["uniforms"]
    shear = Shear(bands, columns, (uniforms.shape[1], uniforms.shape[2]))
    grids: dict[str, NDArray[Any]]
    grids = {"uniforms": uniforms, "known_codes": known.codes, "known_mask": known.mask}
    sheared = {name: shear.of(grid) for name, grid in grids.items()}
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
    numerators = rng.integers(0, 1 << UNIFORM_BITS, (SAMPLES, height, width))
    uniforms = (numerators / (1 << UNIFORM_BITS)).astype(np.float32)
    labels = rng.integers(0, prior.label_count + 1, SAMPLES)
    free = Controls.off(SAMPLES, prior.codebook_size)
    warm = replace(free, inverse_temperature=rng.uniform(0.5, 2, SAMPLES).astype(np.float32))
    filtered = Controls(
        warm.inverse_temperature,
        rng.integers(1, prior.codebook_size + 1, SAMPLES),
        rng.uniform(0.1, 1, SAMPLES).astype(np.float32),
    )

    def logits_of(codes: Codes, labels: Codes) -> NDArray[np.int32]:
        return run.run("prior", codes=codes, labels=labels)[0].astype(np.int32)

    nothing, some = Known.nothing(uniforms.shape), _some_known(uniforms.shape, prior.codebook_size)
    compared = 0
    cases: list[tuple[Controls, Known, tuple[GraphName, ...]]] = [
        (free, nothing, ("prior_row",)),
        (warm, some, ("prior_row_unfiltered", "prior_diagonal")),
        (filtered, some, ("prior_row", "prior_diagonal_filtered")),
    ]
    if prior.label_count:
        grid_of_guidance = rng.integers(GUIDANCE_STEPS, GUIDANCE_STEPS * LARGEST_GUIDANCE + 1, SAMPLES)
        guided = replace(filtered, guidance=(grid_of_guidance / GUIDANCE_STEPS).astype(np.float32))
        cases.append((guided, some, ("prior_row_guided",)))
    for controls, known, graphs in cases:
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


def _some_known(shape: tuple[int, ...], codebook_size: int) -> Known:
    rng = np.random.default_rng(2)
    return Known(rng.integers(0, codebook_size, shape), rng.random(shape) < KNOWN_SHARE)
