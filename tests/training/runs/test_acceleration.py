"""What makes training faster and must not change it: compiled steps and pinned batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import tiny_config
from training.config import ConfigError, RunConfig, StageConfig
from training.data import Split, Stream, load_data
from training.fit import fit_autoencoder, fit_prior
from training.models.autoencoders import VQVAE
from training.runs import AUTOENCODER_FILE, PRIOR_FILE, begin_progress
from training.runs.jobs import StageData
from training.runs.stages import require_trainer

SHORT = [
    "autoencoder.quantizer.start_step=2",
    "trainer.sample_every=0",
    *(f"trainer.{stage}.{key}" for stage in ("autoencoder", "prior") for key in ("steps=4", "validate_every=2")),
]


def train(config: RunConfig, folder: Path) -> None:
    """Both stages without the report."""
    data = load_data(config.data)
    folder.mkdir()
    begin_progress(folder, data)
    autoencoder = fit_autoencoder(config, data, folder)
    assert isinstance(autoencoder, VQVAE)
    fit_prior(config, data, autoencoder, folder)


def test_a_run_that_cannot_be_compiled_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback of torch, after the pictures had been read."""
    config = tiny_config("trainer.compile=true", "trainer.accelerator=cpu")
    monkeypatch.setenv("CXX", "true")  # a command that there is
    require_trainer(config)
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.raises(
        ConfigError, match=r"there is no no-compiler here: install it, .* or set trainer\.compile=false"
    ):
        require_trainer(config)
    require_trainer(tiny_config("trainer.accelerator=cpu"))


def test_a_compiled_run_compiles_both_stages_and_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is replaced by one that only counts calls: what it must preserve is torch's promise, not ours."""
    calls: list[str] = []

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            calls.append(function.__qualname__)
            return function(*arguments)

        return run

    train(tiny_config(*SHORT), tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", compiled)
    train(tiny_config(*SHORT, "trainer.compile=true"), tmp_path / "compiled")
    # 4 training steps, and after each second one the validation pictures: 40 in batches of 16
    assert calls == ["VQVAE.forward"] * (4 + 2 * 3) + ["PixelCNN.loss"] * (4 + 2 * 3)
    for name in (AUTOENCODER_FILE, PRIOR_FILE):
        plain, other = (load_file(tmp_path / folder / name) for folder in ("plain", "compiled"))
        assert plain.keys() == other.keys()
        assert all(torch.equal(plain[key], other[key]) for key in plain)


@pytest.mark.parametrize(
    ("device", "pin_memory", "expected"), [("cuda", True, 4), ("cuda", False, 0), ("cpu", True, 0)]
)
def test_batches_are_pinned_where_the_device_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, pin_memory: bool, expected: int
) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    split = Split(torch.arange(48, dtype=torch.uint8).reshape(3, 1, 4, 4), torch.arange(3))
    stage = StageConfig(steps=1, batch_size=3, validate_every=1)

    def stream(*, rank: int, world_size: int) -> Stream:
        return Stream(split, 3, seed=0, rank=rank, world_size=world_size)

    data = StageData(stream, split, stage, pin_memory=pin_memory)
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(strategy=strategy, current_epoch=0, global_rank=0, world_size=1)
    ((images, labels),) = data.train_dataloader()
    assert sorted(labels.tolist()) == [0, 1, 2]
    assert torch.equal(images, split.images[labels])
    ((images, labels),) = data.val_dataloader()
    assert torch.equal(images, split.images) and torch.equal(labels, split.labels)
    assert len(pinned) == expected
