"""What happens around the training steps: repeatable randomness, stops at a NaN or a SIGTERM, pictures in TensorBoard.

In: Lightning's hooks. Out: log entries and, where the loss is not finite, a `TrainingDiverged` that names the last good
checkpoint. Of several processes all stop at the same step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch import Tensor

from training.errors import TrainingError
from training.models.ranks import on_any_rank
from training.runs.writing import GO_ON, written_whole

Sheet = Callable[[], NDArray[np.uint8]]  # draws a picture (H,W,C) of how training stands


class TrainingDiverged(TrainingError):
    """The loss or a weight is not finite; the message names the last good checkpoint."""


class Reseed(Callback):
    """Seed every epoch by its number and the process, so that a resumed run draws what an uninterrupted one would."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = np.random.SeedSequence([self._seed, trainer.current_epoch, trainer.global_rank]).generate_state(1)
        torch.manual_seed(int(state[0]))


class Stopwatch(Callback):
    """Seconds of training, those before an interruption included: the checkpoint remembers them."""

    def __init__(self) -> None:
        self._earlier, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._earlier = state_dict["seconds"]


class StopAtSIGTERM(Callback):
    """Ends a training soon after any of its processes is told to.

    Lightning's own handler broadcasts the news from wherever the signal finds each process, between sums over
    processes that it has no part in: each of them then waits for the other. This one takes a note, which all processes
    look at together; several of them every `look_every` steps, since asking the others means to wait for the GPU.
    """

    def __init__(self, look_every: int) -> None:
        self._look_every = look_every
        self._told, self._earlier = False, signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle(self._note)  # Lightning has set its own by now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size == 1 or trainer.global_step % self._look_every == 0:
            self._look(pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._look(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle(self._earlier or signal.SIG_DFL)  # first, so that no signal stays unseen
        self._look(pl_module)

    def _handle(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may
            signal.signal(signal.SIGTERM, handler)

    def _note(self, *_: object) -> None:
        self._told = True

    def _look(self, pl_module: LightningModule) -> None:
        if on_any_rank(self._told, pl_module.device):
            raise SIGTERMException


class StopAtNaN(Callback):
    """Stops a run whose loss is not finite, before it can overwrite the last good checkpoint.

    The losses are summed on the device and the sum, which keeps a NaN or an infinity, is read every `look_every` steps:
    reading each one would be one more wait for a GPU in every step. Before a validation, a checkpoint and the writing
    of the weights, all that is written is looked at too.
    """

    def __init__(self, checkpoint: Path, look_every: int) -> None:
        self._checkpoint, self._look_every = checkpoint, look_every
        self._sum: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach()
        self._sum = loss if self._sum is None else self._sum + loss
        if trainer.global_step % self._look_every == 0:
            self._check(trainer, [self._sum])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_all(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_all(trainer, pl_module)
        self._sum = None

    def _check_all(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses = [] if self._sum is None else [self._sum]
        self._check(trainer, [*losses, *pl_module.state_dict().values()])

    def _check(self, trainer: Trainer, tensors: list[Tensor]) -> None:
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        if not on_any_rank(not finite, tensors[0].device):
            return
        good = f"the last good checkpoint is {self._checkpoint}" if self._checkpoint.exists() else "no checkpoint yet"
        raise TrainingDiverged(
            f"the loss or a weight is not finite at step {trainer.global_step}; {good}. Lower the stage's learning_rate"
            " and start in a new folder"
        )


class LogSheet(Checkpoint):
    """Adds a picture to TensorBoard after every `every`-th validation.

    It may take long: as one of Lightning's `Checkpoint`, which come last, it follows the `ModelCheckpoint` before it in
    the list, so that an interruption loses no steps.
    """

    def __init__(self, tag: str, draw: Sheet, every: int) -> None:
        self._tag, self._draw, self._every = tag, draw, every

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._every == 0 or (trainer.current_epoch + 1) % self._every:
            return
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_image(self._tag, self._draw(), trainer.global_step, dataformats="HWC")


class StageProgress(ProgressBar):
    """One bar for the whole stage, with its last logged numbers; Lightning's own starts anew at each validation."""

    def __init__(self, name: str, steps: int, refresh_every: int) -> None:
        super().__init__()
        self._name, self._steps, self._refresh_every = name, steps, refresh_every
        self._bar: Tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hidden = not trainer.is_global_zero
        self._bar = Tqdm(desc=self._name, total=self._steps, initial=trainer.global_step, disable=hidden)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self._refresh_every == 0:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
            numbers = self.get_metrics(trainer, pl_module)
            self._bar.set_postfix({name: value for name, value in numbers.items() if name != "v_num"})

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def disable(self) -> None:
        """Lightning calls this on every process but the first; `on_train_start` has decided by then."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is written beside its name and then renamed: an interruption leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Lightning would write it to the folder of temporary files first, which may be full where this one is not."""
        content = BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with written_whole(Path(path), GO_ON) as partial:
            partial.write_bytes(content.getvalue())  # a view of it would outlive it where the writing fails
