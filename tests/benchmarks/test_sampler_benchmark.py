"""The floor that the sampler's benchmark states rests on a count of multiplications; here it is counted in PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.sampler import multiply_adds
from export.prior_graphs import PriorGraphs
from training.prior import FixedPointLinear, PixelCNN


def test_every_weight_is_counted_once_a_position(tmp_path: Path) -> None:
    """The count looked for initializers and failed on every bundle whose weights are stored as int8."""
    torch.manual_seed(0)
    prior = PixelCNN(12, 2, channels=6, vertical_layers=3, horizontal_layers=2, head_channels=10)
    path = tmp_path / "prior.onnx"
    path.write_bytes(PriorGraphs(prior).teacher_forced().SerializeToString())
    weights = sum(layer.weight.numel() for layer in prior.modules() if isinstance(layer, FixedPointLinear))
    assert multiply_adds(path, (4, 5)) == weights * 20
