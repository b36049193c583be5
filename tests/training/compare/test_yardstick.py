"""The comparison's measurements by hand: labels, guidance, seeds; nothing is trained."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.training.conftest import tiny_config
from training import compare as comparison
from training.compare import (
    GUIDANCE,
    compare,
    measure_samples,
    measure_system,
    sampler,
)
from training.compare.classifier import Classifier
from training.compare.fidelity import frechet_distance, precision_and_recall, spread_within_classes
from training.compare.yardstick import Fidelity, Yardstick
from training.config import AutoencoderConfig, ConfigError, RunConfig
from training.data import DataSet, Split
from training.models.autoencoders import VAE, Autoencoder
from training.models.building import build_autoencoder
from training.runs import Run, load_run, read_json

# the yardstick


def numbered(count: int) -> Split:
    """Grey pictures, each of its own number, which is also what their labels go round by."""
    numbers = torch.arange(count, dtype=torch.uint8)
    return Split(numbers[:, None, None, None].expand(-1, 1, 4, 4), torch.arange(count) % 3)


def picture_of(numbers: Tensor) -> Tensor:
    return (numbers / 255)[:, None, None, None].expand(-1, 1, 4, 4)


def by_number(model: object, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, n^2 / 8) and the label n % 3 of a picture of the number n."""
    numbers = (images[:, 0, 0, 0] * 255).round()
    return torch.stack([numbers, numbers.square() / 8], dim=1), numbers.long() % 3


DATA = DataSet(numbered(60), numbered(10), numbered(20), ("a", "b", "c"), (), (1, 4, 4), "digest")


def yardstick(monkeypatch: pytest.MonkeyPatch, data: DataSet = DATA, *words: str) -> Yardstick:
    monkeypatch.setattr("training.compare.yardstick.describe", by_number)
    return Yardstick(tiny_config(*words), data, cast(Classifier, nn.Identity()))


def test_the_real_pictures_measured_by_themselves_are_perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (20, 8):  # all of the test split, and some: what is compared with is what was drawn
        made = yardstick(monkeypatch, DATA, f"compare.samples={count}", "compare.neighbours=1")
        drawn = made._features[:, 0].long()
        found = made.measure(picture_of(drawn), drawn % 3)
        assert asdict(found) == {"frechet": pytest.approx(0, abs=1e-6)} | dict.fromkeys(
            ("precision", "recall", "spread", "class_agreement"), 1.0
        )
        assert made.real.class_agreement == 1  # each training picture has its own label


def test_what_is_made_is_compared_with_the_real_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    made = yardstick(monkeypatch, DATA, "compare.neighbours=1")
    numbers = torch.tensor([0, 1, 3, 4, 6, 7, 40, 41])
    features, labels = by_number(None, picture_of(numbers))
    real, real_labels = by_number(None, picture_of(torch.arange(20)))
    found = made.measure(picture_of(numbers), None)
    assert found.frechet == pytest.approx(frechet_distance(real, features), rel=1e-6)
    assert found.precision == 0.75 and 0.3 < found.recall < 0.6  # 40 and 41 do not exist, those from 8 are missing
    assert (found.precision, found.recall) == precision_and_recall(real, features, 1)
    spreads = [spread_within_classes(*pair) for pair in ((features, labels), (real, real_labels))]
    assert found.spread == pytest.approx(spreads[0] / spreads[1])
    assert found.class_agreement is None


def test_the_classifiers_accuracy_is_that_of_all_test_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = DATA.test.labels.clone()
    labels[:5] = (labels[:5] + 1) % 3
    data = replace(DATA, test=Split(DATA.test.images, labels))
    assert yardstick(monkeypatch, data, "compare.samples=4").accuracy == 0.75


def test_a_classifier_that_sees_no_difference_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a division by zero, after the training of a classifier whose units had all died."""
    alike = Split(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 3)
    with pytest.raises(ConfigError, match=r"of 35.0% accuracy, sees no difference .*lower compare\.classifier\."):
        yardstick(monkeypatch, replace(DATA, test=alike))


def test_no_more_pictures_are_measured_than_either_split_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert yardstick(monkeypatch).count == 20
    assert yardstick(monkeypatch, replace(DATA, train=numbered(15))).count == 15


def test_samples_are_asked_for_by_the_labels_of_the_pictures_and_checked_by_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were asked for by each label as often: of a data set where some are rare a perfect prior had a hundred times
    the distance of a system without labels."""
    made, asked = yardstick(monkeypatch), []

    def draw(labels: Tensor) -> Tensor:
        asked.append(labels.tolist())
        return picture_of(torch.where(labels == 1, 2, labels))

    monkeypatch.setattr(comparison, "SAMPLE_BATCH", 8)
    labels = (made._features[:, 0].long() % 3).tolist()
    assert measure_samples(draw, made).class_agreement == 13 / 20  # seven of twenty labels are 1
    assert asked == [labels[:8], labels[8:16], labels[16:]]
    assert measure_samples(draw, made, conditional=False).class_agreement is None


# samplers


def run_of(model: Any, config: RunConfig) -> Run:
    return Run(Path(), config, {}, model, None)


def test_a_prior_is_sampled_at_its_grid_and_guidance_by_one_generator(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def drawn(prior: Any, labels: Tensor, height: int, width: int, generator: Any, guidance: float) -> Tensor:
        asked.append((prior, labels, height, width, guidance, generator))
        return torch.zeros(len(labels), height, width, dtype=torch.int64)

    monkeypatch.setattr(comparison, "sample_codes", drawn)
    run = replace(load_run(tiny_run), config=tiny_config("trainer.seed=5"))
    data, labels = replace(DATA, picture=(1, 8, 12)), torch.arange(3)
    for options, guidance in (((), 1.0), ((3.0,), 3.0)):
        asked.clear()
        draw = sampler(run, data, *options)
        assert [draw(labels).shape for _ in range(2)] == [(3, 1, 8, 12)] * 2
        assert asked[0][:5] == asked[1][:5] == (run.prior, labels, 2, 3, guidance)
        assert asked[0][5] is asked[1][5] and asked[0][5].initial_seed() == 5


def test_a_cvae_draws_a_picture_of_each_label() -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(system="cvae", channels=4, latent_dimension=3)
    model = build_autoencoder(config, (1, 4, 4), 3)
    assert isinstance(model, VAE)
    draw, labels = sampler(run_of(model, tiny_config()), DATA), torch.tensor([2, 0, 1])
    torch.manual_seed(3)
    found = draw(labels)
    torch.manual_seed(3)
    latents = torch.randn(3, 3)
    torch.testing.assert_close(found, model.decode(latents, labels).clamp(0, 1))


def test_an_ae_draws_normal_latents_of_the_moments_of_the_training_pictures() -> None:
    identity = cast(Any, nn.Identity())
    draw = sampler(run_of(Autoencoder(identity, identity), tiny_config()), DATA)
    torch.manual_seed(3)
    found = draw(torch.zeros(5, dtype=torch.int64)).numpy()
    torch.manual_seed(3)
    numbers = np.arange(60) / 255
    latents = numbers.mean() + numbers.std(ddof=1) * torch.randn(5, 1, 4, 4).numpy()
    assert latents.min() < 0, "else nothing is clamped"
    np.testing.assert_allclose(found, latents.clip(0, 1), atol=1e-6)


def test_the_latents_of_an_ae_are_of_pictures_from_all_over_the_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a folder are in the order of their paths: the first 2,000 were of the first label."""
    monkeypatch.setattr(comparison, "LATENT_PICTURES", 30)
    identity = cast(Any, nn.Identity())
    draw = sampler(run_of(Autoencoder(identity, identity), tiny_config()), DATA)
    monkeypatch.setattr(torch, "randn", torch.zeros)
    assert abs(float(draw(torch.zeros(1, dtype=torch.int64)).mean()) * 255 - 29.5) < 7, "the first thirty have 14.5"


# one system


def test_the_numbers_of_a_system_are_those_of_its_run(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fidelity, told = Fidelity(1.0, 0.5, 0.25, 0.75, 0.125), []

    def measured(draw: object, yardstick: object, *, conditional: bool) -> Fidelity:
        told.append(conditional)
        return fidelity

    monkeypatch.setattr(comparison, "measure_samples", measured)
    monkeypatch.setattr(comparison, "sampler", lambda run, data: picture_of)
    run = load_run(tiny_run)
    found = measure_system(run, replace(DATA, picture=(1, 28, 20)), cast(Any, None), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet)[2::6, 2::6].tolist() == [[label] * 10 for label in range(3)]
    first, second = (load_file(tiny_run / f"{stage}.safetensors") for stage in ("autoencoder", "prior"))
    learned = [tensor for name, tensor in first.items() if not name.startswith("quantizer.")]
    assert found["parameters"] == sum(tensor.numel() for tensor in learned) + 16 * 8  # and the codebook
    assert found["prior_parameters"] == sum(tensor.numel() for tensor in second.values())
    assert (found["steps"], found["prior_steps"]) == (50, 30)
    quality = run.metrics["quality"]
    assert {name: found[name] for name in ("mse", "psnr_db", "perplexity", "bits_per_code")} == {
        name: quality[name] for name in ("mse", "psnr_db", "perplexity", "bits_per_code")
    }
    assert found["bits_per_picture"] == quality["bits_per_code"] * 35
    assert found["seconds"] == sum(run.metrics["seconds"].values()) > 0
    assert {name: found[name] for name in asdict(fidelity)} == asdict(fidelity)
    without = measure_system(replace(run, prior=None), DATA, cast(Any, None), tmp_path / "sheet.png")
    assert (without["prior_parameters"], without["prior_steps"]) == (0, 0)
    for system, labels in (("vae", False), ("cvae", True)):
        model = build_autoencoder(AutoencoderConfig(system=cast(Any, system), channels=4), (1, 4, 4), 3)
        measure_system(replace(run, autoencoder=model, prior=None), DATA, cast(Any, None), tmp_path / "sheet.png")
        assert told[-1] is labels
    assert told[:2] == [True, False]


# the whole job


def test_each_system_is_measured_from_the_seed_whatever_was_trained_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call trains both systems, the second finds one of them; random numbers are all that is measured."""
    trained: list[str] = []

    def fit(config: RunConfig, folder: Path, *, resume: bool) -> None:
        trained.append(config.name)
        folder.mkdir(exist_ok=True)
        for name in ("metrics.json", "autoencoder.safetensors", "prior.safetensors"):
            (folder / name).touch()
        torch.rand(len(trained))

    def measured(draw: Any, yardstick: object) -> Fidelity:
        return Fidelity(draw, 0, 0, 0, None)

    fake: Any = SimpleNamespace(count=20, accuracy=0.5, real=Fidelity(1, 2, 3, 4, None))
    replaced = {
        "load_data": lambda config, begun: DATA,
        "_require_comparable": lambda config, data: None,
        "variants": lambda config, data: {name: config.model_copy(update={"name": name}) for name in ("one", "two")},
        "require_own_folders": lambda systems, data, folder: None,
        "fit_classifier": lambda config, data, folder: nn.Linear(1, 1),
        "Yardstick": lambda config, data, classifier: fake,
        "fit": fit,
        "load_run": lambda folder: SimpleNamespace(prior=folder.name if folder.name == "two" else None),
        "measure_system": lambda run, data, yardstick, path: {path.name: torch.rand(()).item()},
        "sampler": lambda run, data, guidance=1.0: guidance,
        "measure_samples": measured,
    }
    for name, replacement in replaced.items():
        monkeypatch.setattr(comparison, name, replacement)
    config = tiny_config("trainer.seed=5")
    torch.manual_seed(5)
    drawn = torch.rand(()).item()
    for _ in range(2):
        result = compare(config, tmp_path, "command")
        assert result["systems"] == {name: {f"samples-{name}.png": drawn} for name in ("one", "two")}
        (tmp_path / "one" / "metrics.json").unlink()
    assert trained == ["one", "two", "one"]
    assert result["real"] == asdict(fake.real) and result["classifier"] == {"test_accuracy": 0.5, "parameters": 2}
    assert result["data"] == {"digest": "digest", "test_pictures": 20} and result["samples"] == 20
    assert result["command"] == "command" and result["config"]["trainer"]["seed"] == 5
    assert read_json(tmp_path / "compare.json") == result
    assert result["guided"].keys() == {"two"}  # the one with a prior
    assert result["guided"]["two"]["frechet"] == result["guidance"] == GUIDANCE == 2
