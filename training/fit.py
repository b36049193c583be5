"""`fit`: train the autoencoder, then the prior over its codes, and write the run folder.

In: a `RunConfig` and the run folder. Out: the files that `training.runs` lists. A stage whose weights are already in
the folder is not trained again, and one that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from pydantic import BaseModel
from torch import Tensor

from training.config import OF_CODEBOOK, OF_GRID, AutoencoderConfig, ConfigError, RunConfig, differing_keys
from training.data import DataSet, Split, Stream, load_data, would_read_run
from training.models.autoencoders import VQVAE
from training.models.building import System, build_autoencoder, build_prior
from training.models.limits import require_apart, require_exportable
from training.models.prior import PixelCNN
from training.report import draw_reconstructions, sheet_of_samples, write_report
from training.report.evaluation import encode_all
from training.runs import (
    AUTOENCODER_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    PRIOR_FILE,
    PROGRESS_FILE,
    begin_progress,
    hold_folder,
    load_weights,
    read_config,
    write_json,
    write_seconds,
)
from training.runs.jobs import AutoencoderJob, PriorJob, StageData
from training.runs.stages import CHECKPOINTS, checkpoint_of, require_trainer, run_stage, told_of_memory


def fit(config: RunConfig, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train what `config` describes into `folder`; returns the metrics that are also in its metrics.json.

    Of several processes, the first one returns them, the others nothing.

    Raises:
        ConfigError: the folder cannot be one, holds a run already, or, with `resume`, one of another configuration or
            other pictures; the model does not fit the data, the memory or into a bundle, or this machine has no such
            accelerator or precision.
        DataError: the data cannot be read. TrainingDiverged: a loss is not finite. ExactnessError: the sums of the
            prior may become inexact.
    """
    require_place(folder)
    require_own_folder(config, folder, resume=resume)
    require_trainer(config)  # before the data, which may take long to read
    data = load_data(config.data, begun=_is_begun(folder))
    data.require_multiple_of(config.autoencoder.downsampling)
    require_exportable(config, data.picture)  # before networks beyond its limits are made
    if not _is_begun(folder):  # an earlier release began it, and only the export tells whether its codes are apart
        require_apart(config.autoencoder)
    _require_models(config, data)
    _begin(config, data, folder)
    autoencoder = fit_autoencoder(config, data, folder)
    prior = None
    if config.prior is not None and isinstance(autoencoder, VQVAE):
        prior = fit_prior(config, data, autoencoder, folder)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return {}
    with told_of_memory("to measure the test pictures and draw the sheets: end what else runs, and --resume goes on"):
        return write_report(config, data, autoencoder, prior, folder)


def require_keys_read(config: AutoencoderConfig, folder: Path) -> None:
    """Raises ConfigError where a new run in `folder` is given a key that the chosen kind of quantizer does not read: it
    would not be what was asked for, and nothing would say so. Derived configurations, as `compare` has, may."""
    if config.system != "vqvae" or _is_begun(folder):
        return
    quantizer = config.quantizer
    keys = OF_CODEBOOK if quantizer.kind == "fsq" else OF_GRID
    unread = [f"quantizer.{key}" for key in keys if getattr(quantizer, key) != _default(quantizer, key)]
    if quantizer.kind == "fsq" and config.dimension != _default(config, "dimension"):
        unread.append("dimension")
    if unread:
        named = ", ".join(f"autoencoder.{key}" for key in unread)
        raise ConfigError(
            f"quantizer.kind {quantizer.kind} does not read {named}: leave it out, or choose another kind"
        )


def _default(section: BaseModel, key: str) -> object:
    return type(section).model_fields[key].default


def _require_models(config: RunConfig, data: DataSet) -> None:
    """Both can be made: a mistake in the keys of the prior is told now, not after hours of the first stage."""
    try:
        autoencoder = build_autoencoder(config.autoencoder, data.picture, len(data.label_names))
        if config.prior is not None and isinstance(autoencoder, VQVAE):
            build_prior(config.prior, autoencoder.quantizer.codebook_size, len(data.label_names))
    except (RuntimeError, TypeError) as error:  # torch's, for sizes beyond the memory or 64 bits
        raise ConfigError(f"the model cannot be made: {str(error).splitlines()[0]}") from error


def require_place(folder: Path, option: str = "--out") -> None:
    """Raises ConfigError where `folder`, which `option` names, cannot be one that a job writes into."""
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise ConfigError(f"{folder} cannot be a folder, because {file} is a file: choose another {option}")
    if os.fsencode(folder).decode(errors="replace") != str(folder):  # TensorBoard's log needs it
        raise ConfigError(f"{str(folder)!r} is not UTF-8: choose another {option}")


@rank_zero_only
def require_own_folder(config: RunConfig, folder: Path, *, resume: bool) -> None:
    """A new folder outside of the data, one in which nothing has been trained yet, or that of the same configuration
    to go on with."""
    if would_read_run(config.data, folder):
        raise ConfigError(
            f"{folder} lies in data.source {config.data.source}: the sheets of the run would be some of its pictures; "
            "choose an --out outside of it"
        )
    incomplete = not ((folder / CONFIG_FILE).exists() and (folder / PROGRESS_FILE).exists())
    left = _trained_files(folder)
    if incomplete and left:  # of which settings and pictures nothing tells
        raise ConfigError(
            f"{folder} holds {', '.join(left)} without the {CONFIG_FILE} and {PROGRESS_FILE} of their run: delete "
            "them, or choose another --out"
        )
    if _is_begun(folder):
        if not resume:
            raise ConfigError(f"{folder} already holds a run: pass --resume to go on with it, or another --out")
        differing = differing_keys(read_config(folder), config)  # parsed: keys added since have their defaults
        if differing:
            raise ConfigError(
                f"{folder} was begun with another configuration, in {', '.join(differing)}: going on needs the same "
                f"--config and key=value words, which {folder / CONFIG_FILE} has; or choose another --out"
            )


def _trained_files(folder: Path) -> list[str]:
    """What of a training lies there."""
    return [name for name in (AUTOENCODER_FILE, PRIOR_FILE, CHECKPOINTS) if (folder / name).exists()]


def _is_begun(folder: Path) -> bool:
    """Whether a run has got somewhere there: one that failed before its first checkpoint has not."""
    return (folder / CONFIG_FILE).exists() and bool(_trained_files(folder) or (folder / METRICS_FILE).exists())


@rank_zero_only
def _begin(config: RunConfig, data: DataSet, folder: Path) -> None:
    """Not before data, model and device are known to fit, so that a corrected mistake may use the same folder."""
    hold_folder(folder)
    if not _is_begun(folder):
        (folder / PROGRESS_FILE).unlink(missing_ok=True)  # of an attempt that failed before its first checkpoint
    begin_progress(folder, data)
    write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
    (folder / METRICS_FILE).unlink(missing_ok=True)


def fit_autoencoder(config: RunConfig, data: DataSet, folder: Path) -> System:
    """The first stage, trained where `folder` has no weights of it yet; on the CPU, in evaluation mode."""
    seed_everything(config.trainer.seed, verbose=False)
    model = build_autoencoder(config.autoencoder, data.picture, len(data.label_names))
    if not (folder / AUTOENCODER_FILE).exists():
        _forget_prior(folder)
        stage = config.trainer.autoencoder
        job = AutoencoderJob(model, stage, config.trainer.log_every, config.autoencoder.quantizer.restart_until)
        seed, crop, flip = config.trainer.seed, config.data.crop, config.data.flip
        stream = partial(Stream, data.train, stage.batch_size, seed, crop=crop, flip=flip)
        seconds = run_stage(
            "autoencoder",
            job,
            StageData(stream, data.validation, stage, pin_memory=config.trainer.pin_memory),
            config,
            folder,
            precision=config.trainer.precision,
            sheet=("reconstructions", partial(draw_reconstructions, model, data.validation)),
        )
        rank_zero_only(write_seconds)(folder, "autoencoder", seconds)
    load_weights(model, folder / AUTOENCODER_FILE)
    # as training leaves it: in another memory layout convolutions round otherwise, and a resumed run has other codes
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@rank_zero_only
def _forget_prior(folder: Path) -> None:
    """A prior that was trained on the codes of an earlier autoencoder, which somebody has deleted."""
    for path in (folder / PRIOR_FILE, checkpoint_of("prior", folder)):
        path.unlink(missing_ok=True)


def fit_prior(config: RunConfig, data: DataSet, autoencoder: VQVAE, folder: Path) -> PixelCNN:
    """The second stage, as the first one, over the codes of the finished `autoencoder`."""
    assert config.prior is not None
    seed_everything(config.trainer.seed, verbose=False)
    model = build_prior(config.prior, autoencoder.quantizer.codebook_size, len(data.label_names))
    if not (folder / PRIOR_FILE).exists():
        stage = config.trainer.prior
        job = PriorJob(model, autoencoder, stage, config.trainer.log_every, config.prior.label_dropout)
        train, crop, flip = _prior_pictures(config, data, autoencoder)
        stream = partial(Stream, train, stage.batch_size, config.trainer.seed, crop=crop, flip=flip)
        validation = Split(_codes(autoencoder, data.validation), data.validation.labels)
        draw = sheet_of_samples(model, autoencoder, config.grid(data.picture))
        sheet = None if draw is None else ("samples", draw)
        # always float32, which holds the prior's integers exactly; trainer.precision is the autoencoder's
        batches = StageData(stream, validation, stage, pin_memory=config.trainer.pin_memory)
        seconds = run_stage("prior", job, batches, config, folder, sheet=sheet)
        rank_zero_only(write_seconds)(folder, "prior", seconds)
    load_weights(model, folder / PRIOR_FILE)
    return model


def _prior_pictures(config: RunConfig, data: DataSet, autoencoder: VQVAE) -> tuple[Split, int | None, bool]:
    """Codes, encoded once, where every epoch shows the same pictures; else pictures, encoded at each step."""
    if config.data.crop is not None or config.data.flip:
        return data.train, config.data.crop, config.data.flip
    return Split(_codes(autoencoder, data.train), data.train.labels), None, False


def _codes(autoencoder: VQVAE, split: Split) -> Tensor:
    assert isinstance(split.images, Tensor)
    return encode_all(autoencoder, split.images)
