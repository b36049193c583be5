"""Fit on 400 real digits: what a run leaves behind, repeatable, of every system, equal on one process and two."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from service.bundle.fields import Quality
from tests.training.conftest import (
    DIGITS,
    RESULT_FILES,
    ROOT,
    TINY,
    VQ_ONLY,
    assert_same_weights,
    tiny_config,
    weights,
)
from tests.training.runs import ddp_worker
from training import report
from training.__main__ import main
from training.config import ConfigError, StageConfig
from training.data import Split, load_data, tiles
from training.fit import fit
from training.models.autoencoders import VQVAE
from training.models.building import build_autoencoder
from training.models.prior import PixelCNN, guided_logits
from training.printing import status_of
from training.report.evaluation import encode_all, histogram, sample_codes
from training.runs import AUTOENCODER_FILE, PRIOR_FILE, load_run, stages
from training.runs.jobs import learning_rate_factor

# what a run leaves behind


def test_a_run_folder_holds_weights_json_and_two_sheets(tiny_run: Path) -> None:
    files = {path.name for path in tiny_run.iterdir() if path.is_file()}
    assert files == {*RESULT_FILES, "reconstructions.png", "samples.png", ".lock"}
    for sheet in ("reconstructions.png", "samples.png"):
        with Image.open(tiny_run / sheet) as picture:
            assert picture.width == 8 * 30 + 2


def test_metrics_are_what_numpy_finds_from_the_saved_weights(tiny_run: Path) -> None:
    run = load_run(tiny_run)
    assert isinstance(run.autoencoder, VQVAE) and run.prior is not None
    data = load_data(run.config.data)
    assert isinstance(data.test.images, torch.Tensor)
    codes = run.autoencoder.encode(data.test.images.float() / 255)
    made = run.autoencoder.decode(codes).numpy().astype(np.float64)
    mse = np.mean((made - data.test.images.numpy() / 255) ** 2)
    share = np.bincount(codes.numpy().ravel(), minlength=16) / codes.numel()
    entropy = -sum(p * math.log(p) for p in share if p > 0)
    logits = run.prior(codes, data.test.labels).detach().numpy().astype(np.float64) / 64
    chosen = np.take_along_axis(logits, codes.numpy()[..., None], -1)[..., 0]
    bits = np.mean(np.log(np.exp(logits).sum(-1)) - chosen) / math.log(2)
    quality = Quality.model_validate(run.metrics["quality"])
    # float32 sums over 78,400 pixels and 4,900 codes, in another order
    assert quality.mse == pytest.approx(mse, rel=1e-5) and quality.psnr_db == pytest.approx(-10 * math.log10(mse))
    assert quality.perplexity == pytest.approx(math.exp(entropy), rel=1e-6)
    assert quality.bits_per_code == pytest.approx(bits, rel=1e-5)
    assert quality.bits_per_code_unlabelled is not None


def test_metrics_tell_where_the_model_came_from(tiny_run: Path) -> None:
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    data = load_data(tiny_config().data)
    assert metrics["data"]["digest"] == data.digest
    assert metrics["data"]["labels"] == list("0123456789")
    assert sum(metrics["code_histogram"]) == len(data.train) * 49
    assert metrics["libraries"]["torch"] == version("torch")  # without `+cpu`, which not every build says


def test_training_lowers_the_error_and_uses_several_codes(tiny_run: Path) -> None:
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    data = load_data(tiny_config().data)
    assert isinstance(data.test.images, torch.Tensor)
    variance = float((data.test.images.float() / 255).var())
    assert metrics["quality"]["mse"] < variance  # better than the best grey
    assert metrics["quality"]["perplexity"] > 2
    assert metrics["quality"]["bits_per_code"] < 4  # log2 K: what no prior at all costs


def test_tensorboard_has_curves_and_pictures(tiny_run: Path) -> None:
    tags = {}
    for stage in ("autoencoder", "prior"):
        events = EventAccumulator(str(tiny_run / "logs" / stage))
        events.Reload()
        tags[stage] = set(events.Tags()["scalars"]) | set(events.Tags()["images"])
    assert {"train/loss", "train/perplexity", "train/codes_used", "validation/mse"} <= tags["autoencoder"]
    assert "reconstructions" in tags["autoencoder"]
    assert {"train/bits_per_code", "validation/bits_per_code", "samples"} <= tags["prior"]


def test_a_sheet_before_the_codebook_starts_shows_what_the_decoder_has_learned() -> None:
    """It showed the one picture that a codebook of zeros decodes to."""
    config = tiny_config()
    data = load_data(config.data)
    model = build_autoencoder(config.autoencoder, data.picture, 10).eval()
    drawn = report.draw_reconstructions(model, data.test)
    with torch.no_grad():
        model.quantizer.codebook.fill_(3.0)  # nothing of it may be seen
    assert np.array_equal(report.draw_reconstructions(model, data.test), drawn)
    model.quantizer.initialised.fill_(True)
    assert not np.array_equal(report.draw_reconstructions(model, data.test), drawn)


def test_checkpoints_load_without_running_code(tiny_run: Path) -> None:
    for stage in ("autoencoder", "prior"):
        checkpoint = torch.load(tiny_run / "checkpoints" / f"{stage}.ckpt", weights_only=True)
        assert all(key.startswith("model.") for key in checkpoint["state_dict"])


# repeatable


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_run: Path, tmp_path: Path) -> None:
    fit(tiny_config(), tmp_path / "again")
    assert_same_weights(tiny_run, tmp_path / "again", AUTOENCODER_FILE, PRIOR_FILE)
    fit(tiny_config("trainer.seed=2", *VQ_ONLY), tmp_path / "other")
    assert not torch.equal(weights(tiny_run)["encoder.mix.weight"], weights(tmp_path / "other")["encoder.mix.weight"])


# every system, every kind of data


@pytest.mark.parametrize(
    "overrides",
    [
        ["autoencoder.system=ae"],
        ["autoencoder.system=vae"],
        ["autoencoder.system=cvae"],
        ["autoencoder.quantizer.kind=gradient"],
        ["autoencoder.quantizer.kind=fsq", "autoencoder.quantizer.levels=[4,4,4]"],
        ["autoencoder.quantizer.rate_weight=0.05"],
        ["trainer.precision=bf16-mixed"],
    ],
    ids=lambda overrides: overrides[0].partition("=")[2],
)
def test_every_system_trains_and_loads_again(tmp_path: Path, overrides: list[str]) -> None:
    metrics = fit(tiny_config(*VQ_ONLY, *overrides), tmp_path)
    run = load_run(tmp_path)
    assert run.prior is None and not (tmp_path / PRIOR_FILE).exists()
    assert 0 < metrics["test"]["mse"] < 0.2
    assert ("elbo_nats" in metrics["test"]) and (metrics["test"]["elbo_nats"] is None) == ("vae" not in overrides[0])


def test_a_cvae_needs_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((50, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match="no labels"):
        fit(tiny_config("autoencoder.system=cvae", f"data.source={tmp_path / 'd.npz'}"), tmp_path / "run")


def test_colour_photographs_of_any_size_train_on_random_crops(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for index in range(10):
        pixels = random.integers(0, 256, (30 + index, 41 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "p" / f"{index}.png")
    config = tiny_config(f"data.source={tmp_path / 'p'}", "data.crop=16", "data.flip=true", "data.test_fraction=0.2")
    metrics = fit(config, tmp_path / "run")
    assert metrics["data"]["picture"] == [3, 16, 16] and metrics["data"]["labels"] == []
    assert metrics["quality"]["bits_per_code"] > 0 and metrics["quality"]["bits_per_code_unlabelled"] is None


def test_the_histogram_of_crops_never_holds_the_tiles_of_two_pictures(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cut the tiles of all training pictures at once: after hours of training the machine was out of memory."""
    random = np.random.default_rng(0)
    for index in range(8):
        pixels = random.integers(0, 256, (60 + 9 * index, 90 - index), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    config = tiny_config(f"data.source={tmp_path}", "data.crop=28", "data.grey=true", "data.memory_mib=0")
    data, model = load_data(config.data), load_run(tiny_run).autoencoder
    assert isinstance(model, VQVAE)
    images = tiles(data.train, 28).images
    assert isinstance(images, torch.Tensor)
    expected = histogram(encode_all(model, images), 16).tolist()
    cut: list[int] = []

    def counted(split: Split, size: int) -> Split:
        cut.append(len(split))
        return tiles(split, size)

    monkeypatch.setattr(report, "tiles", counted)
    assert report._training_histogram(config, data, model) == expected
    assert cut == [1] * len(data.train)


def test_samples_are_those_of_a_prior_that_sees_the_whole_grid() -> None:
    torch.manual_seed(0)
    prior = PixelCNN(8, 2, channels=8, vertical_layers=2, horizontal_layers=1, head_channels=16)
    labels, codes = torch.tensor([0, 1, 2]), torch.zeros(3, 9, 8, dtype=torch.int64)
    generator = torch.Generator().manual_seed(4)
    for row in range(9):
        for column in range(8):
            chances = (prior(codes, labels)[:, row, column] / 64).softmax(-1)
            codes[:, row, column] = torch.multinomial(chances, 1, generator=generator)[:, 0]
    assert torch.equal(sample_codes(prior, labels, 9, 8, torch.Generator().manual_seed(4)), codes)


def test_guidance_moves_logits_away_from_those_without_the_label() -> None:
    labelled, unlabelled = torch.tensor([[10.0, -4.0, 3.0]]), torch.tensor([[2.0, -4.0, 8.0]])
    assert torch.equal(guided_logits(labelled, unlabelled, 1.0), labelled)
    assert torch.equal(guided_logits(labelled, unlabelled, 2.0), torch.tensor([[18.0, -4.0, -2.0]]))
    assert torch.equal(guided_logits(labelled, unlabelled, 1.0625), torch.tensor([[10.0, -4.0, 3.0]]))  # 10.5, 2.69


def test_guided_samples_are_those_of_guided_logits() -> None:
    """Without a label there is nothing to guide by; with a large guidance the label decides."""
    torch.manual_seed(0)
    prior = PixelCNN(8, 2, channels=8, vertical_layers=2, horizontal_layers=1, head_channels=16)
    with torch.no_grad():
        prior.label_bias.normal_(0, 0.3)
    labels = torch.tensor([0, 1, 2])

    def drawn(guidance: float) -> torch.Tensor:
        return sample_codes(prior, labels, 3, 4, torch.Generator().manual_seed(4), guidance)

    assert torch.equal(drawn(1.0), sample_codes(prior, labels, 3, 4, torch.Generator().manual_seed(4)))
    assert torch.equal(drawn(6.0)[2], drawn(1.0)[2])
    assert not torch.equal(drawn(6.0)[:2], drawn(1.0)[:2])


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    stage = StageConfig(steps=1100, warmup_steps=100)
    factors = [learning_rate_factor(step, stage) for step in range(1101)]
    assert factors[0] == 0.01 and factors[99] == 1 and factors[100] == 1
    assert factors[600] == pytest.approx(0.5) and factors[1100] == pytest.approx(0, abs=1e-12)
    assert factors[100:] == sorted(factors[100:], reverse=True)


def test_ctrl_c_outside_of_the_training_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.fit.fit", interrupted)
    assert status_of(lambda: main(["fit", "--config", str(TINY)])) == 130
    assert capsys.readouterr().err.endswith("ended by Ctrl-C\n")


def test_the_commands_print_json_and_turn_mistakes_into_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["fit", "--config", str(TINY), "--data", str(DIGITS), "--out", str(run), *VQ_ONLY]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["pictures"] == 100
    assert main(command) == 2
    assert "pass --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run"] == str(run) and printed["file"] == str(run / "metrics.json")
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err


# two processes


def test_two_processes_keep_one_codebook_and_it_is_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's DDP over gloo: each process sees half of every batch."""
    command = [sys.executable, str(ROOT / "tests" / "training" / "runs" / "ddp_worker.py"), str(tmp_path / "2"), "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(stages, "Reseed", stages.Reseed)  # which the worker replaces
    ddp_worker.main(tmp_path / "1", devices=1)
    alone = load_file(tmp_path / "1" / "rank0.safetensors")
    ranks = [load_file(tmp_path / "2" / f"rank{rank}.safetensors") for rank in range(2)]
    for name in alone:
        assert torch.equal(ranks[0][name], ranks[1][name]), name
    for name in ("quantizer.codebook", "quantizer.cluster_size", "quantizer.cluster_sum"):
        # float32 sums over two halves round differently than over the whole: 3e-7 after 12 steps, values near 1;
        # without the sums over processes the codebooks differ by 0.2
        torch.testing.assert_close(ranks[0][name], alone[name], rtol=1e-5, atol=1e-5)
