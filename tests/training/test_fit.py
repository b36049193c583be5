"""What `fit` hands to each stage, seen by one that trains nothing: pictures, seeds and settings of the config."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.training.conftest import tiny_config
from training import fit as fit_module
from training.config import ConfigError, RunConfig
from training.data import Batch, DataError, DataSet, Split, Stream, load_data
from training.fit import fit, fit_autoencoder, fit_prior
from training.models.autoencoders import VQVAE
from training.models.building import build_autoencoder, build_prior
from training.report import draw_reconstructions, draw_samples
from training.runs import begin_progress, read_json, save_weights
from training.runs.jobs import AutoencoderJob, Job, PriorJob, StageData

WORDS = (
    "trainer.seed=5",
    "trainer.log_every=3",
    "trainer.autoencoder={steps: 40, batch_size: 6, validate_every: 20}",
    "trainer.prior={steps: 30, batch_size: 4, validate_every: 10}",
    "autoencoder={channels: 4, residual_blocks: 0, dimension: 3}",
    "autoencoder.quantizer={codebook_size: 8, restart_until: 0.25, start_step: 1}",
    "prior={channels: 4, vertical_layers: 1, horizontal_layers: 1, head_channels: 4, label_dropout: 0.375}",
)


def noise(count: int, width: int, seed: int) -> Split:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, width), dtype=torch.uint8, generator=random)
    return Split(pixels, torch.randint(0, 3, (count,), generator=random))


def noisy(config: RunConfig) -> DataSet:
    """Training pictures of 8 x 12 pixels, and validation and test pictures of the size that the model sees."""
    width = config.data.crop or 12
    return DataSet(noise(20, 12, 0), noise(9, width, 1), noise(9, width, 2), ("a", "b", "c"), (), (1, 8, width), "")


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By stage: its job and options, its first training batch, its validation pictures and how many were pinned."""
    found: dict[str, Any] = {}

    def run_stage(
        name: str, job: Job, data: StageData, config: RunConfig, folder: Path, precision: str = "", sheet: Any = None
    ) -> float:
        pinned: list[Batch] = []

        def pin(batch: Batch) -> Batch:
            pinned.append(batch)
            return batch

        monkeypatch.setattr("training.runs.jobs.pinned", pin)
        strategy = SimpleNamespace(root_device=torch.device("cuda"))
        data.trainer = cast(Any, SimpleNamespace(strategy=strategy, current_epoch=0, global_rank=0, world_size=1))
        validation = [torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True)]
        first = next(iter(data.train_dataloader()))
        found[name] = SimpleNamespace(job=job, sheet=sheet, first=first, validation=validation, pinned=len(pinned))
        torch.rand(7)  # as a training would
        save_weights(job.model, folder / f"{name}.safetensors")
        return 1.5 if name == "prior" else 2.5

    monkeypatch.setattr(fit_module, "run_stage", run_stage)
    return found


def train(config: RunConfig, data: DataSet, folder: Path) -> VQVAE:
    begin_progress(folder, data)
    autoencoder = fit_autoencoder(config, data, folder)
    assert isinstance(autoencoder, VQVAE)
    fit_prior(config, data, autoencoder, folder)
    return autoencoder


def codes_of(autoencoder: VQVAE, split: Split) -> Tensor:
    assert isinstance(split.images, Tensor)
    return autoencoder.encode(split.images / 255)


@pytest.mark.parametrize(("crop", "flip"), [(None, False), (None, True), (8, False), (8, True)])
def test_both_stages_see_crops_and_mirrored_pictures_where_the_config_says_so(
    tmp_path: Path, handed: dict[str, Any], crop: int | None, flip: bool
) -> None:
    words = [f"data.crop={'null' if crop is None else crop}", f"data.flip={str(flip).lower()}"]
    config = tiny_config(*WORDS, *words)
    data = noisy(config)
    autoencoder = train(config, data, tmp_path)
    seen = Stream(data.train, 6, 5, crop=crop, flip=flip).batch(0)
    assert all(map(torch.equal, handed["autoencoder"].first, seen))
    shown = data.train
    if crop is None and not flip:  # every epoch has the same codes: they are encoded once
        shown = Split(codes_of(autoencoder, data.train), data.train.labels)
    seen = Stream(shown, 4, 5, crop=crop, flip=flip).batch(0)
    assert all(map(torch.equal, handed["prior"].first, seen))


def test_each_stage_has_the_settings_of_its_section(tmp_path: Path, handed: dict[str, Any]) -> None:
    config = tiny_config(*WORDS)
    train(config, noisy(config), tmp_path)
    first, second = handed["autoencoder"].job, handed["prior"].job
    assert isinstance(first, AutoencoderJob) and isinstance(second, PriorJob)
    assert (first.stage, second.stage) == (config.trainer.autoencoder, config.trainer.prior)
    assert first.log_every == second.log_every == 3
    assert (first._last_restart, second.label_dropout) == (10, 0.375)  # a quarter of 40 steps
    assert read_json(tmp_path / "progress.json")["seconds"] == {"autoencoder": 2.5, "prior": 1.5}


@pytest.mark.parametrize("pin_memory", [False, True])
def test_both_stages_pin_batches_where_the_config_says_so(
    tmp_path: Path, handed: dict[str, Any], pin_memory: bool
) -> None:
    config = tiny_config(*WORDS, f"trainer.pin_memory={str(pin_memory).lower()}")
    train(config, noisy(config), tmp_path)
    batches = {"autoencoder": 1 + 2, "prior": 1 + 3}  # one of training, and nine pictures by six and by four
    assert {name: stage.pinned for name, stage in handed.items()} == {
        name: count if pin_memory else 0 for name, count in batches.items()
    }


def test_both_stages_are_validated_and_drawn_on_the_validation_pictures(tmp_path: Path, handed: dict[str, Any]) -> None:
    config = tiny_config(*WORDS)
    data = noisy(config)
    autoencoder = train(config, data, tmp_path)
    (name, draw), validation = handed["autoencoder"].sheet, handed["autoencoder"].validation
    assert torch.equal(validation[0], data.validation.images) and torch.equal(validation[1], data.validation.labels)
    assert name == "reconstructions" and np.array_equal(draw(), draw_reconstructions(autoencoder, data.validation))
    (name, draw), validation = handed["prior"].sheet, handed["prior"].validation
    assert torch.equal(validation[0], codes_of(autoencoder, data.validation))
    assert torch.equal(validation[1], data.validation.labels)
    assert name == "samples" and np.array_equal(draw(), draw_samples(handed["prior"].job.model, autoencoder, (2, 3)))


def test_each_stage_begins_from_the_seed_alone(tmp_path: Path, handed: dict[str, Any]) -> None:
    """A run that goes on with its prior begins it as an uninterrupted one, which has drawn more numbers by then."""
    config = tiny_config(*WORDS)
    data = noisy(config)
    assert config.prior is not None
    torch.manual_seed(5)
    autoencoder = build_autoencoder(config.autoencoder, data.picture, 3)
    torch.manual_seed(5)
    prior = build_prior(config.prior, 8, 3)
    for expected in ({"autoencoder": autoencoder, "prior": prior}, {"prior": prior}):
        handed.clear()
        train(config, data, tmp_path)
        assert handed.keys() == expected.keys()
        for name, model in expected.items():
            found = handed[name].job.model.state_dict()
            assert found.keys() == model.state_dict().keys()
            assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
        (tmp_path / "prior.safetensors").unlink()


@pytest.mark.parametrize(("kind", "codes"), [("ema", 8), ("fsq", 9)])
def test_a_finished_stage_is_loaded_and_not_trained_again(
    tmp_path: Path, handed: dict[str, Any], kind: str, codes: int
) -> None:
    config = tiny_config(*WORDS, f"autoencoder.quantizer.kind={kind}", "autoencoder.quantizer.levels=[3,3]")
    data = noisy(config)
    train(config, data, tmp_path)
    for file in (tmp_path / "autoencoder.safetensors", tmp_path / "prior.safetensors"):
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    handed.clear()
    autoencoder = fit_autoencoder(config, data, tmp_path)
    assert isinstance(autoencoder, VQVAE)
    prior = fit_prior(config, data, autoencoder, tmp_path)
    assert not handed and not autoencoder.training and not prior.training
    assert prior.codebook_size == codes
    assert not any(tensor.any() for model in (autoencoder, prior) for tensor in model.state_dict().values())


# the folder


def vqvae() -> VQVAE:
    model = build_autoencoder(tiny_config(*WORDS).autoencoder, (1, 8, 12), 3)
    assert isinstance(model, VQVAE)
    return model


@pytest.fixture
def resumed(tiny_run: Path, tmp_path: Path) -> Path:
    """The files of a finished run, without its weights."""
    for name in ("config.json", "progress.json", "metrics.json"):
        shutil.copy(tiny_run / name, tmp_path)
    return tmp_path


def test_a_run_that_goes_on_is_no_finished_one_any_more(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics.json tells of weights that are about to be replaced."""

    def interrupted(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(fit_module, "fit_autoencoder", interrupted)
    with pytest.raises(InterruptedError):
        fit(tiny_config(), resumed, resume=True)
    assert not (resumed / "metrics.json").exists() and (resumed / "progress.json").exists()


def test_pictures_that_cannot_be_halved_often_enough_leave_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="28x28, the encoder downsamples by 8: both sides must be multiples of 8"):
        fit(tiny_config("autoencoder.downsampling=8"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_may_lie_in_folders_that_do_not_exist_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "fit_autoencoder", lambda *_: nn.Linear(1, 1))
    monkeypatch.setattr(fit_module, "write_report", lambda *_: {})
    fit(tiny_config(), tmp_path / "runs" / "today" / "tiny")
    assert read_json(tmp_path / "runs" / "today" / "tiny" / "config.json") == tiny_config().model_dump(mode="json")


def test_a_run_that_does_not_go_on_stays_finished(resumed: Path) -> None:
    with pytest.raises(ConfigError, match="another configuration"):
        fit(tiny_config("trainer.seed=2"), resumed, resume=True)
    assert (resumed / "metrics.json").exists()


@pytest.mark.parametrize(
    ("made", "words", "prior"),
    [(vqvae, (), "prior"), (vqvae, ("prior=null",), None), (lambda: nn.Linear(1, 1), ("autoencoder.system=ae",), None)],
    ids=["a prior", "no prior in the config", "no codes for a prior"],
)
def test_only_a_vqvae_has_a_prior_and_only_the_first_of_several_processes_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[], nn.Module], words: tuple[str, ...], prior: Any
) -> None:
    config, model, reports = tiny_config(*words), made(), []

    def report(*given: Any) -> dict[str, int]:
        reports.append(given)
        return {"quality": 1}

    monkeypatch.setattr(fit_module, "fit_autoencoder", lambda *_: model)
    monkeypatch.setattr(fit_module, "fit_prior", lambda *_: "prior")
    monkeypatch.setattr(fit_module, "write_report", report)
    for rank, returned in ((1, {}), (0, {"quality": 1})):
        monkeypatch.setattr(fit_module, "rank_zero_only", SimpleNamespace(rank=rank))
        assert fit(config, tmp_path, resume=True) == returned
    ((told, data, *rest),) = reports
    assert (told, data.digest, rest) == (config, load_data(config.data).digest, [model, prior, tmp_path])
