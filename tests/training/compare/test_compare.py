"""The comparison: its yardsticks against closed forms, and the whole job on a few digits."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.conftest import DIGITS, TINY, tiny_config, write_pictures
from training.__main__ import main
from training.compare import count_parameters, variants
from training.compare.classifier import Classifier, describe, fit_classifier
from training.compare.fidelity import frechet_distance, precision_and_recall, spread_within_classes
from training.compare.model_report import CLEAR, END, START, section, verdicts, write_model_report
from training.compare.yardstick import Yardstick
from training.config import ConfigError, RunConfig
from training.data import DataSet, Split, load_data
from training.models.autoencoders import VAE
from training.models.building import build_autoencoder, build_prior
from training.report.evaluation import BOUND, bound
from training.runs import load_run, read_json, write_json

SYSTEMS = ("ae", "vae", "vae-large", "cvae", "cvae-large", "vqvae-gradient", "vqvae-ema", "vqvae-fsq")
FEW_STEPS = (
    "trainer.autoencoder.steps=20",
    "trainer.prior.steps=10",
    "autoencoder.quantizer.levels=[4,4]",
    "autoencoder.channels=16",
    "compare.samples=60",
    "compare.classifier.steps=60",
    "compare.classifier.batch_size=32",
)


def normal(count: int, dimensions: int, seed: int) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def exact_moments(points: Tensor) -> Tensor:
    """The same points with mean 0 and covariance I to rounding, so that closed forms hold without sampling error."""
    centred = points.double() - points.double().mean(0)
    factor = torch.linalg.cholesky(torch.cov(centred.T))
    whitened: Tensor = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    return whitened


def test_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    points = exact_moments(normal(500, 4, 1))
    other = exact_moments(normal(400, 4, 2))
    shift, scale = torch.tensor([1.0, -2.0, 0.0, 0.5]).double(), torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    # diagonal covariances commute: |m|^2 + sum (s_1 - s_2)^2
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(points, other * scale + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_full_covariances_agrees_with_a_general_matrix_root() -> None:
    one, two = normal(300, 5, 3) @ normal(5, 5, 4), normal(300, 5, 5) @ normal(5, 5, 6) + 1
    a, b = np.cov(one.double().numpy().T), np.cov(two.double().numpy().T)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).sum().real
    gap = (one.double().mean(0) - two.double().mean(0)).square().sum().item()
    expected = gap + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-6)


def test_precision_and_recall_tell_missing_from_invented() -> None:
    left, right = normal(200, 2, 1), normal(200, 2, 2) + 100
    both = torch.cat([left, right])
    half, invented = normal(200, 2, 3), torch.cat([normal(200, 2, 4), normal(200, 2, 5) - 100])
    precision, recall = precision_and_recall(both, half, neighbours=3)
    assert precision > 0.9 and 0.4 < recall < 0.51  # one of the two real clusters is never drawn
    precision, recall = precision_and_recall(left, invented, neighbours=3)
    assert 0.4 < precision < 0.51 and recall > 0.9  # half of what is drawn does not exist


def test_precision_and_recall_are_what_a_loop_over_pairs_finds() -> None:
    real, made = normal(30, 3, 1), normal(25, 3, 2) * 1.5

    def reach(points: Tensor) -> list[float]:
        return [sorted(math.dist(p, q) for q in points.tolist())[2] for p in points.tolist()]

    def covered(points: Tensor, centres: Tensor) -> float:
        balls = list(zip(centres.tolist(), reach(centres), strict=True))
        return np.mean([any(math.dist(p, c) <= r for c, r in balls) for p in points.tolist()]).item()

    assert precision_and_recall(real, made, neighbours=2) == (covered(made, real), covered(real, made))


def test_spread_is_the_mean_distance_of_pairs_within_a_class() -> None:
    points = torch.tensor([[0.0, 0], [3, 4], [10, 10], [10, 12], [10, 16], [99, 99]])
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert spread_within_classes(points, labels) == pytest.approx((5 + (2 + 4 + 6) / 3) / 2)


def numbered(count: int) -> Split:
    """Grey pictures, each of its own number."""
    numbers = torch.arange(count, dtype=torch.uint8)
    return Split(numbers[:, None, None, None].expand(-1, 1, 4, 4), torch.zeros(count, dtype=torch.int64))


def test_the_yardstick_is_drawn_from_the_whole_of_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the first half of the test set, and that of MNIST is easier than the rest: every distance was off."""

    def by_number(model: object, images: Tensor) -> tuple[Tensor, Tensor]:
        numbers = images[:, 0, 0, :2] * 255
        measured.append(sorted(numbers[:, 0].round().int().tolist()))
        return numbers, torch.zeros(len(images), dtype=torch.int64)

    monkeypatch.setattr("training.compare.yardstick.describe", by_number)
    measured: list[list[int]] = []
    data = DataSet(numbered(200), numbered(10), numbered(100), ("0",), (), (1, 4, 4), "")
    classifier = Classifier(data.picture, 1)
    one, again = (Yardstick(tiny_config("compare.samples=50"), data, classifier) for _ in range(2))
    other = Yardstick(tiny_config("compare.samples=50", "trainer.seed=2"), data, classifier)
    assert torch.equal(one._features, again._features) and not torch.equal(one._features, other._features)
    for split, numbers in ((100, one._features[:, 0].tolist()), (200, measured[1])):
        assert len(set(numbers)) == 50
        assert 13 <= sum(number < split / 2 for number in numbers) <= 37  # 25, standard deviation at most 3.5
    assert one.real == again.real and one.real.frechet > 0


def test_the_systems_have_one_budget() -> None:
    config = RunConfig(data=tiny_config().data)
    data = load_data(config.data)
    found = variants(config, data)
    assert tuple(found) == SYSTEMS
    assert config.prior is not None
    prior = count_parameters(build_prior(config.prior, 512, 10))
    sizes = {
        name: count_parameters(build_autoencoder(variant.autoencoder, data.picture, 10))
        for name, variant in found.items()
    }
    steps = {name: variant.trainer.autoencoder.steps for name, variant in found.items()}
    whole = sizes["vqvae-ema"] + prior
    for name in SYSTEMS:
        large = name.endswith("-large")
        margin = 0.12 if name == "vqvae-fsq" else 0.05  # fsq has no codebook, and latents of three channels
        assert sizes[name] == pytest.approx(whole if large else sizes["vqvae-ema"], rel=margin), name
        assert steps[name] == 16000 if large else steps[name] == 8000
        assert (found[name].prior is not None) == name.startswith("vqvae")


def test_compare_needs_a_vqvae_to_start_from() -> None:
    config = tiny_config("autoencoder.system=vae")
    with pytest.raises(ConfigError, match="ema quantizer and a prior"):
        variants(config, load_data(config.data))


# the classifier


CLASSIFIER = ("compare.classifier.steps=10", "compare.classifier.batch_size=16", "compare.classifier.validate_every=10")


def test_a_classifier_is_loaded_only_for_the_settings_and_data_it_was_trained_with(tmp_path: Path) -> None:
    config = tiny_config(*CLASSIFIER)
    data = load_data(config.data)
    first = fit_classifier(config, data, tmp_path)
    assert torch.equal(fit_classifier(config, data, tmp_path).to_logits.weight, first.to_logits.weight)
    for other in (tiny_config(*CLASSIFIER, "trainer.seed=2"), tiny_config(*CLASSIFIER, "compare.classifier.steps=11")):
        with pytest.raises(ConfigError, match=r"classifier\.json has another"):
            fit_classifier(other, data, tmp_path)
    with pytest.raises(ConfigError, match="or data"):
        fit_classifier(config, replace(data, digest="other pictures"), tmp_path)
    with pytest.raises(ConfigError, match="or data"):  # of the same bytes
        fit_classifier(config, replace(data, picture=(1, 14, 56)), tmp_path)
    origin = read_json(tmp_path / "classifier.json")
    write_json(tmp_path / "classifier.json", {key: origin[key] for key in origin if key != "picture"})
    assert torch.equal(fit_classifier(config, data, tmp_path).to_logits.weight, first.to_logits.weight)


def test_a_classifier_of_unknown_origin_is_trained_again(tmp_path: Path) -> None:
    """Its checkpoint goes too: training would go on from its last step, which is the end."""
    config, other = tiny_config(*CLASSIFIER), tiny_config(*CLASSIFIER, "trainer.seed=2")
    data = load_data(config.data)
    unknown = fit_classifier(other, data, tmp_path / "unknown")
    (tmp_path / "unknown" / "classifier.json").unlink()
    again = fit_classifier(config, data, tmp_path / "unknown")
    assert torch.equal(again.to_logits.weight, fit_classifier(config, data, tmp_path / "new").to_logits.weight)
    assert not torch.equal(again.to_logits.weight, unknown.to_logits.weight)


def test_pictures_need_not_be_square(tmp_path: Path) -> None:
    """A shifted picture was cut to a square, which no layer behind it expects."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 12), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=pixels, y_train=np.arange(60) % 3)
    config = tiny_config(*CLASSIFIER, f"data.source={tmp_path / 'd.npz'}")
    data = load_data(config.data)
    assert isinstance(data.test.images, Tensor)
    features, seen = describe(fit_classifier(config, data, tmp_path), data.test.images / 255)
    assert features.shape == (len(data.test), 128) and set(seen.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.crop=28"], "leave data.crop out"),
        (["autoencoder.downsampling=8"], "must be multiples of 8"),
        (["compare.samples=3"], "3 pictures a system, and needs 11 at least"),  # ten labels
        (["compare.neighbours=100"], "100 pictures a system, and needs 101 at least"),  # of 100 test digits
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    """Crops ended in a bare AssertionError; after the classifier's training, a size that the encoder cannot halve, and
    fewer pictures than a picture is to have neighbours."""
    command = ["compare", "--config", str(TINY), "--data", str(DIGITS), "--out", str(tmp_path / "out"), *overrides]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pictures_that_the_classifier_cannot_halve_twice_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback of the pooling, once the folder had been made."""
    for label in "ab":
        write_pictures(tmp_path / "p" / label, 20, (2, 8))
    command = ["compare", "--config", str(TINY), "--data", str(tmp_path / "p"), "--out", str(tmp_path / "out")]
    assert main([*command, "autoencoder.downsampling=2"]) == 2
    assert "compare needs pictures of 4 pixels a side at least: bring larger ones" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "have 2 sizes ((20, 24), (28, 24), ...): bring them to one, or, for all but compare, set"),
        (["data.crop=20"], "leave data.crop out, and bring picture files to one size"),
    ],
)
def test_pictures_of_several_sizes_are_to_be_brought_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overrides: list[str], said: str
) -> None:
    """It asked for data.crop, and with it, after all pictures had been read again, to leave it out."""
    for label, height in (("a", 20), ("b", 28)):
        write_pictures(tmp_path / "p" / label, 10, (height, 24))
    if overrides:
        monkeypatch.setattr("training.compare.load_data", None)  # would be called
    words = ["--config", str(TINY), "--data", str(tmp_path / "p"), "--out", str(tmp_path / "out"), *overrides]
    assert main(["compare", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_place_for_the_page_that_is_a_file_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After all trainings there was a message of the system."""
    (tmp_path / "docs").touch()
    assert main(["compare", "--config", str(TINY), "--data", "nowhere", "--docs", str(tmp_path / "docs")]) == 2
    assert f"{tmp_path / 'docs'} is a file: choose another --docs" in capsys.readouterr().err


def test_the_command_of_a_page_is_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the data need not be: after all trainings the page could not be written."""
    compared = Mock(return_value={"classifier": {}, "systems": {}})
    monkeypatch.setattr("training.compare.compare", compared)
    assert main(["compare", "--config", str(TINY), "--data", os.fsdecode(b"caf\xe9"), "--out", str(tmp_path)]) == 0
    assert "--data 'caf\ufffd' --out" in compared.call_args.args[2]


# the whole job


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison with its page: OUT and OUT/docs."""
    out = tmp_path_factory.mktemp("compare")
    docs = out / "docs"
    docs.mkdir()
    (docs / "model-report.md").write_text("# Mine\n\nbefore\n\nafter\n")
    command = ["compare", "--config", str(TINY), "--data", str(DIGITS), "--out", str(out), "--docs", str(docs)]
    assert main([*command, *FEW_STEPS]) == 0
    return out


def test_compare_measures_every_system(compared: Path) -> None:
    result = json.loads((compared / "compare.json").read_text())
    assert tuple(result["systems"]) == SYSTEMS
    assert result["command"].startswith("python -m training compare --config ") and result["samples"] == 60
    assert result["classifier"]["test_accuracy"] > 0.5  # ten classes: chance is 0.1
    assert result["guided"].keys() == {name for name in SYSTEMS if name.startswith("vqvae")}
    assert result["real"]["frechet"] < min(system["frechet"] for system in result["systems"].values())
    for name, numbers in result["systems"].items():
        conditional = name.startswith(("cvae", "vqvae"))
        assert (numbers["class_agreement"] is not None) == conditional
        for key in BOUND:
            assert (numbers[key] is not None) == ("vae" in name and "vq" not in name)
        assert (numbers["bits_per_picture"] is not None) == ("vq" in name)
        assert 0 <= numbers["precision"] <= 1 and 0 <= numbers["recall"] <= 1
        assert (compared / f"samples-{name}.png").stat().st_size > 0


def test_runs_of_another_configuration_or_of_other_pictures_are_not_compared(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lay in the folder was measured and called the result of the command given, whatever had trained it."""
    for name in SYSTEMS:
        (tmp_path / name).mkdir()
        for file in ("config.json", "metrics.json"):
            (tmp_path / name / file).write_bytes((compared / name / file).read_bytes())
    command = ["compare", "--config", str(TINY), "--data", str(DIGITS), "--out", str(tmp_path), *FEW_STEPS]
    assert main([*command, "trainer.seed=2"]) == 2
    assert f"{tmp_path / 'ae'} was begun with another configuration" in capsys.readouterr().err
    metrics = tmp_path / "vqvae-fsq" / "metrics.json"
    trained = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(trained | {"data": trained["data"] | {"digest": "0" * 64}}))
    assert main(command) == 2
    assert "vqvae-fsq was trained on other pictures" in capsys.readouterr().err
    metrics.write_text(json.dumps(trained | {"data": trained["data"] | {"picture": [1, 14, 56]}}))  # the same bytes
    assert main(command) == 2
    assert "vqvae-fsq was trained on other pictures" in capsys.readouterr().err
    assert not (tmp_path / "classifier.json").exists()


def test_the_page_shows_the_numbers_and_keeps_what_others_wrote(compared: Path) -> None:
    page = compared / "docs" / "model-report.md"
    result = json.loads((compared / "docs" / "results" / "compare.json").read_text())
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n\nafter\n") and text.count(START) == text.count(END) == 1
    for name in SYSTEMS:
        assert f"| {name} | {result['systems'][name]['parameters']:,d} |" in text
        assert (page.parent / "pictures" / f"compare-{name}.png").is_file()
    assert section(result).replace("[how it works](how-it-works.md)", "how it works") in text  # which is not beside it
    assert ".md)" not in text
    assert f"| vqvae-fsq, guidance 2 | {result['guided']['vqvae-fsq']['frechet']:.2f} |" in text
    write_model_report(compared, page.parent)
    assert page.read_text() == text


def test_the_best_sigma_is_where_the_elbo_of_the_same_networks_is_largest(compared: Path) -> None:
    run = load_run(compared / "cvae")
    model, test = run.autoencoder, load_data(run.config.data).test
    assert isinstance(model, VAE)
    found = bound(model, test, seed=1)
    assert found.decoder_sigma == pytest.approx(math.exp(0.5 * model.log_variance.item()))
    assert found.best_elbo_nats > found.elbo_nats + 1  # twenty steps settle nothing
    with torch.no_grad():
        model.log_variance.fill_(2 * math.log(found.best_sigma))
    best = bound(model, test, seed=1)  # the same z, and so the same means
    assert best.elbo_nats == pytest.approx(found.best_elbo_nats, rel=1e-5)  # sums in float32
    for factor in (0.99, 1.01):
        with torch.no_grad():
            model.log_variance.fill_(2 * math.log(factor * found.best_sigma))
        assert bound(model, test, seed=1).elbo_nats < best.elbo_nats


@pytest.fixture
def result(compared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((compared / "compare.json").read_text())
    return found


def test_the_page_says_how_far_sigma_is_from_its_best_where_it_was_read(result: dict[str, Any]) -> None:
    """It gave the root of an MSE for the sigma of models whose own was half as large again."""
    cvae = result["systems"]["cvae"]
    row = f"| cvae | {cvae['kl_nats']:.1f} | {cvae['decoder_sigma']:.4f} | {cvae['best_sigma']:.4f} |"
    assert row in section(result)
    for values in result["systems"].values():
        for key in set(BOUND) - {"elbo_nats"}:
            values.pop(key, None)
    older = section(result)
    assert "these numbers do not hold it" in older and "best sigma" not in older


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (0.895, 0.991, "raises the class agreement of the VQ-VAE (EMA): 89.5% without, 99.1% with it."),
        (0.167, 0.167, "hardly changes the class agreement of the VQ-VAE (EMA): 16.7% without, 16.7% with it."),
        (0.5, 0.4, "lowers the class agreement of the VQ-VAE (EMA): 50.0% without, 40.0% with it."),
    ],
)
def test_what_guidance_does_follows_the_numbers(
    result: dict[str, Any], before: float, after: float, sentence: str
) -> None:
    result["systems"]["vqvae-ema"]["class_agreement"] = before
    result["guided"]["vqvae-ema"]["class_agreement"] = after
    assert f"- Guidance 2 {sentence}\n" in section(result)


def test_the_budget_follows_the_numbers(result: dict[str, Any]) -> None:
    """Whatever was compared, it took a CPU a few hours, and FSQ's number of codes went unsaid."""
    quantizer = result["config"]["autoencoder"]["quantizer"]
    quantizer["codebook_size"], quantizer["levels"] = 16, [8, 8, 8]
    assert "the levels of `vqvae-fsq` make 512 codes, where the others have 16." in section(result)
    quantizer["codebook_size"] = 512
    assert "the levels of `vqvae-fsq` make 512 codes." in section(result)
    for seconds, said in ((0.5, "4.0 seconds"), (60, "8.0 minutes"), (1800, "4.0 hours")):
        for values in result["systems"].values():
            values["seconds"] = seconds
        assert f"The trainings took {said} in all" in section(result)


@pytest.mark.parametrize(("gap", "verdict"), [(0.1, "claim holds."), (CLEAR / 2, "less than"), (-0.1, "not hold.")])
def test_the_verdict_follows_the_numbers(gap: float, verdict: str) -> None:
    keys = ("recall", "spread", "class_agreement")
    systems = {name: dict.fromkeys(keys, 0.5) for name in ("vae", "vae-large", "cvae", "cvae-large")}
    systems["vqvae-ema"] = dict.fromkeys(keys, 0.5 + gap)
    assert all(verdict in sentence for sentence in verdicts(systems, real_spread=1.0))


def test_more_diversity_than_real_pictures_have_is_no_advantage() -> None:
    systems = {name: dict.fromkeys(("recall", "spread", "class_agreement"), 0.995) for name in ("vae", "vae-large")}
    systems |= {name: systems["vae"] for name in ("cvae", "cvae-large")}
    systems["vqvae-ema"] = {"recall": 0.995, "spread": 5.0, "class_agreement": 0.995}
    _, spread, _ = verdicts(systems, real_spread=1.003)
    assert "the claim does not hold" in spread and "more than the 1.003 of real pictures counts no more" in spread


@pytest.mark.parametrize("words", ["trainer.devices=2", "trainer.nodes=2"])
def test_compare_trains_in_one_process(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The processes but the first looked for a metrics.json that the first had not written yet."""
    command = ["compare", "--config", str(TINY), "--data", str(DIGITS), "--out", str(tmp_path / "c"), words]
    assert main(command) == 2
    assert "compare trains on one device" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
