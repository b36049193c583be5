"""What a trained model is worth on a split: reconstruction error, code usage and the prior's bits per code.

In: a model and a `Split` of pictures. Out: plain numbers. MSE is the mean over pixels on [0,1], after clamping to it;
PSNR in dB follows from that MSE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from training.data import Batch, Split, to_unit
from training.models.autoencoders import VAE, VQVAE
from training.models.building import System
from training.models.frequencies import frequency_table
from training.models.prior import UNITS_PER_NAT, PixelCNN, guided_logits
from training.models.quantizers import perplexity

BATCH_SIZE, PIXELS_A_BATCH = 250, 250 * 128 * 128  # whichever is reached first
DISTANCES_A_BATCH = 1 << 26  # of the quantizer: K a code, 4 bytes each
CODES_A_BATCH, LOGITS_A_BATCH = 1 << 14, 1 << 25  # of the prior: K logits a code, 4 bytes each


@dataclass(frozen=True)
class Bound:
    """The ELBO of a VAE or CVAE and what it is made of, in nats a picture: one sample of z each, drawn from the seed.

    With E_q[MSE] = m over D pixels it is -D/2 (m / sigma'^2 + log(2 pi sigma'^2)) - KL. The best sigma'^2 for the same
    encoder and means is m (arXiv:2006.13202); training only moves towards it, and may end before it is there.
    """

    elbo_nats: float  # at the learned sigma'
    kl_nats: float
    decoder_sigma: float  # sigma' of p(x|z) as learned
    best_sigma: float
    best_elbo_nats: float  # at the best sigma'


BOUND = tuple(field.name for field in fields(Bound))


@dataclass(frozen=True)
class Reconstruction:
    """The bound is None where the system has none: only VAE and CVAE do."""

    mse: float
    psnr_db: float
    elbo_nats: float | None = None
    kl_nats: float | None = None
    decoder_sigma: float | None = None
    best_sigma: float | None = None
    best_elbo_nats: float | None = None


def psnr_db(mse: float) -> float:
    """10 log10(1 / MSE), of pixels on [0,1]; at most 120 dB."""
    return -10 * math.log10(max(mse, 1e-12))


def pictures_a_batch(model: System, height: int, width: int) -> int:
    """As many as have room in memory beside what the networks make of them: that grows with the pixels, and where they
    have codes with the distances of these to all vectors of the codebook, h*w*K."""
    most = min(BATCH_SIZE, PIXELS_A_BATCH // (height * width))
    if isinstance(model, VQVAE):
        codes = height * width // model.encoder.downsampling**2
        most = min(most, DISTANCES_A_BATCH // (codes * model.quantizer.codebook_size))
    return max(1, most)


def grids_a_batch(codes: int, codebook_size: int) -> int:
    """As many grids of so many codes as the prior takes at once."""
    return max(1, min(CODES_A_BATCH, LOGITS_A_BATCH // codebook_size) // codes)


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
    return zip(torch.split(images, size), torch.split(labels, size), strict=True)


def reconstruct(model: System, images: Tensor, labels: Tensor) -> Tensor:
    """Pictures (B,C,H,W) in [0,1] -> what the decoder makes of their codes, or of the mean of q(z|x)."""
    if isinstance(model, VQVAE):
        return model.decode(model.encode(images))
    if isinstance(model, VAE):
        return model.decode(model.posterior(images, labels)[0], labels).clamp(0, 1)
    return model.decoder(model.encoder(images)).clamp(0, 1)  # type: ignore[no-any-return]


@torch.no_grad()
def measure_reconstruction(model: System, split: Split, seed: int) -> Reconstruction:
    """Of all pictures of the split, as one mean over all of their pixels; `seed` draws the z of a bound."""
    assert isinstance(split.images, Tensor)
    squares = 0.0
    for pixels, labels in batches(split.images, split.labels, pictures_a_batch(model, *split.images.shape[2:])):
        images = to_unit(pixels)
        squares += float((reconstruct(model, images, labels) - images).double().square().sum())
    mse = squares / split.images.numel()
    return Reconstruction(mse, psnr_db(mse), **(asdict(bound(model, split, seed)) if isinstance(model, VAE) else {}))


@torch.no_grad()
def bound(model: VAE, split: Split, seed: int) -> Bound:
    """The means over pictures: the same at each call, and the caller's random numbers go on as if there had been none.

    The model lies on the CPU, as every finished one does: only the CPU's generator is seeded and restored.
    """
    assert isinstance(split.images, Tensor)
    totals = dict.fromkeys(("elbo", "kl", "mse"), 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for pixels, labels in batches(split.images, split.labels, pictures_a_batch(model, *split.images.shape[2:])):
            metrics = model(to_unit(pixels), labels).metrics
            totals = {name: total + float(metrics[name]) * len(labels) for name, total in totals.items()}
    elbo, kl, mse = (total / len(split) for total in totals.values())
    best_variance = max(mse, 1e-12)
    best_likelihood = -0.5 * split.images[0].numel() * (1 + math.log(2 * math.pi * best_variance))
    return Bound(
        elbo_nats=elbo,
        kl_nats=kl,
        decoder_sigma=math.exp(0.5 * float(model.log_variance)),
        best_sigma=math.sqrt(best_variance),
        best_elbo_nats=best_likelihood - kl,
    )


@torch.no_grad()
def encode_all(model: VQVAE, images: Tensor) -> Tensor:
    """Pictures uint8 (N,C,H,W) -> codes int64 (N,h,w)."""
    parts = torch.split(images, pictures_a_batch(model, *images.shape[2:]))
    return torch.cat([model.encode(to_unit(pixels)) for pixels in parts])


def histogram(codes: Tensor, codebook_size: int) -> Tensor:
    """(K,) int64: how often each code occurs."""
    return torch.bincount(codes.flatten(), minlength=codebook_size)


def code_perplexity(codes: Tensor, codebook_size: int) -> float:
    """2 to the entropy in bits of the histogram of all codes int64 (N,h,w): from 1 to K."""
    return float(perplexity(histogram(codes, codebook_size)))


@torch.no_grad()
def bits_per_code(prior: PixelCNN, codes: Tensor, labels: Tensor) -> float:
    """What codes (N,h,w) cost in a container, in bits a code: the cross entropy of the prior's frequencies, of which
    none is below 1."""
    size = grids_a_batch(codes.shape[1] * codes.shape[2], prior.codebook_size)
    table, bits = frequency_table(prior.codebook_size), 0.0
    for part, label in batches(codes, labels, size):
        logits = prior(part, label)
        distances = (logits.amax(-1, keepdim=True) - logits).clamp(max=len(table) - 1)
        frequencies = table[distances.long()].double()  # (B,h,w,K)
        own = frequencies.gather(-1, part[..., None])[..., 0]
        bits += float((frequencies.sum(-1) / own).log2().sum())
    return bits / codes.numel()


@torch.no_grad()
def sample_codes(
    prior: PixelCNN, labels: Tensor, height: int, width: int, generator: torch.Generator, guidance: float = 1.0
) -> Tensor:
    """Draw codes (B,h,w) in raster order: the vertical stack once a row, the horizontal one and the head once a code.

    Only the rows and columns within their reach are computed, anew each time: plainly right, as the service's sampler,
    which keeps what it has computed, is not. `guidance` other than 1 (`guided_logits`) takes both twice.
    """
    device = prior.embedding.device
    nobody = [] if guidance == 1 else [torch.full_like(labels, prior.label_count)]
    biases = [prior.label_biases(asked.to(device)) for asked in (labels, *nobody)]
    codes = torch.zeros(len(labels), height, width, dtype=torch.int64, device=device)
    vectors, up, left = prior.quantized_embedding(), len(prior.vertical) + 1, 2 * len(prior.horizontal) + 1
    for row in range(height):
        above = vectors[codes[:, max(0, row - up) : row + 1]]
        contexts = [[one[:, -1:] for one in prior.down_rows(above, bias)] for bias in biases]
        for column in range(width):
            near = slice(max(0, column - left), column + 1)
            seen = vectors[codes[:, row : row + 1, near]]
            logits = [
                prior.along_rows(seen, [one[:, :, near] for one in context], bias)[:, 0, -1]  # (B,K)
                for context, bias in zip(contexts, biases, strict=True)
            ]
            chosen = guided_logits(logits[0], logits[1], guidance) if nobody else logits[0]
            drawn = torch.multinomial((chosen / UNITS_PER_NAT).softmax(-1).cpu(), 1, generator=generator)
            codes[:, row, column] = drawn[:, 0].to(device)
    return codes
