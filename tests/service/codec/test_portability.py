"""Containers do not depend on what computes the prior: onnxruntime in any setting, ONNX's reference, or PyTorch.

The prior has random weights: its logits are as spread as a trained one's, and equality does not depend on their values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from benchmarks.tiny_prior import FREQUENCY_TABLE, tiny_model
from benchmarks.torch_graphs import TorchGraphs
from export.graphs.prior_graphs import PriorGraphWriter
from service.codec import decode, encode
from service.codec.codec_model import CodecModel
from service.codec.container import Mode
from service.codec.prior_coding import IntegerPrior, PriorGraphs
from service.inference.prior_sessions import PriorSessions
from service.inference.sessions import Session
from training.models.prior import HORIZONTAL_TAPS, PixelCNN

K, LABELS, GRID = 24, 3, (5, 6)
LAYERS, CHANNELS = 2, 16


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of PyTorch: on a busy machine every small operation waits until its other threads get their turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network(one_thread: None) -> PixelCNN:
    torch.manual_seed(3)
    prior = PixelCNN(
        K, LABELS, channels=CHANNELS, vertical_layers=LAYERS, horizontal_layers=LAYERS, head_channels=CHANNELS
    )
    with torch.no_grad():
        prior.label_bias.normal_(0, 0.3)
    return prior.eval()


def onnxruntime_prior(models: list[onnx.ModelProto], threads: int, level: ort.GraphOptimizationLevel) -> PriorSessions:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.graph_optimization_level = threads, level
    sessions = [
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]) for model in models
    ]
    return PriorSessions(*sessions)


def configurations(network: PixelCNN) -> Iterator[tuple[str, PriorGraphs]]:
    writer = PriorGraphWriter(network)
    models = [writer.teacher_forced(), writer.context_row(), writer.pixel()]
    levels = ort.GraphOptimizationLevel
    for threads, level in product((1, 2), (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL)):
        yield f"{threads} threads, {level}", onnxruntime_prior(models, threads, level)
    yield "reference evaluator", PriorSessions(*(cast(Session, ReferenceEvaluator(model)) for model in models))
    yield "PyTorch", TorchGraphs(network)


def model_with(graphs: PriorGraphs) -> CodecModel:
    shapes = ((LAYERS + 1, GRID[1], CHANNELS), (LAYERS, HORIZONTAL_TAPS - 1, CHANNELS))
    prior = IntegerPrior(graphs, K, FREQUENCY_TABLE, LABELS, *shapes)
    return replace(tiny_model(codebook_size=K, native_grid=GRID), prior=prior)


@pytest.fixture(scope="module")
def models(network: PixelCNN) -> dict[str, CodecModel]:
    return {name: model_with(graphs) for name, graphs in configurations(network)}


@pytest.mark.parametrize(
    ("shape", "size", "indexed"),
    [((3, 5, 6), (20, 24), False), ((1, 8, 13), (31, 50), False), ((1, 8, 13), (31, 50), True)],
)
def test_bytes_and_codes_are_the_same_in_every_configuration(
    models: dict[str, CodecModel], shape: tuple[int, int, int], size: tuple[int, int], indexed: bool
) -> None:
    codes = np.random.default_rng(5).integers(0, K, shape)
    labels = None if indexed else np.arange(shape[0]) % LABELS
    mode = Mode.PRIOR if indexed else Mode.LABELLED
    written = {
        name: encode(model, codes, size=size, labels=labels, modes=[mode], indexed=indexed)
        for name, model in models.items()
    }
    assert len(models) == 6 and len(set(written.values())) == 1
    data = written["PyTorch"]
    for name, model in models.items():
        assert np.array_equal(decode(model, data).codes, codes), name


def test_the_batch_does_not_matter(models: dict[str, CodecModel]) -> None:
    """64 pictures in one container, and each in its own: the same codes, and payloads of the same information."""
    model = next(iter(models.values()))
    codes = np.random.default_rng(6).integers(0, K, (64, *GRID))
    together = encode(model, codes, modes=[Mode.PRIOR])
    assert np.array_equal(decode(model, together).codes, codes)
    alone = [encode(model, codes[index : index + 1], modes=[Mode.PRIOR]) for index in range(64)]
    assert all(np.array_equal(decode(model, data).codes[0], codes[index]) for index, data in enumerate(alone))
    saved = sum(map(len, alone)) - len(together)
    assert 64 * 10 - 11 <= saved <= 64 * 11  # the headers, and less than a byte of flush a picture
