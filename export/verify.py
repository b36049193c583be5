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

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from export.reference_sampler import Codes
from export.sessions import Sessions, VerificationError, batches
from export.verify_prior import SAMPLES, compare_logits, compare_pixel_by_pixel, compare_samplers
from service.bundle.fields import GraphName, Parity
from training.models.autoencoders import VQVAE
from training.models.prior import PixelCNN
from training.models.scalar_quantizer import FiniteScalarQuantizer
from training.report.evaluation import grids_a_batch, pictures_a_batch

Pictures = NDArray[np.uint8]
# of codes and pixels, as `export.device_parity` has them, which cannot import what needs PyTorch
LARGEST_PIXEL_DIFFERENCE = 1  # of 255: the two sides may round a half differently
CODES_PER_DIFFERENCE = 10_000
NEAR_TIE_OF_SUM = 1e-3  # of the squared distance: float32 convolutions in another order differ by less
DISTANCE_ERROR = 1e-5  # of the largest term: |z|^2 + |e|^2 - 2 z.e cancels, which leaves the error of float32 there


def to_torch(pictures: Pictures) -> torch.Tensor:
    """uint8 (B,H,W,C) -> float32 (B,C,H,W) in [0,1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


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
    size = pictures_a_batch(vqvae, *pictures.shape[1:3])
    codes = np.concatenate([vqvae.encode(to_torch(batch)).numpy() for (batch,) in batches(size, pictures)])  # type: ignore[arg-type]
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
    compared = compare_logits(prior, run, codes, labels)
    few = min(SAMPLES, grids_a_batch(codes[0].size, prior.codebook_size))
    compare_pixel_by_pixel(run, codes[:few], labels[:few])
    sampled = compare_samplers(run, table, codes.shape[1:], prior)
    return parity.model_copy(update={"prior_logits_compared": compared, "sampled_codes_compared": sampled})


def _compare_codes(vqvae: VQVAE, run: Sessions, pictures: Pictures, codes: Codes, size: int) -> int:
    different = 0
    for batch, expected in batches(size, pictures, codes):
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
    near = (one - other).abs() <= NEAR_TIE_OF_SUM * (one + other)  # false for NaN
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
    for (batch,) in batches(size, codes):
        expected = torch.round(vqvae.decode(torch.from_numpy(batch)) * 255).permute(0, 2, 3, 1).numpy()
        found = run.run("decoder", codes=batch)[0].astype(np.int64)
        largest = float(np.maximum(largest, np.abs(found - expected).max()))  # unlike max(), it keeps NaN
    if not largest <= LARGEST_PIXEL_DIFFERENCE:
        raise VerificationError(f"decoded pixels differ by {largest:.0f} of 255 levels")
    return int(largest)
