"""What a trained model is worth on a split: reconstruction error, code usage and the prior's bits per code.

In: a model and a `Split` of pictures. Out: plain numbers. MSE is the mean over pixels on [0,1], after clamping to it;
PSNR in dB follows from that MSE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.autoencoders import VAE, VQVAE
from training.data import Batch, Split
from training.jobs import to_unit
from training.prior import UNITS_PER_NAT, PixelCNN, guided_logits
from training.quantizers import perplexity
from training.runs import System

BATCH_SIZE = 250
CODES_A_BATCH = 1 << 14  # of the prior: its logits are 4 * K bytes a code


@dataclass(frozen=True)
class Reconstruction:
    mse: float
    psnr_db: float
    elbo_nats: float | None = None  # a picture, VAE and CVAE only: one sample of z a picture, drawn from the seed


def psnr_db(mse: float) -> float:
    return -10 * math.log10(max(mse, 1e-12))


def batches(images: Tensor, labels: Tensor, size: int = BATCH_SIZE) -> Iterator[Batch]:
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
    assert isinstance(split.images, Tensor)
    squares = 0.0
    for pixels, labels in batches(split.images, split.labels):
        images = to_unit(pixels)
        squares += float((reconstruct(model, images, labels) - images).double().square().sum())
    mse = squares / split.images.numel()
    return Reconstruction(mse, psnr_db(mse), elbo_nats(model, split, seed) if isinstance(model, VAE) else None)


@torch.no_grad()
def elbo_nats(model: VAE, split: Split, seed: int) -> float:
    """The mean over pictures: the same at each call, and the caller's random numbers go on as if there had been none.

    The model lies on the CPU, as every finished one does: only the CPU's generator is seeded and restored.
    """
    assert isinstance(split.images, Tensor)
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for pixels, labels in batches(split.images, split.labels):
            total += float(model(to_unit(pixels), labels).metrics["elbo"]) * len(labels)
    return total / len(split)


@torch.no_grad()
def encode_all(model: VQVAE, images: Tensor) -> Tensor:
    """Pictures uint8 (N,C,H,W) -> codes int64 (N,h,w)."""
    return torch.cat([model.encode(to_unit(pixels)) for pixels in torch.split(images, BATCH_SIZE)])


def histogram(codes: Tensor, codebook_size: int) -> Tensor:
    """(K,) int64: how often each code occurs."""
    return torch.bincount(codes.flatten(), minlength=codebook_size)


def code_perplexity(codes: Tensor, codebook_size: int) -> float:
    return float(perplexity(histogram(codes, codebook_size)))


@torch.no_grad()
def bits_per_code(prior: PixelCNN, codes: Tensor, labels: Tensor) -> float:
    """The prior's cross entropy on codes (N,h,w), in bits a code."""
    size = max(1, CODES_A_BATCH // (codes.shape[1] * codes.shape[2]))
    nats = sum(float(prior.loss(part, label)) * len(part) for part, label in batches(codes, labels, size))
    return nats / len(codes) / math.log(2)


@torch.no_grad()
def sample_codes(
    prior: PixelCNN, labels: Tensor, height: int, width: int, generator: torch.Generator, guidance: float = 1.0
) -> Tensor:
    """Draw codes (B,h,w) in raster order, one forward a code: slow and plainly right, as the service's sampler is not.

    A code depends on no row further up than the vertical stack reaches, so only these rows are computed. `guidance`
    other than 1 (`training.prior.guided_logits`) takes two forwards.
    """
    device = prior.embedding.device
    codes = torch.zeros(len(labels), height, width, dtype=torch.int64, device=device)
    for row in range(height):
        top = max(0, row - 1 - len(prior.vertical))
        for column in range(width):
            logits = prior(codes[:, top : row + 1], labels.to(device))[:, -1, column]  # (B,K)
            if guidance != 1:
                nobody = torch.full_like(labels, prior.label_count).to(device)
                logits = guided_logits(logits, prior(codes[:, top : row + 1], nobody)[:, -1, column], guidance)
            drawn = torch.multinomial((logits / UNITS_PER_NAT).softmax(-1).cpu(), 1, generator=generator)
            codes[:, row, column] = drawn[:, 0].to(device)
    return codes
