"""Trains the tiny autoencoder on as many CPU processes as asked, and writes what each of them holds at the end.

Run as `python ddp_worker.py FOLDER DEVICES`; out: FOLDER/rank0.safetensors, FOLDER/rank1.safetensors, ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

import training.runs.stages
from tests.training.conftest import tiny_config
from training.fit import fit
from training.runs import save_weights
from training.runs.callbacks import Reseed


class ReseedAndSave(Reseed):
    """Takes the place of a callback that every process has."""

    folder: Path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_weights(pl_module.model, self.folder / f"rank{trainer.global_rank}.safetensors")


def main(folder: Path, devices: int) -> None:
    ReseedAndSave.folder = folder
    training.runs.stages.Reseed = ReseedAndSave  # type: ignore[misc]
    config = tiny_config(
        f"trainer.devices={devices}",
        "prior=null",
        "autoencoder.quantizer.start_step=2",
        "autoencoder.quantizer.restart_every=4",
        "trainer.autoencoder.steps=12",
        "trainer.autoencoder.validate_every=6",
    )
    fit(config, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
