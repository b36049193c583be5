"""The floor that the sampler's benchmark states rests on a count of multiplications; here it is counted in PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from benchmarks.sampler import Row, multiply_adds, page
from benchmarks.sampler_graphs import SortedRows
from export.graphs.prior_graphs import PriorGraphWriter
from export.reference_sampler import Controls
from export.verify_prior import sample_rows
from tests.export.conftest import loud
from tests.export.graphs.test_prior_graphs import sessions
from training.models.frequencies import frequency_table
from training.models.prior import FixedPointLinear, PixelCNN


def test_every_weight_is_counted_once_a_position(tmp_path: Path) -> None:
    """The count looked for initializers and failed on every bundle whose weights are stored as int8."""
    torch.manual_seed(0)
    prior = PixelCNN(12, 2, channels=6, vertical_layers=3, horizontal_layers=2, head_channels=10)
    path = tmp_path / "prior.onnx"
    path.write_bytes(PriorGraphWriter(prior).teacher_forced().SerializeToString())
    weights = sum(layer.weight.numel() for layer in prior.modules() if isinstance(layer, FixedPointLinear))
    assert multiply_adds(path, (4, 5)) == weights * 20


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sort_finds_the_thresholds_that_the_histogram_finds(threads: int) -> None:
    """Or the table would compare two different things. Eight equal logits among them, so that thresholds tie."""
    torch.manual_seed(1)
    prior = loud(PixelCNN(24, 2, channels=8, vertical_layers=2, horizontal_layers=2, head_channels=16), 0.5)
    assert prior.head.bias is not None
    with torch.no_grad():
        prior.head.weight[:, 8:16] = prior.head.weight[:, 8:9]
        prior.head.bias[8:16] = prior.head.bias[8]
    table, random = frequency_table(24).numpy(), np.random.default_rng(1)
    uniforms = (random.integers(0, 1 << 24, (40, 6, 6)) / (1 << 24)).astype(np.float32)
    controls = Controls(
        random.uniform(0.5, 2, 40).astype(np.float32),
        random.integers(1, 25, 40),
        random.uniform(0.01, 1, 40).astype(np.float32),
    )
    models = [writer(prior).row(6, table, filters=True) for writer in (PriorGraphWriter, SortedRows)]
    assert "TopK" not in {node.op_type for node in models[0].graph.node}
    assert "TopK" in {node.op_type for node in models[1].graph.node}
    level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    opened = [sessions({"prior_row": model}, threads, level) for model in models]
    one, other = (sample_rows(run, "prior_row", uniforms, np.zeros(40, np.int64), controls) for run in opened)
    assert np.array_equal(one, other)
    assert len(np.unique(one)) > 12


def test_the_page_has_a_table_a_prior_with_the_ratio_to_the_naive_loop() -> None:
    rows = [asdict(Row("row", 16, 20.0)), asdict(Row("naive", 16, 400.0, extrapolated=True))]
    prior = {"title": "7x7", "rows": rows, "floor_ms_a_sample": 0.5, "load_seconds": {"prior_row": 0.25}}
    machine = {"cpu": "x", "cpus": 2, "python": "3", "onnxruntime": "1", "load_average_1min": 0.0}
    result = {"command": "c", "machine": machine, "threads": 2, "peak_multiply_adds_per_s": 7e10}
    text = page({**result, "priors": {"p": {**prior, "export_seconds": {"prior": 0.5, "prior_row": 1.0}}}})
    assert "| row | 16 | 20.00 | 800.0 | 20.0 | 2.5 |" in text
    assert "| naive (extrapolated) | 16 | 400.00 | 40.0 | 1.0 | 50.0 |" in text
    assert "Opened in: prior_row 0.25 s. All graphs were written in 1.50 s." in text
