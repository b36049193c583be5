"""The floor that the sampler's benchmark states rests on a count of multiplications; here it is counted in PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.sampler import Row, multiply_adds, page
from export.prior_graphs import PriorGraphWriter
from training.prior import FixedPointLinear, PixelCNN


def test_every_weight_is_counted_once_a_position(tmp_path: Path) -> None:
    """The count looked for initializers and failed on every bundle whose weights are stored as int8."""
    torch.manual_seed(0)
    prior = PixelCNN(12, 2, channels=6, vertical_layers=3, horizontal_layers=2, head_channels=10)
    path = tmp_path / "prior.onnx"
    path.write_bytes(PriorGraphWriter(prior).teacher_forced().SerializeToString())
    weights = sum(layer.weight.numel() for layer in prior.modules() if isinstance(layer, FixedPointLinear))
    assert multiply_adds(path, (4, 5)) == weights * 20


def test_the_page_has_a_table_a_prior_with_the_ratio_to_the_naive_loop() -> None:
    rows = [asdict(Row("row", 16, 20.0)), asdict(Row("naive", 16, 400.0, extrapolated=True))]
    prior = {"title": "7x7", "rows": rows, "floor_ms_a_sample": 0.5, "load_seconds": {"prior_row": 0.25}}
    machine = {"cpu": "x", "cpus": 2, "python": "3", "onnxruntime": "1", "load_average_1min": 0.0}
    result = {"command": "c", "machine": machine, "threads": 2, "peak_multiply_adds_per_s": 7e10}
    text = page({**result, "priors": {"p": {**prior, "export_seconds": {"prior": 0.5, "prior_row": 1.0}}}})
    assert "| row | 16 | 20.00 | 800.0 | 20.0 | 2.5 |" in text
    assert "| naive (extrapolated) | 16 | 400.00 | 40.0 | 1.0 | 50.0 |" in text
    assert "Opened in: prior_row 0.25 s. All graphs were written in 1.50 s." in text
