"""Restarts of dead codes end before the training does; FSQ has none."""

from __future__ import annotations

import pytest
import torch

from tests.training.conftest import tiny_config
from training.models.autoencoders import VQVAE
from training.models.building import build_autoencoder
from training.models.scalar_quantizer import FiniteScalarQuantizer
from training.runs.jobs import AutoencoderJob


@pytest.mark.parametrize("kind", ["ema", "gradient", "fsq"])
def test_the_last_restart_is_set_on_learned_codebooks_alone(kind: str) -> None:
    config = tiny_config(f"autoencoder.quantizer.kind={kind}")
    model = build_autoencoder(config.autoencoder, (1, 28, 28), 0)
    assert isinstance(model, VQVAE)
    job = AutoencoderJob(model, config.trainer.autoencoder, log_every=50, restart_until=0.0)
    job.training_step((torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)), 0)
    assert hasattr(model.quantizer, "restart_every") == (not isinstance(model.quantizer, FiniteScalarQuantizer))
    assert getattr(model.quantizer, "restart_every", 0) == 0
