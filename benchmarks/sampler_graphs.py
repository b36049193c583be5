"""Graphs that the service does not ship, for benchmarks.sampler: the horizontal stack at once, a row by Scan, a sort.

In: a `PixelCNN`. Out: `horizontal`, context and a guess of the row's codes -> logits of the whole row; `scan_row`,
`prior_row_unfiltered` with its columns as one Scan instead of unrolled; and `SortedRows`, whose `prior_row` sorts the
codebook at each pixel to find the thresholds of the filters.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from export.graphs.onnx_builder import GraphBuilder
from export.graphs.prior_graphs import PriorGraphWriter
from export.graphs.sampling_graph import Filters, draw_code, looked_up, numerators, scaled_total
from training.models.prior import HORIZONTAL_TAPS


def horizontal(graphs: PriorGraphWriter) -> onnx.ModelProto:
    """context (B,1,w,contexts), codes (B,1,w) -> logits int32 (B,1,w,K): column j depends on codes before j."""
    prior, graph = graphs.prior, GraphBuilder("prior_horizontal")
    context = graph.input("context", "float32", ("B", 1, "w", 2 * prior.channels * len(graphs.horizontal_layers)))
    codes = graph.input("codes", "int64", ("B", 1, "w"))
    logits = graphs.horizontal(graph, graphs.embed(graph, codes), context)
    graph.output(logits, "logits", "int32", ("B", 1, "w", prior.codebook_size))
    return graph.model()


def scan_row(graphs: PriorGraphWriter, w: int, frequency_table: NDArray[np.int32]) -> onnx.ModelProto:
    """Inputs and outputs of prior_row_unfiltered."""
    prior, graph = graphs.prior, GraphBuilder("prior_row_scan")
    uniforms = graph.input("uniforms", "float32", ("B", w))
    labels = graph.input("labels", "int64", ("B",))
    inverse_temperature = graph.input("inverse_temperature", "float32", ("B",))
    known_codes = graph.input("known_codes", "int64", ("B", w))
    known_mask = graph.input("known_mask", "bool", ("B", w))
    cache_shape = ("B", len(prior.vertical) + 1, w, prior.channels)
    caches = graph.input("caches", "float32", cache_shape)
    context, kept = graphs.rows(graph, graph.slice(caches, 1, 0, 1), labels, caches)
    context = graph.op("Squeeze", context, graph.integers(1))  # (B,w,contexts)
    by_column = [
        graph.op("Transpose", context, perm=[1, 0, 2]),
        *(
            graph.op("Unsqueeze", graph.op("Transpose", x, perm=[1, 0]), graph.integers(2))  # (w,B,1)
            for x in (numerators(graph, uniforms), known_codes, known_mask)
        ),
    ]
    first = graph.op("Squeeze", graph.slice(context, 1, 0, 1), graph.integers(1))
    zeros = graph.op("Mul", graph.slice(first, 1, 0, prior.channels), graph.scalar(0))  # (B,C)
    states = [zeros] * (1 + len(prior.horizontal) * (HORIZONTAL_TAPS - 1))
    temperature = graph.op("Unsqueeze", inverse_temperature, graph.integers(1))
    body = _column_body(graphs, temperature, frequency_table)
    columns = graph.ops("Scan", *states, *by_column, count=len(states) + 1, body=body, num_scan_inputs=4)[-1]
    codes = graph.op("Transpose", graph.op("Squeeze", columns, graph.integers(2)), perm=[1, 0])  # (B,w)
    graph.output(codes, "sampled_codes", "int64", ("B", w))
    below = graph.op("Unsqueeze", graphs.embed(graph, codes), graph.integers(1))
    graph.output(graph.op("Concat", below, *kept, axis=1), "next_caches", "float32", cache_shape)
    return graph.model()


def _column_body(graphs: PriorGraphWriter, temperature: str, table: NDArray[np.int32]) -> onnx.GraphProto:
    """States: the stream at this column, and each layer's inputs at the two before. `temperature` is outside."""
    prior, graph, taps = graphs.prior, GraphBuilder("column"), HORIZONTAL_TAPS - 1
    width = ("B", prior.channels)
    stream = graph.input("in_stream", "float32", width)
    left = [[graph.input(f"in_{i}_{t}", "float32", width) for t in range(taps)] for i in range(len(prior.horizontal))]
    context = graph.input("in_context", "float32", ("B", 2 * prior.channels * len(prior.horizontal)))
    numerator = graph.input("in_numerator", "int64", ("B", 1))
    known_code = graph.input("in_known_code", "int64", ("B", 1))
    known = graph.input("in_known", "bool", ("B", 1))
    logits = graphs.column(graph, stream, graph.split(context, len(left), axis=1), left)
    drawn = draw_code(graph, logits, numerator, temperature, table, prior.codebook_size)
    code = graph.op("Where", known, known_code, drawn)
    graph.output(graph.op("Squeeze", graphs.embed(graph, code), graph.integers(1)), "out_stream", "float32", width)
    for i, layer in enumerate(left):
        for t, value in enumerate(layer):
            graph.output(value, f"out_{i}_{t}", "float32", width)
    graph.output(code, "out_code", "int64", ("B", 1))
    return _as_subgraph(graph)


class SortedFilters(Filters):
    """The same codes, from all K distances in order instead of a histogram."""

    def frequencies(self, distances: str, dtype: str) -> str:
        graph, axis, size = self._graph, self._graph.constant(np.array(1, np.int64)), self._graph.integers(self._size)
        ordered, _ = graph.ops("TopK", distances, size, count=2, axis=-1, largest=0, sorted=1)
        frequencies = looked_up(graph, self._table, ordered, self._size)
        k_index = graph.cast(graph.op("Sub", self._top_k, graph.constant(np.array(1, np.int32))), "int64")
        k_threshold = graph.op("GatherElements", ordered, k_index, axis=1)  # (B,1)
        inside = graph.cast(graph.op("LessOrEqual", ordered, k_threshold), "int32")
        mass = graph.op("CumSum", graph.op("Mul", frequencies, inside), axis)
        total = graph.slice(mass, 1, -1, np.iinfo(np.int64).max)
        before = graph.cast(graph.op("Less", mass, scaled_total(graph, total, self._top_p)), "float32")
        p_index = graph.cast(graph.op("ReduceSum", before, graph.integers(1)), "int64")  # a count: exact in float32
        threshold = graph.op("Min", k_threshold, graph.op("GatherElements", ordered, p_index, axis=1))
        kept = graph.cast(graph.op("LessOrEqual", distances, threshold), dtype)
        return graph.op("Mul", graph.cast(looked_up(graph, self._table, distances, self._size), dtype), kept)


class SortedRows(PriorGraphWriter):
    filters_of = SortedFilters


def _as_subgraph(graph: GraphBuilder) -> onnx.GraphProto:
    """Names inside get a prefix of their own, because a subgraph must not repeat names of the graph around it."""
    body = helper.make_graph(graph._nodes, graph.name, graph._inputs, graph._outputs, graph._initializers)
    own = {name for node in body.node for name in node.output} | {tensor.name for tensor in body.initializer}
    own |= {value.name for value in body.input}
    for index, node in enumerate(body.node):
        node.name = f"column_{index}"
        node.input[:] = [f"column_{name}" if name in own else name for name in node.input]
        node.output[:] = [f"column_{name}" for name in node.output]
    for value in (*body.input, *body.output, *body.initializer):
        value.name = f"column_{value.name}"
    return body
