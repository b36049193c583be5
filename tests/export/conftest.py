"""A small prior with all its graphs, and a finished tiny run to export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.graphs.prior_graphs import PriorGraphWriter
from service.bundle.fields import GraphName, Parity
from tests.training.conftest import TINY, tiny_config
from training.config import load_config
from training.fit import fit
from training.models.frequencies import frequency_table
from training.models.prior import PixelCNN

K, LABELS, WIDTH = 24, 3, 6
TABLE = frequency_table(K).numpy()


def loud(prior: PixelCNN, label_deviation: float) -> PixelCNN:
    """Random weights, loud enough that neighbours and labels matter."""
    with torch.no_grad():
        prior.label_bias.normal_(0, label_deviation)
        prior.head.weight.mul_(4)
    return prior


@pytest.fixture(scope="session")
def prior() -> PixelCNN:
    torch.manual_seed(0)
    return loud(PixelCNN(K, LABELS, channels=12, vertical_layers=3, horizontal_layers=2, head_channels=20), 0.3)


@pytest.fixture(scope="session")
def models(prior: PixelCNN) -> dict[GraphName, onnx.ModelProto]:
    return PriorGraphWriter(prior).all(WIDTH, TABLE)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    fit(tiny_config(), folder)
    return folder


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export without its comparison with PyTorch, which is most of its time, for what comes before and after it."""
    parity = Parity(pictures=0, codes_compared=0, codes_different=0, largest_pixel_difference=0)
    monkeypatch.setattr("export.build.verify", lambda *_: parity)


@pytest.fixture(scope="session")
def oblong_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 8 x 12 pixels in three colours, 4 x 6 codes: no axis is as long as another. Three labels."""
    folder = tmp_path_factory.mktemp("oblong")
    pictures = np.random.default_rng(0).integers(0, 256, (36, 8, 12, 3), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=pictures, labels=np.arange(36) % 3)
    overrides = (
        "name=oblong",
        f"data.source={folder / 'pictures.npz'}",
        "autoencoder={channels: 2, residual_blocks: 1, downsampling: 2, dimension: 7}",
        "autoencoder.quantizer={codebook_size: 10, start_step: 1, restart_every: 2}",
        "prior={channels: 5, vertical_layers: 1, horizontal_layers: 3, head_channels: 9}",
        "trainer.autoencoder={steps: 4, batch_size: 8, warmup_steps: 1, validate_every: 4}",
        "trainer.prior={steps: 4, batch_size: 8, warmup_steps: 1, validate_every: 4}",
    )
    fit(load_config(TINY, overrides), folder / "run")
    return folder / "run"
