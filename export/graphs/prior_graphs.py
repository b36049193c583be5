"""The prior as ONNX: teacher-forced, by rows (the sampler) and by pixels (the entropy decoder).

In: a trained `training.models.prior.PixelCNN`. Out: ONNX models whose inputs and outputs docs/bundle-format.md lists.
All compute what `PixelCNN.forward` computes, bit for bit. What differs is what is remembered: `prior` sees the whole
grid, `prior_row` keeps one row of each vertical layer in `caches`, `prior_pixel` two columns of each horizontal layer
in `left`.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graphs import guidance_graph
from export.graphs.diagonal_graph import diagonal, worthwhile
from export.graphs.onnx_builder import GraphBuilder
from export.graphs.prior_parts import PriorParts, as_array, fixed_point, fold_gate
from export.graphs.sampling_graph import Filters, draw_code, numerators
from service.bundle.fields import GraphName
from training.models.prior import HORIZONTAL_TAPS


class PriorGraphWriter(PriorParts):
    """Writes the graphs of one prior."""

    filters_of = Filters  # benchmarks.sampler_graphs puts a sort in its place

    def teacher_forced(self) -> onnx.ModelProto:
        """`prior`: the logits of all positions of a grid, of any height and width, in one call."""
        graph = GraphBuilder("prior")
        codes = graph.input("codes", "int64", ("B", "h", "w"))
        labels = graph.input("labels", "int64", ("B",))
        embedded = self.embed(graph, codes)  # (B,h,w,C)
        above = self.shifted(graph, embedded, axis=1)
        count = len(self.vertical_layers)
        biases = graph.split(self.label_biases(graph, labels, 0, count), count, axis=-1)
        for layer, bias in zip(self.vertical_layers, biases, strict=True):
            above = self.vertical(graph, layer, above, self.shifted(graph, above, axis=1), bias)
        logits = self.horizontal(graph, embedded, self.context(graph, above, labels))
        graph.output(logits, "logits", "int32", ("B", "h", "w", self.prior.codebook_size))
        return graph.model()

    def horizontal(self, graph: GraphBuilder, embedded: str, context: str) -> str:
        """The horizontal stack over whole rows: embedded (B,h,w,C), context (B,h,w,N*2C) -> logits int32 (B,h,w,K)."""
        contexts = graph.split(context, len(self.horizontal_layers), axis=-1)
        stream = self.shifted(graph, embedded, axis=2)
        for layer, conditioning in zip(self.horizontal_layers, contexts, strict=True):
            taps = [stream]
            for _ in range(HORIZONTAL_TAPS - 1):
                taps.append(self.shifted(graph, taps[-1], axis=2))
            matrix = fold_gate(as_array(layer.taps.quantized_weight()))
            weight = fixed_point(graph, matrix, fold_gate(self.scales))
            product = graph.op("MatMul", graph.op("Concat", *taps, axis=-1), weight)
            stream = self.gated(graph, layer, stream, graph.op("Add", product, conditioning))
        return graph.cast(self.head(graph, stream), "int32")

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
        if worthwhile(self, w):
            models["prior_diagonal"] = diagonal(self, w, frequency_table)
            models["prior_diagonal_filtered"] = diagonal(self, w, frequency_table, filters=True)
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
        below = graph.op("Unsqueeze", self.embed_drawn(graph, codes), graph.integers(1))
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
        size, temperature = self.prior.codebook_size, controls["inverse_temperature"]
        filters = None
        if "top_k" in controls:
            filters = self.filters_of(graph, controls["top_k"], controls["top_p"], frequency_table, size)
        drawn: list[str] = []
        for j, (numerator, known_code, known) in enumerate(zip(*columns, strict=True)):
            logits = self.column(graph, stream, contexts[j * layers : (j + 1) * layers], left)
            if "guidance" in controls:
                logits = guidance_graph.guided(graph, logits, controls["guidance"])
            code = draw_code(graph, logits, numerator, temperature, frequency_table, size, filters)
            code = graph.op("Where", known, known_code, code)
            drawn.append(code)  # (B,1)
            stream = graph.op("Squeeze", self.embed_drawn(graph, code), graph.integers(1))
            if "guidance" in controls:
                stream = guidance_graph.twice(graph, stream)
        return graph.op("Concat", *drawn, axis=1) if w > 1 else drawn[0]

    def context_row(self) -> onnx.ModelProto:
        """`prior_context`: the vertical stack for the row below `codes_above`, of any width."""
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
        """`prior_pixel`: the horizontal stack and the head at one column."""
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
