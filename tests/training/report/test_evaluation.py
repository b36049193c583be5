"""Reconstruction errors of pictures, against numbers that were worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.training.models.test_autoencoders import networks
from training.config import AutoencoderConfig
from training.data import Split
from training.models.autoencoders import VAE, VQVAE, Autoencoder
from training.models.building import build_autoencoder
from training.models.prior import PixelCNN
from training.models.quantizers import EMAQuantizer
from training.report import evaluation
from training.report.evaluation import (
    bits_per_code,
    bound,
    code_perplexity,
    encode_all,
    grids_a_batch,
    histogram,
    measure_reconstruction,
    pictures_a_batch,
    psnr_db,
    reconstruct,
    sample_codes,
)

LABELS = torch.tensor([0, 1, 2, 0, 2])


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
    model = build_autoencoder(AutoencoderConfig(system="ae", channels=2), (1, height, width), 0)
    assert pictures_a_batch(model, height, width) == pictures


@pytest.mark.parametrize(
    ("downsampling", "codebook_size", "pictures", "grids"),
    [(8, 512, 250, 64), (4, 512, 128, 16), (2, 512, 32, 4), (4, 8192, 8, 4), (4, 1 << 20, 1, 1)],
)
def test_a_batch_has_fewer_of_larger_codebooks(
    downsampling: int, codebook_size: int, pictures: int, grids: int
) -> None:
    """The distances of a batch to 8,192 vectors took 17 GB, after a training that had fitted into 2."""
    quantizer = {"codebook_size": codebook_size}
    values = {"channels": 2, "dimension": 1, "downsampling": downsampling, "quantizer": quantizer}
    model = build_autoencoder(AutoencoderConfig.model_validate(values), (3, 128, 128), 0)
    assert pictures_a_batch(model, 128, 128) == pictures
    assert grids_a_batch((128 // downsampling) ** 2, codebook_size) == grids


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
    assert sizes == [2, 2, 2, 2]


# weights and orders, by hand


FIVE = Split(torch.tensor([0, 0, 0, 0, 255], dtype=torch.uint8).repeat_interleave(32).reshape(5, 1, 4, 8), LABELS)


@pytest.fixture
def four_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 4)


@pytest.mark.usefixtures("four_a_batch")
def test_each_picture_counts_as_much_though_the_last_batch_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors 0, 0, 0, 0 and 1: a mean of the two batches' means is 1/2."""
    seen: list[Tensor] = []

    def black(model: object, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return torch.zeros_like(images)

    monkeypatch.setattr(evaluation, "reconstruct", black)
    found = measure_reconstruction(Autoencoder(*networks()), FIVE, seed=0)
    assert found.mse == pytest.approx(0.2)
    assert found.psnr_db == pytest.approx(6.9897, abs=1e-4)  # 10 log10 5
    assert found.elbo_nats is None
    assert [labels.tolist() for labels in seen] == [[0, 1, 2, 0], [2]]


class Told:
    """A VAE whose numbers are the means of what it is shown, and random ones."""

    log_variance = torch.tensor(math.log(0.25))

    def __init__(self) -> None:
        self.drawn: list[float] = []
        self.labels: list[list[int]] = []

    def __call__(self, images: Tensor, labels: Tensor) -> Any:
        self.drawn.append(float(torch.rand(())))
        self.labels.append(labels.tolist())
        metrics = {"mse": images.mean() / 2, "kl": labels.float().mean(), "elbo": -10 * images.mean()}
        return SimpleNamespace(metrics=metrics)


@pytest.mark.usefixtures("four_a_batch")
def test_the_bound_is_a_mean_over_pictures_each_with_a_sample_of_its_own() -> None:
    told = Told()
    found = bound(cast(VAE, told), FIVE, seed=3)
    assert (found.elbo_nats, found.kl_nats) == pytest.approx((-2, 1))
    assert found.decoder_sigma == pytest.approx(0.5)
    assert found.best_sigma == pytest.approx(math.sqrt(0.1))
    assert found.best_elbo_nats == pytest.approx(-16 * (math.log(2 * math.pi * 0.1) + 1) - 1)  # 32 pixels
    assert told.labels == [[0, 1, 2, 0], [2]]
    torch.manual_seed(3)
    assert told.drawn == [float(torch.rand(())) for _ in range(2)]


def test_no_error_at_all_has_a_finite_bound() -> None:
    blank = Split(torch.zeros(5, 1, 4, 8, dtype=torch.uint8), LABELS)
    assert bound(cast(VAE, Told()), blank, seed=0).best_sigma == pytest.approx(1e-6)


@pytest.mark.parametrize(("codes_a_batch", "sizes"), [(9, [4, 1]), (1, [1] * 5)])
def test_bits_a_code_are_a_mean_over_pictures(
    monkeypatch: pytest.MonkeyPatch, codes_a_batch: int, sizes: list[int]
) -> None:
    """Grids of two codes: of nine codes, a batch has four; a grid beyond the limit is a batch of its own."""
    asked: list[Tensor] = []

    class Sure:
        """That a code is 0, but where it is 1: there both are as likely."""

        codebook_size = 2

        def __call__(self, codes: Tensor, labels: Tensor) -> Tensor:
            asked.append(labels)
            return torch.stack([torch.where(codes == 1, 0.0, 3000.0), torch.zeros(codes.shape)], -1)

    monkeypatch.setattr(evaluation, "CODES_A_BATCH", codes_a_batch)
    prior = cast(PixelCNN, Sure())
    codes = torch.tensor([0, 0, 0, 0, 1]).reshape(5, 1, 1).expand(5, 1, 2)
    assert bits_per_code(prior, codes, LABELS) == pytest.approx(0.2)
    assert [len(labels) for labels in asked] == sizes
    assert torch.equal(torch.cat(asked), LABELS)


@pytest.mark.parametrize(
    ("codebook_size", "bits", "others"), [(512, 0.0, 0.0002), (2048, 0.006, 0.004), (8192, 0.087, 0.06)]
)
def test_bits_a_code_are_what_a_container_takes(codebook_size: int, bits: float, others: float) -> None:
    """A sure prior of a large codebook was told to cost nothing: no code has less than frequency 1."""

    def logits(codes: Tensor, _: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(codes, codebook_size) * 1e6

    logits.codebook_size = codebook_size  # type: ignore[attr-defined]
    found = bits_per_code(cast(PixelCNN, logits), torch.ones(5, 1, 2, dtype=torch.int64), LABELS)
    assert found == pytest.approx(bits, abs=5e-4)
    assert 1 - 2**-found == pytest.approx(others, rel=0.25)  # what docs/generation.md says is drawn all the same


def test_a_histogram_counts_codes_and_those_that_never_occur() -> None:
    codes = torch.tensor([[0, 2], [2, 4]])
    assert histogram(codes, 6).tolist() == [1, 0, 2, 0, 1, 0]
    assert code_perplexity(codes, 6) == pytest.approx(2**1.5)  # an entropy of 1/4 * 2 + 1/2 * 1 + 1/4 * 2 bits


@pytest.mark.usefixtures("four_a_batch")
def test_codes_have_the_order_of_their_pictures() -> None:
    model = cast(VQVAE, SimpleNamespace(encode=lambda images: (images[:, 0, :1, :2] * 51).long()))
    assert encode_all(model, FIVE.images).tolist() == [[[0, 0]]] * 4 + [[[51, 51]]]


def test_a_picture_of_a_cvae_is_reconstructed_with_its_own_label() -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(system="cvae", channels=8, latent_dimension=4), (1, 8, 8), 3)
    images = torch.rand(3, 1, 8, 8)
    together = reconstruct(model, images, torch.arange(3))
    assert together.min() >= 0 and together.max() <= 1
    for index in range(3):
        alone = [reconstruct(model, images[index : index + 1], torch.tensor([label]))[0] for label in range(3)]
        torch.testing.assert_close(together[index], alone[index])
        assert all((together[index] - other).abs().max() > 1e-3 for label, other in enumerate(alone) if label != index)


def prior_that_says(logits: Callable[[Tensor], Tensor], label_count: int) -> Any:
    """A prior with the logits (B,K) of its labels, whatever the codes are."""
    return SimpleNamespace(
        label_count=label_count,
        vertical=[],
        horizontal=[],
        embedding=torch.zeros(1),
        quantized_embedding=lambda: torch.zeros(3, 1),
        label_biases=lambda labels: labels,
        down_rows=lambda above, labels: [above],
        along_rows=lambda seen, contexts, labels: logits(labels)[:, None, None].expand(-1, *seen.shape[1:3], -1),
    )


def test_guidance_goes_away_from_the_logits_of_no_label() -> None:
    """Code 0 by label 0, code 2 by none: at guidance 2 code 0 loses to code 1, which only the guided logits prefer."""
    logits = {0: [6000.0, 5500.0, 0.0], 1: [0.0, 0.0, 6000.0], 2: [6000.0, 0.0, 6000.0]}  # 64 a nat
    asked: list[int] = []

    def said(labels: Tensor) -> Tensor:
        asked.append(int(labels[0]))
        return torch.tensor([logits[label] for label in labels.tolist()])

    told = prior_that_says(said, label_count=2)
    for guidance, code, labels in ((1.0, 0, [0, 0]), (2.0, 1, [0, 2, 0, 2])):
        asked.clear()
        drawn = sample_codes(told, torch.tensor([0]), 1, 2, torch.Generator().manual_seed(0), guidance)
        assert drawn.tolist() == [[[code, code]]] and asked == labels


def test_a_nat_is_64_units_of_logits() -> None:
    """64 ln 3 units are odds of 3: with others, some of these samples would be other codes."""
    told = prior_that_says(lambda labels: torch.tensor([0.0, 64 * math.log(3)]).expand(len(labels), 2), label_count=0)
    labels = torch.zeros(10_000, dtype=torch.int64)
    drawn = sample_codes(told, labels, 1, 1, torch.Generator().manual_seed(0))
    chances = torch.tensor([0.25, 0.75]).expand(10_000, 2)
    assert torch.equal(drawn[:, 0], torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(0)))


def test_no_code_is_drawn_without_a_code_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine rows the vertical stack sees three above, of eight columns the horizontal one three to the left; samples
    of weak weights were the same with two rows."""
    torch.manual_seed(0)
    prior = PixelCNN(8, 0, channels=8, vertical_layers=2, horizontal_layers=1, head_channels=16)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(4)
    asked: list[Tensor] = []
    along_rows = PixelCNN.along_rows

    def told(self: PixelCNN, *given: Any) -> Tensor:
        logits = along_rows(self, *given)
        asked.append(logits[:, 0, -1])
        return logits

    labels = torch.zeros(3, dtype=torch.int64)
    with monkeypatch.context() as patch:
        patch.setattr(PixelCNN, "along_rows", told)
        codes = sample_codes(prior, labels, 9, 8, torch.Generator().manual_seed(4))
    whole = prior(codes, labels).flatten(1, 2)
    assert len(asked) == 72
    assert all(torch.equal(logits, whole[:, index]) for index, logits in enumerate(asked))


def test_a_sample_of_a_wide_grid_takes_no_more_work_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each code was a forward over the whole width: ten minutes for a grid of 4 x 1028."""
    prior, sizes = PixelCNN(8, channels=8, vertical_layers=2, horizontal_layers=2, head_channels=16), []
    rows, columns = PixelCNN.down_rows, PixelCNN.along_rows

    def down(self: PixelCNN, embedded: torch.Tensor, *others: Any) -> Any:
        sizes.append((embedded.shape[1], "rows"))
        return rows(self, embedded, *others)

    def along(self: PixelCNN, embedded: torch.Tensor, *others: Any) -> Any:
        sizes.append((embedded.shape[1] * embedded.shape[2], "columns"))
        return columns(self, embedded, *others)

    monkeypatch.setattr(PixelCNN, "down_rows", down)
    monkeypatch.setattr(PixelCNN, "along_rows", along)
    sample_codes(prior, torch.zeros(1, dtype=torch.int64), 6, 40, torch.Generator())
    assert max(sizes) == (2 * 2 + 2, "columns")
    assert [size for size, what in sizes if what == "rows"] == [1, 2, 3, 4, 4, 4]
