"""The classifier that measures samples: what it is trained on, and how it describes pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.training.conftest import tiny_config
from training.compare import classifier as module
from training.compare.classifier import Classifier, ClassifierJob, describe, fit_classifier
from training.config import RunConfig, StageConfig
from training.data import Batch, DataSet, Split
from training.runs import save_weights
from training.runs.jobs import Job, StageData

STAGE = "compare.classifier={steps: 9, batch_size: 40, validate_every: 4}"


def dots(count: int) -> Split:
    """White pictures of 8 x 12 pixels with a dot at (4,6), of which none is black; their labels go round by it."""
    images = torch.full((count, 1, 8, 12), 255, dtype=torch.uint8)
    images[:, 0, 4, 6] = torch.arange(3, count + 3)
    return Split(images, torch.arange(count) % 3)


def test_it_is_trained_on_pictures_that_are_shifted_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By up to two pixels: the dot comes to all 25 places, in a picture of the same size with black at its edge."""
    found: dict[str, Any] = {}

    def run_stage(name: str, job: Job, data: StageData, config: RunConfig, folder: Path) -> None:
        strategy = SimpleNamespace(root_device=torch.device("cuda"))
        data.trainer = cast(Any, SimpleNamespace(strategy=strategy, current_epoch=0, global_rank=0, world_size=1))
        found.update(job=job, batches=list(data.train_dataloader()), validation=list(data.val_dataloader()))
        found["weights"] = {key: value.clone() for key, value in job.model.state_dict().items()}
        save_weights(job.model, folder / f"{name}.safetensors")

    def pin(batch: Batch) -> Batch:
        pinned.append(batch)
        return batch

    pinned: list[Batch] = []
    monkeypatch.setattr("training.runs.jobs.pinned", pin)
    monkeypatch.setattr(module, "run_stage", run_stage)
    data = DataSet(dots(60), dots(10), dots(7), ("a", "b", "c"), (), (1, 8, 12), "digest")
    firsts = []
    for seed, pin_memory in ((1, "true"), (5, "false")):
        config = tiny_config(STAGE, "trainer.log_every=3", f"trainer.seed={seed}", f"trainer.pin_memory={pin_memory}")
        trained = fit_classifier(config, data, tmp_path / str(seed))
        assert not trained.training
        torch.manual_seed(seed)
        begun = Classifier((1, 8, 12), 3).state_dict()
        assert all(torch.equal(value, begun[key]) for key, value in found["weights"].items())
        assert (found["job"].stage, found["job"].log_every) == (config.compare.classifier, 3)
        places = set()
        for images, labels in found["batches"]:
            assert images.shape == (40, 1, 8, 12)
            for image, label in zip(images[:, 0], labels, strict=True):
                ((row, column),) = ((image > 0) & (image < 255)).nonzero().tolist()
                assert image[row, column] % 3 == label
                down, right = row - 4, column - 6
                assert (image == 255).sum() == (8 - abs(down)) * (12 - abs(right)) - 1
                places.add((down, right))
        assert places == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}
        assert torch.equal(found["validation"][0][0], data.validation.images)
        firsts.append(found["batches"][0][1])
    assert not torch.equal(*firsts)
    assert len(pinned) == 4 + 1  # of the first of the two: its batches before a validation, and that one's


class Dark(nn.Module):
    """Two logits: of dark and of light pictures."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([1 - mean, mean], dim=1) * 4


def test_its_loss_and_accuracy_are_those_of_pictures_in_unit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ClassifierJob(cast(Classifier, Dark()), StageConfig(steps=1, batch_size=4, validate_every=1), log_every=1)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(job, "log", lambda name, value, **options: logged.update({name: (float(value), options)}))
    monkeypatch.setattr(job, "_log_step", lambda metrics: None)
    images = torch.tensor([0, 0, 0, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    batch = images, torch.tensor([0, 0, 1, 1])
    right, wrong = (torch.tensor(4.0).exp().add(1).log() - logit for logit in (4, 0))
    assert job.training_step(batch, 0).item() == pytest.approx((3 * right + wrong).item() / 4)
    job.validation_step(batch, 0)
    accuracy, options = logged["validation/accuracy"]
    assert accuracy == 0.75 and options["batch_size"] == 4


def test_pictures_are_described_in_their_order_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = Classifier((1, 8, 12), 5).eval(), torch.rand(7, 1, 8, 12)
    monkeypatch.setattr(module, "BATCH_SIZE", 3)
    features, labels = describe(model, images)
    assert features.shape == (7, 128) and features.min() == 0 and not features.requires_grad
    torch.testing.assert_close(features, torch.relu(model.to_features(model.convolutions(images))).detach())
    assert torch.equal(labels, model(images).argmax(1))


def test_half_of_the_features_are_hidden_in_training_and_none_afterwards() -> None:
    torch.manual_seed(0)
    model, images = Classifier((1, 8, 12), 5), torch.rand(2, 1, 8, 12)
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
