"""The prior as ONNX: teacher-forced, by rows (the sampler) and by pixels (the entropy decoder).

In: a trained `training.prior.PixelCNN`. Out: ONNX models whose inputs and outputs docs/bundle-format.md lists. They all
compute what `PixelCNN.forward` computes, bit for bit. What differs is what is remembered: `prior` sees the whole grid,
`prior_row` keeps one row of each vertical layer in `caches`, `prior_pixel` two columns of each horizontal layer in
`left`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from export import guidance_graph
from export.onnx_builder import GraphBuilder
from export.sampling_graph import draw_code, numerators
from service.bundle import GraphName
from training.prior import (
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
LAST = np.iinfo(np.int64).max
assert EMBEDDING_LIMIT < STREAM_LIMIT


def _array(tensor: torch.Tensor) -> FloatArray:
    return tensor.detach().numpy().astype(np.float32)


def _fold_gate(columns: FloatArray) -> FloatArray:
    """Divide the sigmoid half of the last axis by 4 (a power of two: exact), so that the graph need not."""
    half = columns.shape[-1] // 2
    return np.concatenate([columns[..., :half], columns[..., half:] / 4], axis=-1)


def _fixed_point(graph: GraphBuilder, matrix: FloatArray, scales: FloatArray) -> str:
    """A matrix stored as int8 times a power of two a column: a quarter of the bytes, and the product is exact."""
    integers = (matrix / scales).astype(np.int8)
    assert np.array_equal(integers * scales, matrix)
    return graph.scaled_constant(integers, scales.astype(np.float32))


def _gate_shift(channels: int) -> FloatArray:
    """(2C,): 0 for the tanh half, 32 for the sigmoid half: the +1/2 of the hard sigmoid."""
    return np.repeat(np.array([0, GATE_LIMIT / 2], np.float32), channels)


class PriorGraphs:
    """Writes the graphs of one prior; constants are computed once and shared."""

    def __init__(self, prior: PixelCNN) -> None:
        self.prior = prior
        self.channels = prior.channels
        self.vertical_layers = cast(list[GatedLayer], list(prior.vertical))
        self.horizontal_layers = cast(list[GatedLayer], list(prior.horizontal))
        zero = np.zeros((1, self.channels), np.float32)
        self.embedding = np.concatenate([zero, _array(prior.quantized_embedding())])  # row 0 stands for "no code"
        bias = _array(quantized_bias(prior.label_bias)).reshape(
            -1, len(self.vertical_layers) + len(self.horizontal_layers), 2 * self.channels
        )
        self.scales = np.full(2 * self.channels, 1 / WEIGHT_SCALE, np.float32)  # of a layer's 2C columns, not folded
        self.label_bias = _fold_gate(bias) + _gate_shift(self.channels)  # (labels+1, V+N, 2C)

    # ---- the parts, in the order of PixelCNN.forward

    def embed(self, graph: GraphBuilder, codes: str) -> str:
        """Codes int64 of any shape, -1 for none -> (..., C)."""
        index = graph.op("Add", codes, graph.integers(1))
        return graph.op("Gather", self._table(graph, self.embedding), index, axis=0)

    def label_biases(self, graph: GraphBuilder, labels: str, first: int, count: int) -> str:
        """The biases of `count` layers side by side: (B,1,1,count*2C)."""
        table = self.label_bias[:, first : first + count].reshape(len(self.label_bias), -1)
        return graph.op("Unsqueeze", graph.op("Gather", graph.constant(table), labels, axis=0), graph.integers(1, 2))

    def gated(self, graph: GraphBuilder, layer: GatedLayer, stream: str, summed: str) -> str:
        """stream + round(out(gate(summed))): `summed` is taps + conditioning, folded by `_fold_gate`."""
        rounded = graph.op("Round", summed)
        tanh, sigmoid = graph.ops("Split", rounded, count=2, axis=-1, num_outputs=2)
        tanh = graph.op("Clip", tanh, graph.scalar(-GATE_LIMIT), graph.scalar(GATE_LIMIT))
        sigmoid = graph.op("Clip", sigmoid, graph.scalar(0), graph.scalar(GATE_LIMIT))
        weight = _array(layer.out.quantized_weight()) / np.float32(GATE_LIMIT)
        update = graph.op(
            "MatMul",
            graph.op("Mul", tanh, sigmoid),
            _fixed_point(graph, weight, self.scales[: self.channels] / np.float32(GATE_LIMIT)),
        )
        moved = graph.op("Add", stream, graph.op("Round", update))
        return graph.op("Clip", moved, graph.scalar(-STREAM_LIMIT), graph.scalar(STREAM_LIMIT))

    def vertical(self, graph: GraphBuilder, layer: GatedLayer, rows: str, above: str, bias: str) -> str:
        """One vertical layer over rows (B,h,w,C), given the same rows shifted down by one."""
        both = graph.op("Concat", rows, above, axis=-1)  # (B,h,w,2C)
        padded = graph.op("Pad", both, graph.integers(0, 0, 1, 0, 0, 0, 1, 0))
        columns = [graph.slice(padded, 2, start, end) for start, end in ((0, -2), (1, -1), (2, LAST))]
        gathered = graph.op("Concat", *columns, axis=-1)  # (B,h,w,3*2C): by column, then row
        weight = _array(layer.taps.quantized_weight()).reshape(len(VERTICAL_TAPS), self.channels, -1)
        order = [VERTICAL_TAPS.index((row, column)) for column in (-1, 0, 1) for row in (0, -1)]
        matrix = _fold_gate(weight[order].reshape(-1, 2 * self.channels))
        taps = graph.op("MatMul", gathered, _fixed_point(graph, matrix, _fold_gate(self.scales)))
        return self.gated(graph, layer, rows, graph.op("Add", taps, bias))

    def context(self, graph: GraphBuilder, above: str, labels: str) -> str:
        """The vertical stack's word to every horizontal layer, label included: (B,h,w,N*2C)."""
        count = len(self.horizontal_layers)
        folded = _array(self.prior.context.quantized_weight()).reshape(self.channels, count, -1)
        matrix, scales = _fold_gate(folded).reshape(self.channels, -1), np.tile(_fold_gate(self.scales), count)
        product = graph.op("MatMul", above, _fixed_point(graph, matrix, scales))
        return graph.op("Add", product, self.label_biases(graph, labels, len(self.vertical_layers), count))

    def head(self, graph: GraphBuilder, stream: str, *, matrix: bool = False) -> str:
        """(..., C) -> integer logits float32 (..., K); a `matrix` (B,C) takes one node less a layer."""
        hidden = graph.op("Round", self._biased(graph, self.prior.hidden, stream, matrix))
        hidden = graph.op("Clip", hidden, graph.scalar(0), graph.scalar(HEAD_LIMIT))
        return graph.op("Round", self._biased(graph, self.prior.head, hidden, matrix))

    def _biased(self, graph: GraphBuilder, linear: FixedPointLinear, x: str, matrix: bool) -> str:
        assert linear.bias is not None
        columns, bias = _array(linear.quantized_weight()), graph.constant(_array(quantized_bias(linear.bias)))
        weight = _fixed_point(graph, columns, np.full(columns.shape[1], 1 / WEIGHT_SCALE, np.float32))
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
            matrix = _fold_gate(_array(layer.taps.quantized_weight()))[: len(gathered) * self.channels]
            taps = graph.op("Concat", *gathered, axis=-1) if len(gathered) > 1 else stream
            left[index] = gathered[: HORIZONTAL_TAPS - 1]
            weight = _fixed_point(graph, matrix, _fold_gate(self.scales))
            stream = self.gated(graph, layer, stream, graph.op("Gemm", taps, weight, context))
        return self.head(graph, stream, matrix=True)

    # ---- the graphs

    def teacher_forced(self) -> onnx.ModelProto:
        graph = GraphBuilder("prior")
        codes = graph.input("codes", "int64", ("B", "h", "w"))
        labels = graph.input("labels", "int64", ("B",))
        embedded = self.embed(graph, codes)  # (B,h,w,C)
        above = self._shifted(graph, embedded, axis=1)
        count = len(self.vertical_layers)
        biases = graph.split(self.label_biases(graph, labels, 0, count), count, axis=-1)
        for layer, bias in zip(self.vertical_layers, biases, strict=True):
            above = self.vertical(graph, layer, above, self._shifted(graph, above, axis=1), bias)
        contexts = graph.split(self.context(graph, above, labels), len(self.horizontal_layers), axis=-1)
        stream = self._shifted(graph, embedded, axis=2)
        for layer, conditioning in zip(self.horizontal_layers, contexts, strict=True):
            taps = [stream]
            for _ in range(HORIZONTAL_TAPS - 1):
                taps.append(self._shifted(graph, taps[-1], axis=2))
            matrix = _fold_gate(_array(layer.taps.quantized_weight()))
            weight = _fixed_point(graph, matrix, _fold_gate(self.scales))
            product = graph.op("MatMul", graph.op("Concat", *taps, axis=-1), weight)
            stream = self.gated(graph, layer, stream, graph.op("Add", product, conditioning))
        logits = graph.cast(self.head(graph, stream), "int32")
        graph.output(logits, "logits", "int32", ("B", "h", "w", self.prior.codebook_size))
        return graph.model()

    def _shifted(self, graph: GraphBuilder, x: str, axis: int) -> str:
        """x (B,h,w,C) moved by one along `axis`, zero where nothing is."""
        begin = [1 if i == axis else 0 for i in range(4)]
        return graph.slice(graph.op("Pad", x, graph.integers(*begin, 0, 0, 0, 0)), axis, 0, -1)

    def all(self, w: int, frequency_table: NDArray[np.int32]) -> dict[GraphName, onnx.ModelProto]:
        """Every graph that a bundle with this prior has; `w` is the width of its code grid."""
        models: dict[GraphName, onnx.ModelProto] = {
            "prior": self.teacher_forced(),
            "prior_row": self.row(w, frequency_table, filters=True),
            "prior_row_unfiltered": self.row(w, frequency_table, filters=False),
            "prior_context": self.context_row(),
            "prior_pixel": self.pixel(),
        }
        if self.prior.label_count:
            models["prior_row_guided"] = self.row(w, frequency_table, filters=True, guidance=True)
        return models

    def row(
        self, w: int, frequency_table: NDArray[np.int32], *, filters: bool, guidance: bool = False
    ) -> onnx.ModelProto:
        """The sampler: all w columns of one row, unrolled. Without `filters` it has no top_k and top_p."""
        graph = GraphBuilder("prior_row" + "_guided" * guidance + "_unfiltered" * (not filters))
        uniforms = graph.input("uniforms", "float32", ("B", w))
        labels = graph.input("labels", "int64", ("B",))
        controls = {"inverse_temperature": graph.input("inverse_temperature", "float32", ("B",))}
        if filters:
            controls["top_k"] = graph.input("top_k", "int64", ("B",))
            controls["top_p"] = graph.input("top_p", "float32", ("B",))
        if guidance:
            controls["guidance"] = graph.input("guidance", "float32", ("B",))
        known_codes = graph.input("known_codes", "int64", ("B", w))
        known_mask = graph.input("known_mask", "bool", ("B", w))
        cache_shape = ("B", (1 + guidance) * (len(self.vertical_layers) + 1), w, self.channels)
        caches = graph.input("caches", "float32", cache_shape)

        if guidance:
            labels = guidance_graph.with_and_without(graph, labels, self.prior.label_count)
            caches = guidance_graph.to_halves(graph, caches)
        controls = {name: graph.op("Unsqueeze", value, graph.integers(1)) for name, value in controls.items()}
        above = graph.slice(caches, 1, 0, 1)  # (B,1,w,C): codes of the row above
        context, kept = self.rows(graph, above, labels, caches)
        codes = self._draw_columns(graph, w, context, controls, (uniforms, known_codes, known_mask), frequency_table)
        graph.output(codes, "sampled_codes", "int64", ("B", w))
        below = graph.op("Unsqueeze", self._embed_drawn(graph, codes), graph.integers(1))
        if guidance:
            below = guidance_graph.twice(graph, below)
        following = graph.op("Concat", below, *kept, axis=1)
        if guidance:
            following = guidance_graph.to_samples(graph, following)
        graph.output(following, "next_caches", "float32", cache_shape)
        return graph.model()

    def _draw_columns(
        self,
        graph: GraphBuilder,
        w: int,
        context: str,
        controls: dict[str, str],
        inputs: tuple[str, str, str],
        frequency_table: NDArray[np.int32],
    ) -> str:
        """All columns of a row, left to right: context (B,1,w,N*2C), inputs (B,w) each -> codes int64 (B,w)."""
        layers = len(self.horizontal_layers)
        flat = graph.op("Reshape", context, graph.integers(0, w * layers * 2 * self.channels))
        contexts = graph.split(flat, w * layers, axis=1)
        uniforms, known_codes, known_mask = inputs
        columns = [graph.split(x, w, axis=1) for x in (numerators(graph, uniforms), known_codes, known_mask)]
        left: list[list[str]] = [[] for _ in range(layers)]
        # zeros (B,C) stand for the code to the left of the first column
        stream = graph.op("Mul", graph.slice(flat, 1, 0, self.channels), graph.scalar(0))
        drawn: list[str] = []
        for j, (numerator, known_code, known) in enumerate(zip(*columns, strict=True)):
            logits = self.column(graph, stream, contexts[j * layers : (j + 1) * layers], left)
            if "guidance" in controls:
                logits = guidance_graph.guided(graph, logits, controls["guidance"])
            code = draw_code(graph, logits, numerator, controls, frequency_table, self.prior.codebook_size)
            code = graph.op("Where", known, known_code, code)
            drawn.append(code)  # (B,1)
            stream = graph.op("Squeeze", self._embed_drawn(graph, code), graph.integers(1))
            if "guidance" in controls:
                stream = guidance_graph.twice(graph, stream)
        return graph.op("Concat", *drawn, axis=1) if w > 1 else drawn[0]

    def _embed_drawn(self, graph: GraphBuilder, codes: str) -> str:
        """As `embed`, for codes that are never "none"."""
        return graph.op("Gather", self._table(graph, self.embedding[1:]), codes, axis=0)

    def _table(self, graph: GraphBuilder, embedding: FloatArray) -> str:
        return _fixed_point(graph, embedding, np.ones(self.channels, np.float32))

    def context_row(self) -> onnx.ModelProto:
        graph = GraphBuilder("prior_context")
        codes_above = graph.input("codes_above", "int64", ("B", "w"))
        labels = graph.input("labels", "int64", ("B",))
        cache_shape = ("B", len(self.vertical_layers) + 1, "w", self.channels)
        caches = graph.input("caches", "float32", cache_shape)
        above = graph.op("Unsqueeze", self.embed(graph, codes_above), graph.integers(1))
        context, kept = self.rows(graph, above, labels, caches)
        graph.output(
            graph.op("Squeeze", context, graph.integers(1)),
            "context",
            "float32",
            ("B", "w", 2 * self.channels * len(self.horizontal_layers)),
        )
        # the first slot only keeps the shape of prior_row's caches: here the codes above are an input
        graph.output(graph.op("Concat", above, *kept, axis=1), "next_caches", "float32", cache_shape)
        return graph.model()

    def pixel(self) -> onnx.ModelProto:
        graph = GraphBuilder("prior_pixel")
        layers, taps = len(self.horizontal_layers), HORIZONTAL_TAPS - 1
        context = graph.input("context", "float32", ("B", 2 * self.channels * layers))
        previous = graph.input("previous_codes", "int64", ("B",))
        left_shape = ("B", layers, taps, self.channels)
        left_input = graph.input("left", "float32", left_shape)
        left: list[list[str]] = []
        for index in range(layers):
            rows = graph.slice(left_input, 1, index, index + 1)  # (B,1,taps,C)
            left.append(
                [graph.op("Squeeze", graph.slice(rows, 2, t, t + 1), graph.integers(1, 2)) for t in range(taps)]
            )
        logits = self.column(graph, self.embed(graph, previous), graph.split(context, layers, axis=1), left)
        graph.output(graph.cast(logits, "int32"), "logits", "int32", ("B", self.prior.codebook_size))
        slots = [graph.op("Unsqueeze", x, graph.integers(1)) for layer in left for x in layer]
        stacked = graph.op("Concat", *slots, axis=1)  # (B, layers*taps, C)
        shape = graph.integers(0, layers, taps, self.channels)
        graph.output(graph.op("Reshape", stacked, shape), "next_left", "float32", left_shape)
        return graph.model()
