"""One stage of training: a Lightning job run to its end, or resumed, and its weights written to the run folder.

In: a job, its data and the run's config. Out: `<stage>.safetensors` in the run folder, and below it the checkpoint and
the TensorBoard log of the training.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from training.config import ConfigError, RunConfig
from training.runs import save_weights
from training.runs.callbacks import (
    AtomicCheckpointIO,
    LogSheet,
    Reseed,
    Sheet,
    StageProgress,
    StopAtNaN,
    StopAtSIGTERM,
    Stopwatch,
)
from training.runs.checkpoints import require_checkpoint
from training.runs.jobs import Job, StageData
from training.runs.writing import GO_ON, cannot_write

logger = logging.getLogger(__name__)

CHECKPOINTS, LOGS = "checkpoints", "logs"  # their folders, in that of a run
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)


def run_stage(
    name: str,
    job: Job,
    data: StageData,
    config: RunConfig,
    folder: Path,
    *,
    precision: str = "32-true",
    sheet: tuple[str, Sheet] | None = None,
) -> float:
    """Train `job.model`, from the stage's checkpoint where there is one, and write `folder/name.safetensors`; returns
    the seconds that the stage took, those before an interruption included."""
    if config.trainer.compile:
        job.apply_model = torch.compile(job.apply_model)
    _quieten_lightning()
    checkpoint = checkpoint_of(name, folder)
    stopwatch = Stopwatch()
    trainer = _trainer(name, job, config, folder, checkpoint, precision, sheet, stopwatch)
    resume_from = checkpoint if checkpoint.exists() else None
    if resume_from:
        require_checkpoint(resume_from, job)
        logger.info("going on from %s", resume_from)
    _fit(trainer, job, data, checkpoint, resume_from)
    model = job.model.cpu()
    if trainer.is_global_zero:
        save_weights(model, folder / f"{name}.safetensors")
    trainer.strategy.barrier()
    return stopwatch.seconds


def _fit(trainer: Trainer, job: Job, data: StageData, checkpoint: Path, resume_from: Path | None) -> None:
    """Raises SystemExit where the process is told to end, with the status of that signal. Raises ConfigError where the
    memory is too small, WriteError where a file cannot be written."""
    stage = checkpoint.stem
    advice = f"lower trainer.{stage}.batch_size, or the channels of its network"
    with warnings.catch_warnings(), told_of_memory(f"for the stage {stage}: {advice}"):
        # Lightning 2.6 asks torch for pytree leaves in the old way, and the other stage's checkpoint is meant to stay
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", r"The dirpath has changed from")  # a run folder may be moved
        # of several processes: each validates on everything (`StageData`), and the quantizer syncs its own buffers
        warnings.filterwarnings("ignore", r"It is recommended to use `self\.log\(.*sync_dist=True")
        warnings.filterwarnings("ignore", r"`broadcast_buffers` is deprecated")
        try:
            trainer.fit(job, data, ckpt_path=resume_from, weights_only=True)
        except OSError as error:
            if error.errno not in OF_THE_DISK:
                raise
            logs = checkpoint.parents[1] / LOGS  # TensorBoard's error names no file, and nobody else's comes here
            raise cannot_write(Path(error.filename or logs), error, GO_ON) from error
        except SIGTERMException as ended:  # a SystemExit of status 0: whoever waits would take the run for finished
            if trainer.local_rank:
                raise  # Lightning kills the first process of a machine when another one ends with a failure
            logger.warning("ended by SIGTERM: %s", _how_to_go_on(checkpoint))
            raise SystemExit(128 + signal.SIGTERM) from ended
        except SystemExit as ended:
            if not isinstance(ended.__context__, KeyboardInterrupt):
                raise
            logger.warning("ended by Ctrl-C: %s", _how_to_go_on(checkpoint))
            raise SystemExit(128 + signal.SIGINT) from ended


@contextmanager
def told_of_memory(what: str) -> Iterator[None]:
    """Raises ConfigError where the memory is too small for `what`, which says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        said, *_ = str(error).split("\n")
        raise ConfigError(f"the memory is too small {what} ({said or 'no more than that is known'})") from error


def _is_of_memory(error: RuntimeError | MemoryError) -> bool:
    """torch has an error of its own for a GPU's, and for the CPU's a text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _how_to_go_on(checkpoint: Path) -> str:
    if checkpoint.exists():
        return "--resume goes on from the last checkpoint"
    return "no checkpoint of this stage yet: --resume begins it anew"


def require_trainer(config: RunConfig) -> None:
    """Raises ConfigError where Lightning cannot train with `config.trainer` on this machine."""
    settings = config.trainer
    _quieten_lightning()
    try:
        trainer = Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=settings.strategy,
            precision=settings.precision,
            logger=False,
            enable_checkpointing=False,
        )
    except (MemoryError, OverflowError) as error:
        raise ConfigError(f"trainer.devices is {settings.devices}: there is no memory for so many") from error
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {error}") from error
    if settings.compile and trainer.strategy.root_device.type == "cpu":
        _require_compiler()
    stages = {"autoencoder": settings.autoencoder}
    if config.prior is not None and config.autoencoder.system == "vqvae":
        stages["prior"] = settings.prior
    for name, stage in stages.items():
        if stage.batch_size % trainer.world_size:
            raise ConfigError(
                f"trainer.{name}.batch_size {stage.batch_size} is not a multiple of the {trainer.world_size} "
                "processes: change either"
            )


def _require_compiler() -> None:
    """`torch.compile` looks for it at the first step."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"trainer.compile needs a C++ compiler, and there is no {compiler} here: install it, name another in CXX, "
            "or set trainer.compile=false"
        )


def _quieten_lightning() -> None:
    """It would print tips and lists of devices."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def checkpoint_of(name: str, folder: Path) -> Path:
    """Where the stage of this name keeps its last checkpoint, in the folder of a run."""
    return folder / CHECKPOINTS / f"{name}.ckpt"


def _trainer(
    name: str,
    job: Job,
    config: RunConfig,
    folder: Path,
    checkpoint: Path,
    precision: str,
    sheet: tuple[str, Sheet] | None,
    stopwatch: Stopwatch,
) -> Trainer:
    settings, stage = config.trainer, job.stage
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=_strategy(config),
        precision=precision,  # type: ignore[arg-type]
        max_epochs=-(-stage.steps // stage.validate_every),
        gradient_clip_val=stage.gradient_clip or None,
        log_every_n_steps=job.log_every,
        logger=TensorBoardLogger(folder, LOGS, name),
        callbacks=[
            stopwatch,
            Reseed(settings.seed),
            StopAtSIGTERM(job.log_every),
            StopAtNaN(checkpoint, job.log_every),
            StageProgress(name, stage.steps, job.log_every),
            ModelCheckpoint(
                checkpoint.parent, checkpoint.stem, save_on_train_epoch_end=True, enable_version_counter=False
            ),
            *([LogSheet(*sheet, settings.sample_every)] if sheet else []),
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
    every = settings.devices in ("auto", -1)
    devices = max(1, torch.cuda.device_count()) if every else int(settings.devices)
    if settings.strategy not in ("auto", "ddp") or devices * settings.nodes <= 1:
        return settings.strategy
    unused = config.autoencoder.quantizer.kind == "gradient"
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=unused)
