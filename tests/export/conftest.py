"""A small prior with all its graphs, and a finished tiny run to export."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from export.exactness import frequency_table
from export.prior_graphs import PriorGraphs
from service.bundle import GraphName
from tests.training.conftest import tiny_config
from training.fit import fit
from training.prior import PixelCNN

K, LABELS, WIDTH = 24, 3, 6
TABLE = frequency_table(K).numpy()


@pytest.fixture(scope="session")
def prior() -> PixelCNN:
    """Random weights, loud enough that neighbours and labels matter."""
    torch.manual_seed(0)
    prior = PixelCNN(K, LABELS, channels=12, vertical_layers=3, horizontal_layers=2, head_channels=20)
    with torch.no_grad():
        prior.label_bias.normal_(0, 0.3)
        prior.head.weight.mul_(4)
    return prior


@pytest.fixture(scope="session")
def models(prior: PixelCNN) -> dict[GraphName, onnx.ModelProto]:
    return PriorGraphs(prior).all(WIDTH, TABLE)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    fit(tiny_config(), folder)
    return folder
