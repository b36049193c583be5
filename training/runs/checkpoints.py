"""Whether a stage can go on from a checkpoint. In: its file and the stage's job. Out: nothing, or a ConfigError."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from training.config import ConfigError

KEYS = {  # what Lightning restores
    "pytorch-lightning_version",
    "epoch",
    "global_step",
    "loops",
    "callbacks",
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
}
DAMAGE = (RuntimeError, ValueError, OverflowError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


def require_checkpoint(path: Path, job: nn.Module) -> None:
    """Raises ConfigError where Lightning could not restore `job` from `path`."""
    try:
        data = io.BytesIO(path.read_bytes())  # in which a position that there is not is no error of the disk
        usable = _is_whole(data)
        data.seek(0)
        usable = usable and _fits(torch.load(data, map_location="meta", weights_only=True), job)
    except DAMAGE as error:
        raise _unusable(path) from error
    if not usable:
        raise _unusable(path)


def _unusable(path: Path) -> ConfigError:
    return ConfigError(f"{path} is damaged or of another run: delete it, and --resume begins the stage anew")


def _is_whole(data: BinaryIO) -> bool:
    """Every file of the archive has its checksum, at which torch does not look, and is stored as torch stores it."""
    with zipfile.ZipFile(data) as archive:
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        return stored and archive.testzip() is None


def _fits(saved: Any, job: nn.Module) -> bool:
    if not isinstance(saved, dict) or KEYS - saved.keys() or not isinstance(saved["state_dict"], dict):
        return False
    return _shapes(saved["state_dict"]) == _shapes(job.state_dict())


def _shapes(tensors: dict[str, Any]) -> dict[str, object]:
    return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}
