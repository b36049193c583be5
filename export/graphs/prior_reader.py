"""The weights of a prior, read back from its teacher-forced graph.

In: the ONNX model of `prior`, as `export.graphs.prior_graphs` writes it. Out: a `PixelCNN` that computes the same. A
bundle needs no training run to get the graphs that a later version writes (`export.renew`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from export.graphs.prior_parts import BY_COLUMN, FloatArray, gate_shift
from training.models.prior import GATE_LIMIT, HORIZONTAL_TAPS, UNITS_PER_NAT, VERTICAL_TAPS, GatedLayer, PixelCNN


class UnreadableError(ValueError):
    """The graph is not one that `export.graphs.prior_graphs` writes; the message says what is missing."""


def read_prior(model: onnx.ModelProto, codebook_size: int, label_count: int) -> PixelCNN:
    """The prior of the graph, in evaluation mode. Its weights are those that the graph has, rounded as they are there.

    Raises:
        UnreadableError: the graph has other constants than such a prior.
    """
    constants = _constants(model)
    tables = [constants[name] for name in _inputs_of(model, "Gather", 0) if name in constants]
    matrices = [constants[name] for name in _inputs_of(model, "MatMul", 1) if name in constants]
    biases = [constants[name] for name in _inputs_of(model, "Add", 1) if name in constants]
    biases = [bias for bias in biases if bias.dtype == np.float32]
    try:
        embedding, *label_biases = tables
        channels = embedding.shape[1]
        wide = [len(matrix) // channels for matrix in matrices[:-1]]  # the head's has rows of its own number
        vertical, horizontal = wide.count(len(VERTICAL_TAPS)), wide.count(HORIZONTAL_TAPS)
        sizes = {"channels": channels, "vertical_layers": vertical, "horizontal_layers": horizontal}
        prior = PixelCNN(codebook_size, label_count, **sizes, head_channels=matrices[-1].shape[0])
        _fill(prior, embedding[1:], np.concatenate(label_biases, axis=1), iter(matrices), biases)
    except (IndexError, StopIteration, RuntimeError, ValueError) as error:
        raise UnreadableError(f"the graph `prior` has not the weights of a PixelCNN: {error}") from error
    return prior.requires_grad_(False).eval()


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Initializers, and what `GraphBuilder.scaled_constant` makes of them."""
    found = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and all(name in found for name in node.input):
            found[node.output[0]] = found[node.input[0]] * found[node.input[1]]
    return found


def _inputs_of(model: onnx.ModelProto, operator: str, place: int) -> Iterator[str]:
    """That input of every node of an operator, in the order of the graph."""
    return (node.input[place] for node in model.graph.node if node.op_type == operator)


def _fill(
    prior: PixelCNN,
    embedding: FloatArray,
    label_biases: FloatArray,
    matrices: Iterator[FloatArray],
    biases: list[FloatArray],
) -> None:
    """`matrices` in the order of `PixelCNN.forward`; all as `PriorParts` folds them."""
    prior.embedding = _parameter(embedding / UNITS_PER_NAT, prior.embedding)
    order = [BY_COLUMN.index(tap) for tap in VERTICAL_TAPS]
    for layer in prior.vertical:
        by_column = next(matrices).reshape(len(VERTICAL_TAPS), prior.channels, -1)
        _fill_layer(layer, by_column[order].reshape(-1, 2 * prior.channels), next(matrices))
    context = _unfolded(next(matrices).reshape(prior.channels, len(prior.horizontal), -1))
    prior.context.weight = _parameter(context.reshape(prior.channels, -1), prior.context.weight)
    for layer in prior.horizontal:
        _fill_layer(layer, next(matrices), next(matrices))
    for linear, bias in zip((prior.hidden, prior.head), biases, strict=True):
        assert linear.bias is not None
        linear.weight = _parameter(next(matrices), linear.weight)
        linear.bias = _parameter(bias / UNITS_PER_NAT, linear.bias)
    layers = label_biases.reshape(len(label_biases), -1, 2 * prior.channels) - gate_shift(prior.channels)
    unfolded = _unfolded(layers) / UNITS_PER_NAT
    prior.label_bias = _parameter(unfolded.reshape(len(label_biases), -1), prior.label_bias)


def _fill_layer(layer: nn.Module, taps: FloatArray, out: FloatArray) -> None:
    assert isinstance(layer, GatedLayer)
    layer.taps.weight = _parameter(_unfolded(taps), layer.taps.weight)
    layer.out.weight = _parameter(out * GATE_LIMIT, layer.out.weight)


def _unfolded(columns: FloatArray) -> FloatArray:
    """What `fold_gate` was given: a factor of 4, exact."""
    half = columns.shape[-1] // 2
    return np.concatenate([columns[..., :half], columns[..., half:] * 4], axis=-1)


def _parameter(values: NDArray[Any], like: nn.Parameter) -> nn.Parameter:
    """Raises ValueError for another shape."""
    if values.shape != like.shape:
        raise ValueError(f"weights of the shape {values.shape} where {tuple(like.shape)} is needed")
    return nn.Parameter(torch.from_numpy(np.array(values, np.float32)))
