"""The parts of the prior as ONNX nodes, in the order of `PixelCNN.forward`, for every graph that needs them.

In: a trained `training.models.prior.PixelCNN`. Out: `PriorParts`, whose methods add a layer, a stack, a pixel or the
head to a `GraphBuilder`. They compute what the module computes, bit for bit; `export.graphs.prior_graphs` makes graphs
of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from export.graphs.onnx_builder import GraphBuilder
from training.models.prior import (
    EMBEDDING_LIMIT,
    GATE_LIMIT,
    HEAD_LIMIT,
    HORIZONTAL_TAPS,
    STREAM_LIMIT,
    VERTICAL_TAPS,
    WEIGHT_SCALE,
    FixedPointLinear,
    GatedLayer,
    PixelCNN,
    quantized_bias,
)

FloatArray = NDArray[np.float32]
BY_COLUMN = tuple((row, column) for column in (-1, 0, 1) for row in (0, -1))  # vertical taps of the graphs by rows
LAST = np.iinfo(np.int64).max
assert EMBEDDING_LIMIT < STREAM_LIMIT


def as_array(tensor: torch.Tensor) -> FloatArray:
    """A parameter as float32, without its gradient."""
    return tensor.detach().numpy().astype(np.float32)


def fold_gate(columns: FloatArray) -> FloatArray:
    """Divide the sigmoid half of the last axis by 4 (a power of two: exact), so that the graph need not."""
    half = columns.shape[-1] // 2
    return np.concatenate([columns[..., :half], columns[..., half:] / 4], axis=-1)


def fixed_point(graph: GraphBuilder, matrix: FloatArray, scales: FloatArray) -> str:
    """A matrix stored as int8 times a power of two a column: a quarter of the bytes, and the product is exact."""
    integers = (matrix / scales).astype(np.int8)
    assert np.array_equal(integers * scales, matrix)
    return graph.scaled_constant(integers, scales.astype(np.float32))


def gate_shift(channels: int) -> FloatArray:
    """(2C,): 0 for the tanh half, 32 for the sigmoid half: the +1/2 of the hard sigmoid."""
    return np.repeat(np.array([0, GATE_LIMIT / 2], np.float32), channels)


class PriorParts:
    """The parts of one prior, each of which adds its nodes to a graph; constants are computed once and shared."""

    def __init__(self, prior: PixelCNN) -> None:
        self.prior = prior
        self.channels = prior.channels
        self.vertical_layers = cast(list[GatedLayer], list(prior.vertical))
        self.horizontal_layers = cast(list[GatedLayer], list(prior.horizontal))
        zero = np.zeros((1, self.channels), np.float32)
        self.embedding = np.concatenate([zero, as_array(prior.quantized_embedding())])  # row 0 stands for "no code"
        bias = as_array(quantized_bias(prior.label_bias)).reshape(
            -1, len(self.vertical_layers) + len(self.horizontal_layers), 2 * self.channels
        )
        self.scales = np.full(2 * self.channels, 1 / WEIGHT_SCALE, np.float32)  # of a layer's 2C columns, not folded
        self.label_bias = fold_gate(bias) + gate_shift(self.channels)  # (labels+1, V+N, 2C)

    # ---- the parts, in the order of PixelCNN.forward

    def embed(self, graph: GraphBuilder, codes: str) -> str:
        """Codes int64 of any shape, -1 for none -> (..., C)."""
        index = graph.op("Add", codes, graph.integers(1))
        return graph.op("Gather", self._table(graph, self.embedding), index, axis=0)

    def embed_drawn(self, graph: GraphBuilder, codes: str) -> str:
        """As `embed`, for codes that are never "none"."""
        return graph.op("Gather", self._table(graph, self.embedding[1:]), codes, axis=0)

    def _table(self, graph: GraphBuilder, embedding: FloatArray) -> str:
        return fixed_point(graph, embedding, np.ones(self.channels, np.float32))

    def label_biases(self, graph: GraphBuilder, labels: str, first: int, count: int) -> str:
        """The biases of `count` layers side by side: (B,1,1,count*2C)."""
        table = self.label_bias[:, first : first + count].reshape(len(self.label_bias), -1)
        return graph.op("Unsqueeze", graph.op("Gather", graph.constant(table), labels, axis=0), graph.integers(1, 2))

    def gated(self, graph: GraphBuilder, layer: GatedLayer, stream: str, summed: str) -> str:
        """stream + round(out(gate(summed))): `summed` is taps + conditioning, folded by `fold_gate`."""
        rounded = graph.op("Round", summed)
        tanh, sigmoid = graph.ops("Split", rounded, count=2, axis=-1, num_outputs=2)
        tanh = graph.op("Clip", tanh, graph.scalar(-GATE_LIMIT), graph.scalar(GATE_LIMIT))
        sigmoid = graph.op("Clip", sigmoid, graph.scalar(0), graph.scalar(GATE_LIMIT))
        weight = as_array(layer.out.quantized_weight()) / np.float32(GATE_LIMIT)
        update = graph.op(
            "MatMul",
            graph.op("Mul", tanh, sigmoid),
            fixed_point(graph, weight, self.scales[: self.channels] / np.float32(GATE_LIMIT)),
        )
        moved = graph.op("Add", stream, graph.op("Round", update))
        return graph.op("Clip", moved, graph.scalar(-STREAM_LIMIT), graph.scalar(STREAM_LIMIT))

    def vertical(self, graph: GraphBuilder, layer: GatedLayer, rows: str, above: str, bias: str) -> str:
        """One vertical layer over rows (B,h,w,C), given the same rows shifted down by one."""
        both = graph.op("Concat", rows, above, axis=-1)  # (B,h,w,2C)
        padded = graph.op("Pad", both, graph.integers(0, 0, 1, 0, 0, 0, 1, 0))
        columns = [graph.slice(padded, 2, start, end) for start, end in ((0, -2), (1, -1), (2, LAST))]
        gathered = graph.op("Concat", *columns, axis=-1)  # (B,h,w,3*2C): by column, then row
        return self.tapped(graph, layer, rows, gathered, bias, BY_COLUMN)

    def tapped(
        self,
        graph: GraphBuilder,
        layer: GatedLayer,
        stream: str,
        gathered: str,
        bias: str,
        order: Sequence[tuple[int, int]] = VERTICAL_TAPS,
    ) -> str:
        """A vertical layer whose taps lie side by side, in this order: stream (...,C), gathered (...,6C) -> (...,C)."""
        weight = as_array(layer.taps.quantized_weight()).reshape(len(VERTICAL_TAPS), self.channels, -1)
        picked = weight[[VERTICAL_TAPS.index(tap) for tap in order]]
        matrix = fold_gate(picked.reshape(-1, 2 * self.channels))
        taps = graph.op("MatMul", gathered, fixed_point(graph, matrix, fold_gate(self.scales)))
        return self.gated(graph, layer, stream, graph.op("Add", taps, bias))

    def shifted(self, graph: GraphBuilder, x: str, axis: int) -> str:
        """x (B,h,w,C) moved by one along `axis`, zero where nothing is."""
        begin = [1 if i == axis else 0 for i in range(4)]
        return graph.slice(graph.op("Pad", x, graph.integers(*begin, 0, 0, 0, 0)), axis, 0, -1)

    def context(self, graph: GraphBuilder, above: str, labels: str) -> str:
        """The vertical stack's word to every horizontal layer, label included: (B,h,w,N*2C)."""
        count = len(self.horizontal_layers)
        folded = as_array(self.prior.context.quantized_weight()).reshape(self.channels, count, -1)
        matrix, scales = fold_gate(folded).reshape(self.channels, -1), np.tile(fold_gate(self.scales), count)
        product = graph.op("MatMul", above, fixed_point(graph, matrix, scales))
        return graph.op("Add", product, self.label_biases(graph, labels, len(self.vertical_layers), count))

    def head(self, graph: GraphBuilder, stream: str, *, matrix: bool = False) -> str:
        """(..., C) -> integer logits float32 (..., K); a `matrix` (B,C) takes one node less a layer."""
        hidden = graph.op("Round", self._biased(graph, self.prior.hidden, stream, matrix))
        hidden = graph.op("Clip", hidden, graph.scalar(0), graph.scalar(HEAD_LIMIT))
        return graph.op("Round", self._biased(graph, self.prior.head, hidden, matrix))

    def _biased(self, graph: GraphBuilder, linear: FixedPointLinear, x: str, matrix: bool) -> str:
        assert linear.bias is not None
        columns, bias = as_array(linear.quantized_weight()), graph.constant(as_array(quantized_bias(linear.bias)))
        weight = fixed_point(graph, columns, np.full(columns.shape[1], 1 / WEIGHT_SCALE, np.float32))
        return graph.op("Gemm", x, weight, bias) if matrix else graph.op("Add", graph.op("MatMul", x, weight), bias)

    def rows(self, graph: GraphBuilder, above: str, labels: str, caches: str) -> tuple[str, list[str]]:
        """One row of the vertical stack: `above` (B,1,w,C) embeds the codes of the row above.

        Returns the context (B,1,w,N*2C) and what the next row needs of this one: the input of each layer (B,1,w,C).
        """
        count = len(self.vertical_layers)
        biases = graph.split(self.label_biases(graph, labels, 0, count), count, axis=-1)
        remembered = graph.split(caches, count + 1, axis=1)[1:]
        kept = [above]
        for layer, bias, before in zip(self.vertical_layers, biases, remembered, strict=True):
            kept.append(self.vertical(graph, layer, kept[-1], before, bias))
        return self.context(graph, kept.pop(), labels), kept

    def column(self, graph: GraphBuilder, stream: str, contexts: Sequence[str], left: list[list[str]]) -> str:
        """One pixel of the horizontal stack; `left[layer]` holds the layer's inputs at columns j-1, j-2 and grows.

        `contexts[layer]` is (B,2C). At columns 0 and 1 some inputs do not exist; they would be zero, so their weights
        are left out.
        """
        for index, (layer, context) in enumerate(zip(self.horizontal_layers, contexts, strict=True)):
            gathered = [stream, *left[index]]
            matrix = fold_gate(as_array(layer.taps.quantized_weight()))[: len(gathered) * self.channels]
            taps = graph.op("Concat", *gathered, axis=-1) if len(gathered) > 1 else stream
            left[index] = gathered[: HORIZONTAL_TAPS - 1]
            weight = fixed_point(graph, matrix, fold_gate(self.scales))
            stream = self.gated(graph, layer, stream, graph.op("Gemm", taps, weight, context))
        return self.head(graph, stream, matrix=True)
