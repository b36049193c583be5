"""One training step and what happens around it, without a run: labels, logs, seeds, checkpoints, a NaN."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.conftest import tiny_config
from training.config import StageConfig
from training.models.building import build_autoencoder
from training.models.prior import PixelCNN
from training.runs.callbacks import LogSheet, Reseed, StopAtNaN, Stopwatch, TrainingDiverged
from training.runs.jobs import AutoencoderJob, PriorJob

STAGE = StageConfig(steps=10, batch_size=4, validate_every=5, learning_rate=0.01, weight_decay=0.125)


class Heard(nn.Module):
    """A prior that only notes what it is asked."""

    label_count = 3

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[Tensor] = []

    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        self.labels.append(labels)
        return torch.tensor(2.0)


def prior_job(label_dropout: float, monkeypatch: pytest.MonkeyPatch) -> tuple[PriorJob, Heard, dict[str, Any]]:
    heard, logged = Heard(), {}
    job = PriorJob(cast(PixelCNN, heard), nn.Identity(), STAGE, log_every=1, label_dropout=label_dropout)
    monkeypatch.setattr(job, "log", lambda name, value, **options: logged.update({name: (float(value), options)}))
    monkeypatch.setattr(job, "log_dict", lambda values: [job.log(name, value) for name, value in values.items()])
    return job, heard, logged


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_prior_forgets_a_share_of_the_labels(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    job, heard, _ = prior_job(share, monkeypatch)
    torch.manual_seed(0)
    labels = torch.arange(4000) % 3
    job.training_step((torch.zeros(4000, 1, 1, dtype=torch.int64), labels), 0)
    hidden = heard.labels[0] != labels
    assert (heard.labels[0][hidden] == 3).all(), "the number after the last one: no label"
    assert hidden.float().mean() == pytest.approx(share, abs=0.03)


def test_validation_keeps_all_labels_and_counts_in_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    job, heard, logged = prior_job(1.0, monkeypatch)
    batch = torch.zeros(7, 1, 1, dtype=torch.int64), torch.arange(7) % 3
    job.validation_step(batch, 0)
    assert torch.equal(heard.labels[0], batch[1])
    bits, options = logged["validation/bits_per_code"]
    assert bits == pytest.approx(2 / math.log(2))
    assert options["batch_size"] == 7, "else the last, smaller batch counts as much as the others"
    job.training_step(batch, 0)
    assert logged["train/bits_per_code"][0] == pytest.approx(2 / math.log(2))


def test_validation_of_an_autoencoder_weighs_batches_by_their_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    job = AutoencoderJob(build_autoencoder(config.autoencoder, (1, 28, 28), 10), STAGE, log_every=1, restart_until=0.5)
    sizes: list[int] = []
    monkeypatch.setattr(job, "log", lambda name, value, *, batch_size, **_: sizes.append(batch_size))
    monkeypatch.setattr(job, "log_dict", lambda values, *, batch_size, **_: sizes.append(batch_size))
    job.eval()
    job.validation_step((torch.zeros(6, 1, 28, 28, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64)), 0)
    assert sizes == [6, 6]


@pytest.mark.parametrize(("step", "restarts"), [(4, True), (5, False)])
def test_dead_codes_are_restarted_in_the_first_part_only(step: int, restarts: bool) -> None:
    class At(AutoencoderJob):
        global_step = step

        def _log_step(self, metrics: dict[str, Tensor]) -> None: ...

    job = At(build_autoencoder(tiny_config().autoencoder, (1, 28, 28), 10), STAGE, log_every=1, restart_until=0.5)
    before = cast(Any, job.model).quantizer.restart_every
    assert before > 0
    job.training_step((torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)), 0)
    assert cast(Any, job.model).quantizer.restart_every == (before if restarts else 0)


def test_the_optimizer_has_the_rates_of_the_stage() -> None:
    job = AutoencoderJob(
        build_autoencoder(tiny_config().autoencoder, (1, 28, 28), 10), STAGE, log_every=1, restart_until=0.5
    )
    (group,) = job.configure_optimizers()["optimizer"].param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (0.01, 0.125)


def test_every_epoch_and_process_has_random_numbers_of_its_own() -> None:
    def drawn(seed: int, epoch: int, rank: int) -> float:
        trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        Reseed(seed).on_train_epoch_start(trainer, cast(Any, None))
        return float(torch.rand(()))

    cases = [(seed, epoch, rank) for seed in (0, 1) for epoch in (0, 1) for rank in (0, 1)]
    numbers = [drawn(*case) for case in cases]
    assert len(set(numbers)) == len(cases)
    assert numbers == [drawn(*case) for case in cases]


def test_a_loss_that_is_not_finite_is_seen_at_the_next_look(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    stop, trainer = StopAtNaN(tmp_path / "last.ckpt", look_every=3), SimpleNamespace(global_step=0)

    def step(number: int, loss: float) -> None:
        trainer.global_step = number
        stop.on_train_batch_end(cast(Any, trainer), cast(Any, None), {"loss": torch.tensor(loss)}, None, 0)

    for number, loss in ((1, 1.0), (2, 1.0), (3, 1.0), (4, math.nan), (5, 1.0)):
        step(number, loss)
    with pytest.raises(TrainingDiverged, match=rf"at step 6; the last good checkpoint is {tmp_path}/last\.ckpt"):
        step(6, 1.0)


def test_seconds_of_training_go_on_after_an_interruption() -> None:
    first, second = Stopwatch(), Stopwatch()
    second.load_state_dict({"seconds": 100.0})
    assert 100 <= second.seconds < 110
    assert first.state_dict()["seconds"] == pytest.approx(first.seconds, abs=1)
    assert second.state_dict()["seconds"] >= 100


@pytest.mark.parametrize(("every", "drawn"), [(0, 0), (1, 6), (2, 3), (4, 1)])
def test_sheets_are_drawn_after_every_few_validations(every: int, drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Logger:
        def __init__(self) -> None:
            self.experiment = SimpleNamespace(add_image=lambda tag, image, step, dataformats: added.append((tag, step)))

    added: list[tuple[str, int]] = []
    monkeypatch.setattr("training.runs.callbacks.TensorBoardLogger", Logger)
    sheet = LogSheet("samples", lambda: np.zeros((1, 1, 1), np.uint8), every)
    for epoch in range(6):
        trainer = SimpleNamespace(is_global_zero=True, current_epoch=epoch, global_step=epoch, logger=Logger())
        sheet.on_train_epoch_end(cast(Any, trainer), cast(Any, None))
    assert len(added) == drawn
    assert all(tag == "samples" and (step + 1) % every == 0 for tag, step in added)
