"""A run folder: what `fit` leaves behind and `evaluate` and the export read. Nothing in it can execute code.

    config.json               the resolved configuration
    progress.json             what `--resume` goes by: digest and shape of the pictures, seconds of each finished stage
    autoencoder.safetensors   weights, codebook and its statistics
    prior.safetensors         weights, where the config has a prior
    metrics.json              quality on the test split, data digest and licence, code histogram, versions
    reconstructions.png, samples.png
    .lock                     held by the process that trains

`evaluate` on other data adds metrics-NAME.json and reconstructions-NAME.png (`training.report`), which nothing reads.
`checkpoints/` and `logs/` beside them belong to the training itself and may be deleted afterwards.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from training.config import ConfigError, RunConfig, parse_config
from training.data import DataSet
from training.models.autoencoders import VQVAE
from training.models.building import System, build_autoencoder, build_prior
from training.models.prior import PixelCNN
from training.runs.writing import AGAIN, GO_ON, written_whole

CONFIG_FILE, METRICS_FILE, PROGRESS_FILE = "config.json", "metrics.json", "progress.json"
AUTOENCODER_FILE, PRIOR_FILE = "autoencoder.safetensors", "prior.safetensors"
LOCK_FILE = ".lock"

logger = logging.getLogger(__name__)


class _Read(BaseModel):
    """The part of a file that is read again. Its values are taken as they stand, so they must have these types."""

    model_config = ConfigDict(strict=True)


_Picture = Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]  # C, H, W


class _Data(_Read):
    picture: _Picture
    labels: list[str]
    digest: str


class _Metrics(_Read):
    data: _Data


class _Progress(_Read):
    digest: str
    picture: _Picture = []  # runs of earlier versions have none
    seconds: dict[str, float]  # by stage


NEEDED: dict[str, type[_Read]] = {METRICS_FILE: _Metrics, PROGRESS_FILE: _Progress}


@dataclass(frozen=True)
class Run:
    """A finished run, loaded on the CPU in evaluation mode."""

    folder: Path
    config: RunConfig
    metrics: dict[str, Any]
    autoencoder: System
    prior: PixelCNN | None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Written beside and then renamed, so that an interruption leaves the earlier file whole."""
    with written_whole(path, AGAIN) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run, with what `NEEDED` lists for it.

    Raises:
        ConfigError: it is not there, cannot be read, or is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{path} does not exist: is {path.parent} the folder of a finished `python -m training fit`?"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): correct its permissions") from error
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8; or brackets without an end
        raise _damaged(path, error) from error
    if not isinstance(values, dict):
        raise _damaged(path, "it is no JSON object")
    try:
        NEEDED.get(path.name, _Read).model_validate(values)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise _damaged(path, "; ".join(problems)) from error
    return values


def _damaged(path: Path, problem: object) -> ConfigError:
    remedy = "bring it back from a copy, or begin anew in another folder"
    if path.name == METRICS_FILE:  # which can be measured again
        remedy = "delete it, and `python -m training fit --resume` writes it again"
    return ConfigError(f"{path} is damaged: {problem}: {remedy}")


def read_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`; keys added since it was begun have their defaults.

    Raises:
        ConfigError: it is not there, damaged, or of a release that took other values.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    try:
        return parse_config(values)
    except ConfigError as error:
        remedy = "bring it back from a copy, or take the release that began the run"
        raise ConfigError(f"{path} is damaged, or of another release: {error}: {remedy}") from error


_held: dict[Path, int] = {}  # file descriptors of the locks of this process


def hold_folder(folder: Path) -> None:
    """Make `folder`, and keep all other processes from training in it until this one ends, in whatever way.

    Raises:
        ConfigError: another process holds it, or it cannot be made or written to.
    """
    path = (folder / LOCK_FILE).resolve()
    if path in _held:
        os.close(_held.pop(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror}): correct its permissions, or choose another --out"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(f"another process trains in {folder}: end it, or choose another --out") from error
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): let no other process train there", folder, error.strerror)
    _held[path] = descriptor


def begin_progress(folder: Path, data: DataSet) -> None:
    """Remember which pictures a new run is trained on.

    Raises:
        ConfigError: the folder's run was begun with others.
    """
    path = folder / PROGRESS_FILE
    if not path.exists():
        write_json(path, {"digest": data.digest, "picture": list(data.picture), "seconds": {}})
    elif not data.is_that_of(read_json(path)):
        raise ConfigError(
            f"{folder} was begun with other pictures: going on needs the same ones; or choose another --out"
        )


def write_seconds(folder: Path, stage: str, seconds: float) -> None:
    """Note in progress.json how long a finished stage has taken."""
    progress = read_json(folder / PROGRESS_FILE)
    write_json(folder / PROGRESS_FILE, progress | {"seconds": progress["seconds"] | {stage: seconds}})


def save_weights(module: nn.Module, path: Path) -> None:
    """Written beside and then renamed, so that the file is whole or absent: `--resume` takes it as a finished stage.

    Not by `save_file`, whose files nobody but their owner may read.
    """
    with written_whole(path, GO_ON) as partial:
        partial.write_bytes(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of the file into `module`, which is in evaluation mode then.

    Raises:
        ConfigError: they are not there, cannot be read, are damaged, those of another model, or not finite.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: finish the run with `python -m training fit --resume`")
    try:
        weights = load_file(path)
        module.load_state_dict(weights)
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged ({error}): delete it and train again with --resume") from error
    except OSError as error:  # safetensors says of all of them that there is no such file
        raise ConfigError(f"{path} cannot be read: correct its permissions") from error
    except RuntimeError as error:  # torch lists every tensor
        raise ConfigError(
            f"{path} has the weights of another model: delete it and train again with --resume"
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ConfigError(f"{path} has weights that are no numbers: delete it and train again with --resume")
    module.eval()


def load_run(folder: Path) -> Run:
    """Read a run folder that `fit` has finished.

    Raises:
        ConfigError: the run is not finished, or a file is not there or damaged.
    """
    config = read_config(folder)
    if not (folder / METRICS_FILE).exists():  # which `fit` writes last
        raise ConfigError(f"{folder} is not finished: go on with `python -m training fit --resume`")
    metrics = read_json(folder / METRICS_FILE)
    channels, height, width = metrics["data"]["picture"]
    label_count = len(metrics["data"]["labels"])
    autoencoder = build_autoencoder(config.autoencoder, (channels, height, width), label_count)
    load_weights(autoencoder, folder / AUTOENCODER_FILE)
    prior = None
    if config.prior is not None and isinstance(autoencoder, VQVAE):
        prior = build_prior(config.prior, autoencoder.quantizer.codebook_size, label_count)
        load_weights(prior, folder / PRIOR_FILE)
    return Run(folder, config, metrics, autoencoder, prior)
