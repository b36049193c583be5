"""What `run_stage` hands to Lightning, seen by a model of one weight, and a NaN that is never written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.conftest import tiny_config
from tests.training.runs.test_acceleration import SHORT, train
from training.config import StageConfig
from training.data import Batch, Split, Stream
from training.runs import stages
from training.runs.callbacks import TrainingDiverged
from training.runs.jobs import AutoencoderJob, Job, PriorJob, StageData
from training.runs.stages import checkpoint_of, run_stage
from training.runs.writing import WriteError

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .1. is smaller than the logging")
STEPS = StageConfig(steps=5, batch_size=2, validate_every=2)


class Slope(Job):
    """A weight that moves by its gradient, which is `gradient` at each step; `at_step` is called in each."""

    def __init__(self, stage: StageConfig, gradient: float = 1.0, at_step: Callable[[Slope], Any] | None = None):
        super().__init__(stage, log_every=2)
        self.model, self.gradient, self.at_step = nn.Linear(1, 1, bias=False), gradient, at_step
        self.model.register_buffer("codebook", torch.zeros(2))
        nn.init.zeros_(self.model.weight)
        self.taken, self.validations = 0, 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.taken += 1
        if self.at_step:
            self.at_step(self)
        return self.gradient * self.model.weight.sum()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.validations += 1


def run(job: Slope, folder: Path, **options: Any) -> None:
    split = Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    data = StageData(partial(Stream, split, job.stage.batch_size, 0), split, job.stage, pin_memory=False)
    run_stage("slope", job, data, tiny_config(), folder, **options)


# what Lightning is told


@pytest.mark.parametrize(("clip", "moved"), [(0.5, 0.5), (0.0, 1000.0)])
def test_a_huge_gradient_is_clipped_to_its_setting_and_not_at_all_by_zero(
    tmp_path: Path, clip: float, moved: float
) -> None:
    job = Slope(StageConfig(steps=1, batch_size=2, validate_every=1, gradient_clip=clip), gradient=1000)
    run(job, tmp_path)
    assert job.model.weight.item() == pytest.approx(-moved, rel=1e-4)  # torch divides by the norm + 1e-6


def test_a_stage_has_its_steps_though_they_are_no_multiple_of_validations(tmp_path: Path) -> None:
    job = Slope(STEPS)
    run(job, tmp_path)
    assert (job.taken, job.validations) == (5, 3)


@pytest.fixture
def any_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.usefixtures("any_algorithms")
def test_training_prefers_algorithms_that_repeat_their_bits(tmp_path: Path) -> None:
    found = set()

    def look(_: Slope) -> None:
        found.add((torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()))

    run(Slope(STEPS, at_step=look), tmp_path)
    assert found == {(True, True)}


def test_the_precision_is_that_of_the_autoencoder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior's integers need all bits of float32."""
    types: dict[str, set[torch.dtype | None]] = {}
    for job in (AutoencoderJob, PriorJob):
        seen: set[torch.dtype | None] = types.setdefault(job.__name__, set())

        def step(self: Job, batch: Batch, batch_index: int, seen: Any = seen) -> Tensor:
            seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return torch.stack([parameter.sum() for parameter in self.parameters()]).sum()  # convolutions take seconds

        monkeypatch.setattr(job, "training_step", step)
        monkeypatch.setattr(job, "validation_step", lambda self, batch, batch_index: None)
    train(tiny_config(*SHORT, "trainer.precision=bf16-mixed"), tmp_path / "run")
    assert types == {"AutoencoderJob": {torch.bfloat16}, "PriorJob": {None}}


@pytest.mark.parametrize(("kind", "unused"), [("gradient", True), ("ema", False), ("fsq", False)])
def test_processes_wait_for_all_gradients_but_where_the_codebook_has_none_yet(
    monkeypatch: pytest.MonkeyPatch, kind: str, unused: bool
) -> None:
    monkeypatch.setattr(stages, "DDPStrategy", dict)
    strategy: Any = stages._strategy(tiny_config(f"autoencoder.quantizer.kind={kind}", "trainer.devices=2"))
    assert strategy == {"broadcast_buffers": False, "find_unused_parameters": unused}


def test_all_devices_of_a_node_without_a_gpu_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no device, two nodes were no processes: they had Lightning's own DDP, which waits for gradients."""
    monkeypatch.setattr(stages, "DDPStrategy", dict)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    two = stages._strategy(tiny_config("trainer.devices=auto", "trainer.nodes=2"))
    assert two == {"broadcast_buffers": False, "find_unused_parameters": False}
    assert stages._strategy(tiny_config("trainer.devices=auto")) == "auto"


def test_no_sampler_is_put_into_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process's stream has its share already."""
    told: dict[str, Any] = {}

    class Told(stages.Trainer):
        def __init__(self, **options: Any) -> None:
            told.update(options)
            super().__init__(**options)

    monkeypatch.setattr(stages, "Trainer", Told)
    run(Slope(STEPS), tmp_path)
    assert told["use_distributed_sampler"] is False


# a NaN


def _spoil_weight(job: Slope) -> None:
    """The loss of this step is finite, its gradient is not."""
    job.model.weight.register_hook(lambda gradient: gradient * math.nan)


def _spoil_codebook(job: Slope) -> None:
    job.model.get_buffer("codebook").fill_(math.nan)


def _spoil_loss(job: Slope) -> None:
    job.gradient = math.nan


@pytest.mark.parametrize("spoil", [_spoil_loss, _spoil_weight, _spoil_codebook])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_nan_at_any_step_is_seen_before_a_sheet_is_drawn_or_weights_are_written(
    tmp_path: Path, spoil: Callable[[Slope], None], step: int
) -> None:
    """A codebook that is no number was written; the sheet of a prior without numbers failed, before the epoch's end."""

    def at_step(job: Slope) -> None:
        if job.taken == step:
            spoil(job)

    def draw() -> Any:
        assert all(torch.isfinite(tensor).all() for tensor in job.model.state_dict().values())
        return torch.zeros(1, 1, 3, dtype=torch.uint8).numpy()

    job = Slope(STEPS, at_step=at_step)
    good = "no checkpoint yet" if step <= 2 else r"the last good checkpoint is .*slope\.ckpt"
    with pytest.raises(TrainingDiverged, match=good):
        run(job, tmp_path, sheet=("sheet", draw))
    assert not (tmp_path / "slope.safetensors").exists()
    if step > 2:
        saved = torch.load(checkpoint_of("slope", tmp_path), weights_only=True)["state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_a_log_for_which_there_is_no_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`[Errno 28] No space left on device` was all that was said."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._AsyncWriter.write", full)
    with pytest.raises(WriteError, match=rf"^{tmp_path}/logs cannot be written \(No space .*go on with --resume$"):
        run(Slope(STEPS), tmp_path)
