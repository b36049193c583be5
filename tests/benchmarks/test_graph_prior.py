"""The way back from a graph to PyTorch, on a network with random weights and on the bundle that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from benchmarks.graph_prior import UnknownGraph, read_prior
from export.prior_graphs import PriorGraphWriter
from service.bundle import load_bundle
from training.prior import PixelCNN

MNIST = Path(__file__).parents[2] / "models" / "mnist"


@pytest.mark.parametrize(("labels", "vertical", "horizontal"), [(3, 2, 1), (0, 1, 3)])
def test_the_network_of_a_graph_is_the_one_that_was_written(
    tmp_path: Path, labels: int, vertical: int, horizontal: int
) -> None:
    torch.manual_seed(1)
    written = PixelCNN(12, labels, channels=8, vertical_layers=vertical, horizontal_layers=horizontal, head_channels=10)
    with torch.no_grad():
        written.label_bias.normal_(0, 0.3)
        for linear in (written.hidden, written.head):
            assert linear.bias is not None
            linear.bias.normal_(0, 0.5)
    onnx.save(PriorGraphWriter(written).teacher_forced(), tmp_path / "prior.onnx")
    read = read_prior(tmp_path / "prior.onnx")
    codes, label = torch.randint(0, 12, (2, 4, 5)), torch.tensor([0, labels])
    assert torch.equal(read(codes, label), written(codes, label))
    assert torch.equal(read.quantized_embedding(), written.quantized_embedding())


def test_the_shipped_prior_gives_the_logits_of_its_graph() -> None:
    path = load_bundle(MNIST).graph_path("prior")
    codes = np.random.default_rng(0).integers(0, 512, (3, 7, 7))
    labels = np.array([0, 9, 10])  # 10: no label
    (logits,) = ort.InferenceSession(path).run(None, {"codes": codes, "labels": labels})
    with torch.no_grad():
        found = read_prior(path)(torch.from_numpy(codes), torch.from_numpy(labels))
    assert np.array_equal(found.numpy(), logits)


def test_a_graph_of_another_make_is_refused() -> None:
    with pytest.raises(UnknownGraph, match="tables are looked up"):
        read_prior(load_bundle(MNIST).graph_path("encoder"))
