"""A small classifier of the data set's labels: its features measure samples, its answers check conditional ones.

In: pictures float32 (B,C,H,W) in [0,1]. Out: features (B,128), logits (B,labels).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from training.config import ConfigError, RunConfig, StageConfig
from training.data import Batch, DataSet, Split, Stream, to_unit
from training.runs import load_weights, read_json, write_json
from training.runs.jobs import Job, StageData
from training.runs.stages import checkpoint_of, run_stage

FEATURES = 128
LEAST_SIDE = 4  # pixels: each of two poolings halves it
SHIFT = 2  # pixels: training digits are moved by up to this much in each direction
BATCH_SIZE = 500
NAME = "classifier"
CLASSIFIER_FILE, ORIGIN_FILE = f"{NAME}.safetensors", f"{NAME}.json"


class Classifier(nn.Module):
    """Two convolutions and two layers: pictures (B,C,H,W) in [0,1] -> logits (B, labels). `picture` is (C, H, W)."""

    def __init__(self, picture: tuple[int, int, int], label_count: int) -> None:
        super().__init__()
        channels, height, width = picture
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.to_features = nn.Linear(64 * (height // 4) * (width // 4), FEATURES)
        self.dropout = nn.Dropout(0.5)
        self.to_logits = nn.Linear(FEATURES, label_count)

    def features(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,128), not negative."""
        features: Tensor = torch.relu(self.to_features(self.convolutions(images)))
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.to_logits(self.dropout(self.features(images)))
        return logits


class ClassifierJob(Job):
    """Cross entropy on pictures and labels."""

    model: Classifier

    def __init__(self, model: Classifier, stage: StageConfig, log_every: int) -> None:
        super().__init__(stage, log_every)
        self.model = model
        self.apply_model = model.forward

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.apply_model(to_unit(images)), labels)
        self._log_step({"loss": loss.detach()})
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        images, labels = batch
        accuracy = (self.apply_model(to_unit(images)).argmax(1) == labels).float().mean()
        self.log("validation/accuracy", accuracy, batch_size=len(labels), on_epoch=True, on_step=False)


def fit_classifier(config: RunConfig, data: DataSet, folder: Path) -> Classifier:
    """Train on randomly shifted pictures, or load what an earlier call has trained on the same data.

    Raises:
        ConfigError: the folder's classifier has another configuration or other data.
    """
    _begin(config, data, folder)
    seed_everything(config.trainer.seed, verbose=False)
    model = Classifier(data.picture, len(data.label_names))
    path = folder / CLASSIFIER_FILE
    if not path.exists():
        assert isinstance(data.train.images, Tensor)
        padded = Split(nn.functional.pad(data.train.images, (SHIFT,) * 4), data.train.labels)
        stage = config.compare.classifier
        stream = partial(Stream, padded, stage.batch_size, config.trainer.seed, crop=data.picture[1:])
        job = ClassifierJob(model, stage, config.trainer.log_every)
        batches = StageData(stream, data.validation, stage, pin_memory=config.trainer.pin_memory)
        run_stage(NAME, job, batches, config, folder)
    load_weights(model, path)
    return model


@rank_zero_only
def _begin(config: RunConfig, data: DataSet, folder: Path) -> None:
    """Say beside the weights what they come from; weights that say nothing are trained again."""
    origin = {
        "stage": config.compare.classifier.model_dump(mode="json"),
        "seed": config.trainer.seed,
        "data_digest": data.digest,
        "picture": list(data.picture),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ORIGIN_FILE
    if not path.exists():
        for left in (folder / CLASSIFIER_FILE, checkpoint_of(NAME, folder)):
            left.unlink(missing_ok=True)
        write_json(path, origin)
    elif {"picture": origin["picture"]} | read_json(path) != origin:  # one of an earlier version does not say it
        raise ConfigError(
            f"{path} has another compare.classifier, trainer.seed or data: choose another --out, or delete the file to "
            "train a new classifier"
        )


@torch.no_grad()
def describe(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (N,C,H,W) in [0,1] -> features (N,128) and the label that the classifier sees, (N,)."""
    features = torch.cat([model.features(part) for part in torch.split(images, BATCH_SIZE)])
    return features, model.to_logits(features).argmax(1)
