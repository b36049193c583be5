"""What the sheets show and what metrics.json says, with models that answer what they are asked."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tests.training.conftest import RESULT_FILES, tiny_config
from training import report
from training.config import AutoencoderConfig, QuantizerConfig
from training.data import DataSet, Split, load_data
from training.models.autoencoders import VQVAE, Autoencoder
from training.models.building import build_autoencoder
from training.models.prior import PixelCNN
from training.models.scalar_quantizer import FiniteScalarQuantizer
from training.report import draw_reconstructions, draw_samples, measure
from training.report.evaluation import bound
from training.runs import load_run


def numbered(count: int, labels: int = 3) -> Split:
    """Pictures of 4 x 6 pixels, each of its own number; their labels go round."""
    numbers = torch.arange(count, dtype=torch.uint8)
    return Split(numbers[:, None, None, None].expand(-1, 1, 4, 6), torch.arange(count) % labels)


def values(drawn: NDArray[np.uint8]) -> list[list[int]]:
    """The upper left pixel of each picture of 4 x 6."""
    found: list[list[int]] = drawn[2::6, 2::8, 0].tolist()
    return found


# reconstructions


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (5, [range(5)]),
        (8, [range(8)]),
        (15, [range(0, 15, 2)]),
        (16, [range(8), range(8, 16)]),
        (40, [[0, 2, 5, 7, 10, 13, 15, 18], [20, 23, 26, 28, 31, 33, 36, 39]]),
    ],
)
def test_originals_are_above_what_is_made_of_them_by_their_labels(
    monkeypatch: pytest.MonkeyPatch, count: int, shown: list[Sequence[int]]
) -> None:
    """From the first to the last: the first ones alone are of one label, or tiles of one photograph."""
    sizes: list[int] = []

    def made(model: object, images: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(images))
        return images + (100 + labels)[:, None, None, None] / 255

    monkeypatch.setattr(report, "reconstruct", made)
    monkeypatch.setattr(report, "pictures_a_batch", lambda model, height, width: 3)
    drawn = draw_reconstructions(cast(Autoencoder, nn.Linear(1, 1)), numbered(count))
    expected = [row for numbers in shown for row in (list(numbers), [n + 100 + n % 3 for n in numbers])]
    assert values(drawn) == expected
    assert max(sizes) == 3, "a sheet takes no more memory than a measurement"


def vqvae(**quantizer: Any) -> VQVAE:
    torch.manual_seed(0)
    section = QuantizerConfig(codebook_size=7, **quantizer)
    model = build_autoencoder(AutoencoderConfig(channels=4, dimension=3, quantizer=section), (1, 4, 4), 3)
    assert isinstance(model, VQVAE)
    return model.eval()


def test_fsq_quantizes_from_the_first_sheet_on() -> None:
    """It has no codebook to start, and is drawn as it decodes."""
    model = vqvae(kind="fsq", levels=(3, 3))
    assert isinstance(model.quantizer, FiniteScalarQuantizer)
    split = Split(torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    assert isinstance(split.images, Tensor)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # loud enough that quantizing is seen
        images = split.images / 255
        plain = model.decoder(model.encoder(images)).clamp(0, 1)
    expected, unquantized = ((made[:, 0, 0, 0] * 255).round() for made in (model.decode(model.encode(images)), plain))
    assert draw_reconstructions(model, split)[8, 2::6, 0].tolist() == expected.tolist() != unquantized.tolist()


# samples


@pytest.mark.parametrize(
    ("label_count", "grid", "labels"),
    [
        (3, (2, 3), range(3)),
        (12, (2, 3), range(10)),
        (0, (16, 16), [0] * 10),  # the number after the last label: none
        (3, (1, 257), [0]),
        (0, (257, 1), [0]),
    ],
)
def test_samples_have_a_row_a_label(
    monkeypatch: pytest.MonkeyPatch, label_count: int, grid: tuple[int, int], labels: list[int]
) -> None:
    asked: list[Any] = []

    def drawn(prior: object, labels: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
        asked.append((height, width, generator.initial_seed()))
        return labels

    class Painter(nn.Linear):
        def decode(self, codes: Tensor) -> Tensor:
            return (codes / 255)[:, None, None, None].expand(-1, 1, 4, 6)

    monkeypatch.setattr(report, "sample_codes", drawn)
    prior = cast(PixelCNN, SimpleNamespace(label_count=label_count))
    assert values(draw_samples(prior, cast(VQVAE, Painter(1, 1)), grid, seed=9)) == [[label] * 8 for label in labels]
    assert asked == [(*grid, 9)]


# numbers


def noise(count: int, labels: int = 3) -> DataSet:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 12), dtype=torch.uint8, generator=random)
    split = Split(pixels, torch.arange(count) % labels)
    return DataSet(split.select([0]), split.select([0, 1]), split, ("a", "b", "c")[:labels], (), (1, 8, 12), "")


def noisy_prior(label_count: int) -> PixelCNN:
    torch.manual_seed(1)
    prior = PixelCNN(7, label_count, channels=4, vertical_layers=1, horizontal_layers=1, head_channels=8)
    with torch.no_grad():
        prior.label_bias.normal_(0, 1)
        prior.head.weight.mul_(4)
    return prior


def bits(prior: PixelCNN, codes: Tensor, labels: Tensor) -> float:
    """The cross entropy in numpy."""
    with torch.no_grad():
        logits = prior(codes, labels).double().numpy() / 64
    chosen = np.take_along_axis(logits, codes.numpy()[..., None], -1)[..., 0]
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - chosen)) / math.log(2)


def test_codes_have_more_bits_for_a_prior_that_is_not_told_their_labels() -> None:
    """No label is the number after the last one, and not the first label."""
    data, prior, model = noise(6), noisy_prior(3), vqvae()
    assert isinstance(data.test.images, Tensor)
    images = data.test.images / 255
    with torch.no_grad():
        model.quantizer.codebook.copy_(model.encoder(images)[:, :, 0, 0].repeat(2, 1)[:7])
    codes = model.encode(images)
    assert len(codes.unique()) > 3  # type: ignore[no-untyped-call]
    metrics = measure(tiny_config(), data, model, prior)
    found = [metrics["quality"][name] for name in ("bits_per_code", "bits_per_code_unlabelled")]
    expected = [bits(prior, codes, labels) for labels in (data.test.labels, torch.full((6,), 3))]
    assert found == pytest.approx(expected, rel=1e-5)  # float32 sums in another order
    assert abs(expected[0] - expected[1]) > 0.01 < abs(expected[1] - bits(prior, codes, torch.zeros(6).long()))
    counts = np.bincount(codes.numpy().ravel(), minlength=7) / codes.numel()
    assert metrics["quality"]["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in counts if p)))
    mse = np.mean((model.decode(codes) - images).double().numpy() ** 2)
    assert metrics["quality"]["mse"] == pytest.approx(mse) == metrics["test"]["mse"]
    assert metrics["quality"]["psnr_db"] == pytest.approx(-10 * math.log10(mse)) == metrics["test"]["psnr_db"]
    assert metrics["test"]["pictures"] == metrics["quality"]["pictures"] == 6


def test_only_a_prior_with_labels_can_go_without_them() -> None:
    quality = measure(tiny_config(), noise(6, labels=1), vqvae(), noisy_prior(0))["quality"]
    assert quality["bits_per_code"] > 0 and quality["bits_per_code_unlabelled"] is None
    quality = measure(tiny_config(), noise(6), vqvae(), None)["quality"]
    assert quality["bits_per_code"] is None and quality["bits_per_code_unlabelled"] is None


def test_the_bound_is_drawn_from_the_seed_of_the_run() -> None:
    torch.manual_seed(0)
    model: Any = build_autoencoder(AutoencoderConfig(system="vae", channels=4, latent_dimension=3), (1, 8, 12), 3)
    data = noise(6)
    found = [measure(tiny_config(f"trainer.seed={seed}"), data, model, None)["test"]["elbo_nats"] for seed in (1, 7)]
    assert found == [bound(model, data.test, seed).elbo_nats for seed in (1, 7)] and found[0] != found[1]


def test_the_histogram_counts_the_codes_of_the_training_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "encode_all", lambda model, images: images[:, 0, ::4, ::3].long())  # two codes each
    model = cast(VQVAE, SimpleNamespace(quantizer=SimpleNamespace(codebook_size=6)))
    train, other = numbered(5).select([0, 4, 4, 2]), numbered(5)
    data = DataSet(train, other, other, (), (), (1, 4, 6), "")
    assert report._training_histogram(tiny_config(), data, model) == [2, 0, 2, 0, 4, 0]


def test_a_run_is_finished_only_when_its_sheets_are_drawn(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """metrics.json, which says so, is the last file of a run."""
    run, calls = load_run(tiny_run), []

    def full(pixels: object, path: Path) -> None:
        calls.append(path.name)
        raise OSError("No space left on device")

    monkeypatch.setattr(report, "write_png", full)
    shutil.copy(tiny_run / "progress.json", tmp_path)
    with pytest.raises(OSError, match="No space"):
        report.write_report(run.config, load_data(run.config.data), run.autoencoder, run.prior, tmp_path)
    assert calls == ["reconstructions.png"] and not (tmp_path / "metrics.json").exists()


def test_the_sheets_of_a_run_show_its_test_pictures_and_samples(tiny_run: Path) -> None:
    run = load_run(tiny_run)
    assert isinstance(run.autoencoder, VQVAE) and run.prior is not None
    with Image.open(tiny_run / "reconstructions.png") as picture:
        drawn = np.asarray(picture)
    originals = load_data(run.config.data).test.images
    for place, index in enumerate(np.linspace(0, len(originals) - 1, 16).astype(int)):
        top, left = 2 + 60 * (place // 8), 2 + 30 * (place % 8)
        assert np.array_equal(drawn[top : top + 28, left : left + 28], originals[int(index)][0])
    with Image.open(tiny_run / "samples.png") as picture:
        samples = draw_samples(run.prior, run.autoencoder, (7, 7))[..., 0].astype(int)
        # another memory layout sums in another order: a pixel may be rounded to the next level
        assert np.abs(np.asarray(picture).astype(int) - samples).max() <= 1


def test_evaluate_draws_the_sheets_anew(tiny_run: Path, tmp_path: Path) -> None:
    for name in RESULT_FILES:
        shutil.copy(tiny_run / name, tmp_path)
    report.evaluate(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"reconstructions.png", "samples.png"}


def test_other_data_has_the_name_of_its_folder_however_it_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in RESULT_FILES:
        shutil.copy(tiny_run / name, tmp_path)
    own = load_data(load_run(tiny_run).config.data)
    data = replace(own, test=own.test.select(range(8)), digest="0123456789abcdef")
    monkeypatch.setattr(report, "load_to_measure", lambda config, digest: data)
    (tmp_path / "holiday").mkdir()
    monkeypatch.chdir(tmp_path / "holiday")
    metrics, path = report.evaluate(tmp_path, ".")
    assert path == tmp_path / "metrics-holiday-01234567.json" and metrics["source"] == "."
    assert metrics["data"] == report._facts(data) and metrics["commit"] == report._commit()
    assert (tmp_path / "reconstructions-holiday-01234567.png").exists()


def test_the_facts_of_a_run_are_those_of_its_data() -> None:
    data = DataSet(numbered(5), numbered(4), numbered(3), ("a",), ("b.png: no picture",), (1, 4, 6), "digest")
    assert report._facts(data) == {
        "picture": [1, 4, 6],
        "labels": ["a"],
        "pictures": {"train": 5, "validation": 4, "test": 3},
        "skipped": ["b.png: no picture"],
        "digest": "digest",
    }


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_a_checkout_that_has_this_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> None:
        settings = (
            "user.name=Somebody",
            "user.email=somebody@example.org",
            "commit.gpgsign=false",
            "tag.gpgsign=false",
        )
        options = [word for setting in settings for word in ("-c", setting)]
        subprocess.run(["git", "-C", str(tmp_path), *options, *words], check=True, capture_output=True)

    file = tmp_path / "report.py"
    file.write_text("one")
    monkeypatch.setattr(report, "__file__", str(file))
    assert report._commit() is None
    git("init")
    git("commit", "--allow-empty", "--message", "another project's")
    assert report._commit() is None
    git("add", "report.py")
    git("commit", "--message", "ours")
    git("tag", "v1", "--annotate", "--message", "one")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert report._commit() == head.stdout.strip()
    file.write_text("two")
    assert report._commit() == f"{head.stdout.strip()}-dirty"
