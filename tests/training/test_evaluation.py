"""Reconstruction errors of pictures, against numbers that were worked out by hand."""

from __future__ import annotations

import pytest
import torch

from tests.training.test_autoencoders import networks
from training.autoencoders import VAE, VQVAE, Autoencoder
from training.config import AutoencoderConfig
from training.data import Split
from training.evaluation import encode_all, measure_reconstruction, pictures_a_batch, psnr_db
from training.quantizers import EMAQuantizer
from training.runs import build_autoencoder


class Far(torch.nn.Module):
    """Decodes everything to pixels far outside [0, 1]."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = latents.shape
        return torch.tensor([-3.0, 5.0]).repeat(2 * width)[None, None, None].expand(batch, 1, 4 * height, 4 * width)


def test_pictures_are_clamped_before_they_are_compared() -> None:
    """Half of the pixels become 0 and half 1, of pictures that are all 0.2: half of 0.2^2 + 0.8^2."""
    pixels = torch.full((253, 1, 4, 8), 51, dtype=torch.uint8)  # more than a batch, and an odd rest
    split = Split(pixels, torch.zeros(253, dtype=torch.int64))
    encoder, _ = networks()
    far: torch.nn.Module = Far()
    for model in (
        Autoencoder(encoder, far),  # type: ignore[arg-type]
        VAE(encoder, far, grid=(4, 1, 2), latent_dimension=3),  # type: ignore[arg-type]
        VQVAE(encoder, EMAQuantizer(8, 4), far),  # type: ignore[arg-type]
    ):
        found = measure_reconstruction(model, split, seed=0)
        assert found.mse == pytest.approx((0.2**2 + 0.8**2) / 2, rel=1e-6)
        assert found.psnr_db == pytest.approx(psnr_db(found.mse))


def test_psnr_is_in_decibels_and_finite() -> None:
    assert psnr_db(1e-7) == pytest.approx(70)
    assert psnr_db(0) == pytest.approx(120)


@pytest.mark.parametrize(
    ("height", "width", "pictures"), [(28, 28, 250), (128, 128, 250), (128, 256, 125), (1024, 768, 5), (4096, 4096, 1)]
)
def test_a_batch_has_fewer_of_larger_pictures(height: int, width: int, pictures: int) -> None:
    assert pictures_a_batch(height, width) == pictures


def test_large_pictures_are_encoded_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """250 photographs of 12 megapixels took 250 GB."""
    sizes = []

    def encode(model: VQVAE, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return torch.zeros(len(images), 1, 1, dtype=torch.int64)

    monkeypatch.setattr(VQVAE, "encode", encode)
    model = build_autoencoder(AutoencoderConfig(channels=8), (1, 1024, 1024), 0)
    assert isinstance(model, VQVAE)
    assert encode_all(model, torch.zeros(8, 1, 1024, 1024, dtype=torch.uint8)).shape == (8, 1, 1)
    assert sizes == [3, 3, 2]
