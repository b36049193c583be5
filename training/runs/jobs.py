"""The two stages of training as Lightning modules: the autoencoder, then the prior over its codes.

In: batches from a `Stream`: pictures uint8 (B,C,H,W), or codes int64 (B,h,w) for the prior, and labels int64 (B,).
Out: trained weights inside the modules; `training.fit` runs them and writes the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from training.config import StageConfig
from training.data import Batch, Split, Stream, to_unit
from training.models.autoencoders import VQVAE
from training.models.building import System
from training.models.exactness import prove_exact
from training.models.prior import EXACT_LIMIT, PixelCNN
from training.models.quantizers import VectorQuantizer


def learning_rate_factor(step: int, stage: StageConfig) -> float:
    """Linear from 1 / `warmup_steps` to 1 over so many steps, then half a cosine down to 0 at `steps`."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    progress = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Job(LightningModule):
    """What all stages share: AdamW with its schedule, and logging that costs nothing between `log_every` steps."""

    model: nn.Module  # what is trained and kept
    apply_model: Callable[..., Any]  # of a batch; `stages` may compile it, which leaves the model as it is

    def __init__(self, stage: StageConfig, log_every: int) -> None:
        super().__init__()
        self.stage, self.log_every = stage, min(log_every, stage.validate_every, stage.steps)

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, self.stage.learning_rate, weight_decay=self.stage.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, self.stage))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _log_step(self, metrics: dict[str, Tensor]) -> None:
        if (self.global_step + 1) % self.log_every == 0:
            self.log_dict({f"train/{name}": value for name, value in metrics.items()})
            self.log("loss", metrics["loss"], prog_bar=True, logger=False)


class AutoencoderJob(Job):
    """Any of the systems. `restart_until` is the part of the steps after which no dead code is restarted."""

    def __init__(self, model: System, stage: StageConfig, log_every: int, restart_until: float) -> None:
        super().__init__(stage, log_every)
        self.model: System = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster
        self.apply_model = self.model.forward
        self._last_restart = int(restart_until * stage.steps)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, labels = batch
        if self.global_step >= self._last_restart and isinstance(self.model, VQVAE):
            quantizer = self.model.quantizer
            if isinstance(quantizer, VectorQuantizer):
                quantizer.restart_every = 0
        output = self.apply_model(to_unit(images), labels)
        self._log_step({"loss": output.loss.detach()} | output.metrics)
        loss: Tensor = output.loss
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        images, labels = batch
        output = self.apply_model(to_unit(images), labels)
        self._log_validation({"loss": output.loss} | output.metrics, len(images))

    def _log_validation(self, metrics: dict[str, Tensor], batch_size: int) -> None:
        """All are means over batches; of perplexity and codes_used that is not the number of the whole split."""
        values = {f"validation/{name}": value for name, value in metrics.items()}
        self.log_dict(values, batch_size=batch_size, on_epoch=True, on_step=False)
        self.log("mse", metrics["mse"], batch_size=batch_size, on_epoch=True, prog_bar=True, logger=False)


class PriorJob(Job):
    """Teacher forcing on codes. Pictures are encoded first by the finished autoencoder, which never changes."""

    model: PixelCNN

    def __init__(
        self, model: PixelCNN, encoder: nn.Module, stage: StageConfig, log_every: int, label_dropout: float
    ) -> None:
        super().__init__(stage, log_every)
        self.model, self.label_dropout = model, label_dropout
        self.apply_model = model.loss
        self._encoder = [encoder]  # in a list, so that it is neither trained nor written to the prior's checkpoints

    def on_fit_start(self) -> None:
        self._encoder[0].to(self.device).eval()

    def on_fit_end(self) -> None:
        self._encoder[0].cpu()

    def _codes(self, batch: Tensor) -> Tensor:
        if batch.dtype != torch.uint8:
            return batch
        codes: Tensor = self._encoder[0].encode(to_unit(batch))  # type: ignore[operator]
        return codes

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        pictures_or_codes, labels = batch
        hidden = torch.rand(len(labels), device=labels.device) < self.label_dropout
        labels = torch.where(hidden, self.model.label_count, labels)
        loss: Tensor = self.apply_model(self._codes(pictures_or_codes), labels)
        self._log_step({"loss": loss.detach(), "bits_per_code": loss.detach() / math.log(2)})
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        pictures_or_codes, labels = batch
        bits = self.apply_model(self._codes(pictures_or_codes), labels) / math.log(2)
        name = "validation/bits_per_code"
        self.log(name, bits, batch_size=len(labels), on_epoch=True, on_step=False)
        self.log("bits", bits, batch_size=len(labels), on_epoch=True, prog_bar=True, logger=False)

    def on_validation_epoch_end(self) -> None:
        """Raises ExactnessError: what has come so far could not be exported, nor could what comes of it."""
        self.log("validation/largest_sum", prove_exact(self.model) / EXACT_LIMIT)


class _Batches:
    """A loader as Lightning takes it: `count` batches, made by number when they are needed."""

    def __init__(self, make: Callable[[int], Batch], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return map(self._make, range(self._count))


class StreamFactory(Protocol):
    """A process's share of the training batches."""

    def __call__(self, *, rank: int, world_size: int) -> Stream: ...


def pinned(batch: Batch) -> Batch:
    """The same in page-locked memory, from which a GPU copies while it computes."""
    images, labels = batch
    return images.pin_memory(), labels.pin_memory()


class StageData(LightningDataModule):
    """The batches of one Lightning epoch, which is the stretch between two validations and may be the shorter last one.

    They are made by step number, so that a resumed epoch sees what an uninterrupted run would have seen. Every process
    validates on the whole validation split: it is small, and the quantizer's sums over processes need the same number
    of calls from each. With `pin_memory` they are pinned where the device is a GPU.
    """

    def __init__(self, stream: StreamFactory, validation: Split, stage: StageConfig, *, pin_memory: bool) -> None:
        super().__init__()
        self._stream, self._validation, self._stage, self._pin_memory = stream, validation, stage, pin_memory

    def train_dataloader(self) -> _Batches:
        assert self.trainer is not None
        stage = self._stage
        first = self.trainer.current_epoch * stage.validate_every
        stream = self._stream(rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        count = min(stage.validate_every, stage.steps - first)
        return self._loader(lambda index: stream.batch(first + index), count)

    def val_dataloader(self) -> _Batches:
        images, labels = self._validation.images, self._validation.labels
        assert isinstance(images, Tensor)
        size = self._stage.batch_size
        batches = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
        return self._loader(batches.__getitem__, len(batches))

    def _loader(self, make: Callable[[int], Batch], count: int) -> _Batches:
        assert self.trainer is not None
        if self._pin_memory and self.trainer.strategy.root_device.type == "cuda":
            return _Batches(lambda index: pinned(make(index)), count)
        return _Batches(make, count)
