"""Trains the tiny autoencoder on as many CPU processes as asked, and writes what each of them holds at the end.

    python ddp_worker.py FOLDER DEVICES      -> FOLDER/rank0.safetensors, ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch import Trainer
from torch import nn

import training.fit
from tests.training.conftest import tiny_config
from training.data import load_data
from training.runs import save_weights

save = training.fit._save


def save_on_every_rank(trainer: Trainer, model: nn.Module, path: Path) -> None:
    save_weights(model.cpu(), path.with_name(f"rank{trainer.global_rank}.safetensors"))
    save(trainer, model, path)


def main(folder: Path, devices: int) -> None:
    training.fit._save = save_on_every_rank
    config = tiny_config(
        f"trainer.devices={devices}",
        "autoencoder.quantizer.start_step=2",
        "autoencoder.quantizer.restart_every=4",
        "trainer.autoencoder.steps=12",
        "trainer.autoencoder.validate_every=6",
    )
    training.fit.fit_autoencoder(config, load_data(config.data), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
