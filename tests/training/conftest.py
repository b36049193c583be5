"""Small real digits, pictures of noise, and one tiny run that several tests only read."""

from __future__ import annotations

import gzip
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from training.config import RunConfig, load_config
from training.data import Split
from training.fit import fit
from training.runs import AUTOENCODER_FILE, CONFIG_FILE, METRICS_FILE, PRIOR_FILE, PROGRESS_FILE

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "tests" / "fixtures" / "mnist"  # 400 training and 100 test digits
TINY = ROOT / "training" / "configs" / "tiny.yaml"
RESULT_FILES = (AUTOENCODER_FILE, PRIOR_FILE, CONFIG_FILE, METRICS_FILE, PROGRESS_FILE)
VQ_ONLY = ("prior=null", "trainer.autoencoder.steps=30", "trainer.autoencoder.validate_every=15")


def tiny_config(*overrides: str) -> RunConfig:
    return load_config(TINY, [f"data.source={DIGITS}", *overrides])


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws is the same in every run, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny_config(), folder)
    return folder


def wait_for(checkpoint: Path, training: subprocess.Popen[str]) -> None:
    """Until the training has written its first checkpoint, however busy the machine is: pytest ends what hangs."""
    while not checkpoint.exists():
        assert training.poll() is None, training.communicate()[1][-2000:]
        time.sleep(0.05)


def weights(folder: Path, name: str = AUTOENCODER_FILE) -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def assert_same_weights(one: Path, two: Path, *names: str) -> None:
    for name in names:
        first, second = weights(one, name), weights(two, name)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


def digits(name: str) -> bytes:
    return gzip.decompress((DIGITS / f"{name}.gz").read_bytes())


def noise(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (20, 24)) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(noise((*size, 3), index)).save(folder / f"{index:02}.png")


def all_images(split: Split) -> Tensor:
    assert isinstance(split.images, Tensor)
    return split.images


def numbered(count: int) -> Split:
    """Pictures that are their own index."""
    return Split(torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1), torch.arange(count))


def copied(run: Path, folder: Path) -> Path:
    """The files of a finished run, to be changed."""
    folder.mkdir()
    for name in RESULT_FILES:
        (folder / name).write_bytes((run / name).read_bytes())
    return folder
