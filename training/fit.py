"""`fit`: train the autoencoder, then the prior over its codes, and write the run folder.

In: a `RunConfig` and the run folder. Out: the files that `training.runs` lists. A stage whose weights are already in
the folder is not trained again, and one that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from training.autoencoders import VQVAE
from training.callbacks import AtomicCheckpointIO, LogSheet, Reseed, Sheet, StageProgress, StopAtNaN
from training.config import ConfigError, RunConfig, StageConfig
from training.data import DataSet, Split, Stream, load_data
from training.evaluation import encode_all
from training.jobs import AutoencoderJob, PriorJob, StageData
from training.prior import PixelCNN
from training.report import draw_reconstructions, draw_samples, write_report
from training.runs import (
    AUTOENCODER_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    PRIOR_FILE,
    System,
    build_autoencoder,
    build_prior,
    load_weights,
    read_json,
    save_weights,
    write_json,
)

logger = logging.getLogger(__name__)


def fit(config: RunConfig, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train what `config` describes into `folder`; returns the metrics that are also in its metrics.json."""
    _prepare(config, folder, resume=resume)
    data = load_data(config.data)
    data.require_multiple_of(config.autoencoder.downsampling)
    seconds: dict[str, float] = {}
    start = time.monotonic()
    autoencoder = fit_autoencoder(config, data, folder)
    seconds["autoencoder"] = time.monotonic() - start
    prior = None
    if config.prior is not None and isinstance(autoencoder, VQVAE):
        start = time.monotonic()
        prior = fit_prior(config, data, autoencoder, folder)
        seconds["prior"] = time.monotonic() - start
    if getattr(rank_zero_only, "rank", 0) != 0:
        return {}
    return write_report(config, data, autoencoder, prior, folder, seconds)


def fit_autoencoder(config: RunConfig, data: DataSet, folder: Path) -> System:
    seed_everything(config.trainer.seed, verbose=False)
    model = build_autoencoder(config.autoencoder, data.picture, len(data.label_names))
    if not (folder / AUTOENCODER_FILE).exists():
        stage = config.trainer.autoencoder
        look = config.data.crop, config.data.flip
        stream = partial(_stream, data.train, stage.batch_size, config.trainer.seed, *look)
        until = config.autoencoder.quantizer.restart_until
        job = AutoencoderJob(model, stage, config.trainer.log_every, until)
        draw = partial(draw_reconstructions, model, data.validation)
        trainer = _trainer(config, folder, "autoencoder", stage, config.trainer.precision, ("reconstructions", draw))
        _train(trainer, job, StageData(stream, data.validation, stage), folder / "checkpoints" / "autoencoder.ckpt")
        _save(trainer, model, folder / AUTOENCODER_FILE)
    load_weights(model, folder / AUTOENCODER_FILE)
    return model


def fit_prior(config: RunConfig, data: DataSet, autoencoder: VQVAE, folder: Path) -> PixelCNN:
    assert config.prior is not None
    seed_everything(config.trainer.seed, verbose=False)
    model = build_prior(config.prior, autoencoder.quantizer.codebook_size, len(data.label_names))
    if not (folder / PRIOR_FILE).exists():
        stage = config.trainer.prior
        train, crop, flip = _prior_pictures(config, data, autoencoder)
        assert isinstance(data.validation.images, Tensor)
        validation = Split(encode_all(autoencoder, data.validation.images), data.validation.labels)
        job = PriorJob(model, autoencoder, stage, config.trainer.log_every, config.prior.label_dropout)
        draw = partial(draw_samples, model, autoencoder, config.grid(data.picture))
        # the prior's activations are integers, which only float32 holds exactly
        trainer = _trainer(config, folder, "prior", stage, "32-true", ("samples", draw))
        stream = partial(_stream, train, stage.batch_size, config.trainer.seed, crop, flip)
        _train(trainer, job, StageData(stream, validation, stage), folder / "checkpoints" / "prior.ckpt")
        _save(trainer, model, folder / PRIOR_FILE)
    load_weights(model, folder / PRIOR_FILE)
    return model


def _prior_pictures(config: RunConfig, data: DataSet, autoencoder: VQVAE) -> tuple[Split, int | None, bool]:
    """Codes, encoded once, where every epoch shows the same pictures; else pictures, encoded at each step."""
    if config.data.crop is not None or config.data.flip:
        return data.train, config.data.crop, config.data.flip
    assert isinstance(data.train.images, Tensor)
    return Split(encode_all(autoencoder, data.train.images), data.train.labels), None, False


def _stream(
    split: Split, batch_size: int, seed: int, crop: int | None, flip: bool, rank: int, world_size: int
) -> Stream:
    return Stream(split, batch_size, seed, crop=crop, flip=flip, rank=rank, world_size=world_size)


@rank_zero_only
def _prepare(config: RunConfig, folder: Path, *, resume: bool) -> None:
    """A new folder, or the folder of the same configuration to go on with."""
    resolved = config.model_dump(mode="json")
    if (folder / CONFIG_FILE).exists():
        if not resume:
            raise ConfigError(f"{folder} already holds a run: pass --resume to go on with it, or another --out")
        if read_json(folder / CONFIG_FILE) != resolved:
            raise ConfigError(f"{folder} was begun with another configuration: --resume needs its config.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, resolved)
    (folder / METRICS_FILE).unlink(missing_ok=True)


def _trainer(
    config: RunConfig, folder: Path, name: str, stage: StageConfig, precision: str, picture: tuple[str, Sheet]
) -> Trainer:
    settings = config.trainer
    checkpoint = ModelCheckpoint(
        folder / "checkpoints", name, save_on_train_epoch_end=True, enable_version_counter=False, save_top_k=1
    )
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=_strategy(config),
        precision=precision,  # type: ignore[arg-type]
        max_epochs=-(-stage.steps // stage.validate_every),
        gradient_clip_val=stage.gradient_clip or None,
        log_every_n_steps=settings.log_every,
        logger=TensorBoardLogger(folder, "logs", name),
        callbacks=[
            Reseed(settings.seed),
            StopAtNaN(folder / "checkpoints" / f"{name}.ckpt", settings.log_every),
            LogSheet(picture[0], picture[1], settings.sample_every),
            StageProgress(name, stage.steps, settings.log_every),
            checkpoint,
        ],
        plugins=[AtomicCheckpointIO()],
        deterministic="warn",
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _strategy(config: RunConfig) -> str | DDPStrategy:
    """Lightning's choice, with two facts it cannot know: the quantizer keeps its buffers equal on all processes itself,
    and the codebook of `gradient` has no gradient before `start_step`."""
    settings = config.trainer
    devices = torch.cuda.device_count() if settings.devices == "auto" else settings.devices
    if settings.strategy not in ("auto", "ddp") or devices * settings.nodes <= 1:
        return settings.strategy
    unused = config.autoencoder.quantizer.kind == "gradient"
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=unused)


def _train(trainer: Trainer, job: AutoencoderJob | PriorJob, data: StageData, checkpoint: Path) -> None:
    resume_from = checkpoint if checkpoint.exists() else None
    if resume_from:
        logger.info("going on from %s", resume_from)
    with warnings.catch_warnings():
        # Lightning 2.6 asks torch for pytree leaves in the old way, and the other stage's checkpoint is meant to stay
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
        trainer.fit(job, data, ckpt_path=resume_from, weights_only=True)


def _save(trainer: Trainer, model: torch.nn.Module, path: Path) -> None:
    model.cpu()
    if trainer.is_global_zero:
        save_weights(model, path)
    trainer.strategy.barrier()
