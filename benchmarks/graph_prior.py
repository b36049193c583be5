"""A bundle's prior as a PyTorch network again: `prior.onnx` -> `training.prior.PixelCNN`, the way back of the export.

In: the file of a teacher-forced prior. Out: a `PixelCNN` with the same integers, so that PyTorch can be compared with
a bundle whose run folder is gone. Every constant of the graph is used exactly once; a graph of another make is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from training.prior import GATE_LIMIT, UNITS_PER_NAT, VERTICAL_TAPS, FixedPointLinear, GatedLayer, PixelCNN

FloatArray = NDArray[np.float32]
# the order in which `export.prior_graphs` puts the taps of a vertical layer side by side: by column, then row
TAP_ORDER = [VERTICAL_TAPS.index((row, column)) for column in (-1, 0, 1) for row in (0, -1)]


class UnknownGraph(ValueError):
    """The file is not a prior as `export.prior_graphs.PriorGraphWriter.teacher_forced` writes it."""


def read_prior(path: Path) -> PixelCNN:
    """The network whose logits are those of the graph, bit for bit.

    Raises:
        UnknownGraph: the constants are not those of a teacher-forced prior.
    """
    constants = Constants(path)
    embedding, vertical_bias, horizontal_bias = constants.gathered()
    matrices = constants.multiplied()
    channels = embedding.shape[1]
    layers = [bias.shape[1] // (2 * channels) for bias in (vertical_bias, horizontal_bias)]
    if len(matrices) != 2 * sum(layers) + 3:
        raise UnknownGraph(f"{path}: {len(matrices)} matrices do not make {layers[0]} and {layers[1]} layers")
    prior = PixelCNN(
        len(embedding) - 1,
        len(vertical_bias) - 1,
        channels=channels,
        vertical_layers=layers[0],
        horizontal_layers=layers[1],
        head_channels=matrices[-1].shape[0],
    )
    given = iter(matrices)
    with torch.no_grad():
        prior.embedding.copy_(torch.from_numpy(embedding[1:] / UNITS_PER_NAT))  # row 0 stands for "no code"
        prior.label_bias.copy_(_shadow_of_label_bias(np.concatenate([vertical_bias, horizontal_bias], 1), channels))
        for layer in cast(list[GatedLayer], list(prior.vertical)):
            _fill(layer.taps, _in_tap_order(_unfolded(next(given), channels), channels))
            _fill(layer.out, next(given) * GATE_LIMIT)
        _fill(prior.context, _unfolded(next(given), channels))
        for layer in cast(list[GatedLayer], list(prior.horizontal)):
            _fill(layer.taps, _unfolded(next(given), channels))
            _fill(layer.out, next(given) * GATE_LIMIT)
        for linear, bias in zip((prior.hidden, prior.head), constants.added(), strict=True):
            _fill(linear, next(given))
            assert linear.bias is not None
            linear.bias.copy_(torch.from_numpy(bias / UNITS_PER_NAT))
    return prior


def _unfolded(matrix: FloatArray, channels: int) -> FloatArray:
    """The sigmoid half of every gate times 4, by which the export divides it."""
    gates = matrix.reshape(matrix.shape[0], -1, 2, channels) * np.array([1, 4], np.float32)[:, None]
    return gates.reshape(matrix.shape)


def _shadow_of_label_bias(folded: FloatArray, channels: int) -> Tensor:
    """(labels+1, layers*2C) as the graph has it, with the +1/2 of the hard sigmoid in it -> real units."""
    shift = np.array([0, GATE_LIMIT / 2], np.float32)[:, None]
    shifted = (folded.reshape(len(folded), -1, 2, channels) - shift).reshape(folded.shape)
    return torch.from_numpy(_unfolded(shifted, channels) / UNITS_PER_NAT)


def _in_tap_order(matrix: FloatArray, channels: int) -> FloatArray:
    taps = matrix.reshape(len(TAP_ORDER), channels, -1)
    return taps[np.argsort(TAP_ORDER)].reshape(matrix.shape)


def _fill(linear: FixedPointLinear, matrix: FloatArray) -> None:
    linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix)))
    if not np.array_equal(linear.quantized_weight().numpy(), matrix):
        raise UnknownGraph(f"a matrix of shape {matrix.shape} is not in units of 1/128 below 1")


class Constants:
    """The constants of a graph by the kind of node that uses them, in the order of the nodes."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self._nodes = list(graph.node)
        self._values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        for node in self._nodes:  # int8 constants become float32, times a scale a column
            if node.op_type == "Cast" and node.input[0] in self._values:
                self._values[node.output[0]] = self._values[node.input[0]].astype(np.float32)
            elif node.op_type == "Mul" and all(name in self._values for name in node.input):
                self._values[node.output[0]] = self._values[node.input[0]] * self._values[node.input[1]]

    def gathered(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The embedding and the label biases of both stacks."""
        tables = [self._values[n.input[0]] for n in self._nodes if n.op_type == "Gather" and n.input[0] in self._values]
        if len(tables) != 3:
            raise UnknownGraph(f"{len(tables)} tables are looked up, a prior has 3")
        return tables[0], tables[1], tables[2]

    def multiplied(self) -> list[FloatArray]:
        return [self._values[n.input[1]] for n in self._nodes if n.op_type == "MatMul"]

    def added(self) -> Iterator[FloatArray]:
        """What is added to a product, one number a column: the biases of the last two layers."""
        products = {n.output[0] for n in self._nodes if n.op_type == "MatMul"}
        for node in self._nodes:
            if node.op_type == "Add" and node.input[0] in products and node.input[1] in self._values:
                yield self._values[node.input[1]]
