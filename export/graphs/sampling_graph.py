"""Inverse-CDF sampling on integers, as ONNX nodes: logits -> frequencies -> cumulative table -> code.

The same integers as the entropy coder's (docs/bundle-format.md). Filters look at how far a code's logit lies below
the largest: top-k keeps a code if fewer than k lie nearer, and top-p keeps it then if the nearer ones have less than
the mass p. Codes at equal distance stay or go together, so that the order of the codebook decides nothing, and so that
it is enough to count how many codes lie at each distance: nothing is sorted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.graphs.onnx_builder import GraphBuilder
from service.bundle.fields import UNIFORM_BITS


def draw_code(
    graph: GraphBuilder,
    logits: str,
    numerator: str,
    inverse_temperature: str,
    frequency_table: NDArray[np.int32],
    codebook_size: int,
    filters: Filters | None = None,
) -> str:
    """Integer logits float32 (B,K), numerator of the uniform int64 (B,1), float32 (B,1) -> codes int64 (B,1)."""
    index = _distances(graph, logits, inverse_temperature, len(frequency_table))
    if filters:
        frequencies = filters.frequencies(index, "int32")
    else:
        frequencies = looked_up(graph, frequency_table, index, codebook_size)  # (B,K) int32
    cumulative = graph.op("CumSum", frequencies, graph.constant(np.array(1, np.int64)))  # (B,K) int32, inclusive
    total = graph.slice(cumulative, 1, -1, np.iinfo(np.int64).max)  # (B,1)
    point = scaled_total(graph, total, numerator)  # below the total, since u < 1
    below = graph.cast(graph.op("LessOrEqual", cumulative, point), "float32")
    return graph.cast(graph.op("ReduceSum", below, graph.integers(1)), "int64")  # a count: exact in float32


def _distances(graph: GraphBuilder, logits: str, inverse_temperature: str, table_size: int) -> str:
    """Integer logits float32 (B,K), (B,1) -> int32 (B,K) in [0, table_size): how far below the largest, scaled."""
    distance = graph.op("Sub", graph.op("ReduceMax", logits, graph.integers(1)), logits)
    scaled = graph.op("Round", graph.op("Mul", distance, inverse_temperature))
    return graph.cast(graph.op("Clip", scaled, "", graph.scalar(table_size - 1)), "int32")


class QuickDraw:
    """`draw_code`, and the choice of known codes, in the nodes that take a CPU the least time.

    A known code is added to what is drawn, which is 0 there: its numerator makes every point negative. The row graphs
    keep `draw_code`, whose nodes, but for those of `Filters`, have been compared on a GPU.
    """

    def __init__(self, graph: GraphBuilder, labels: str, repeats: int, frequency_table: NDArray[np.int32]) -> None:
        """The batch is `repeats` times that of `labels`."""
        self._graph, self._size = graph, len(frequency_table)
        batch = graph.op("Mul", graph.op("Shape", labels), graph.integers(repeats))
        shape = graph.op("Concat", batch, graph.integers(self._size), axis=0)
        self._frequencies = graph.op("Expand", graph.constant(frequency_table.astype(np.int64)[None]), shape)

    def prepare(self, uniforms: str, known_codes: str, known_mask: str) -> tuple[str, str]:
        """Inputs of a row graph, of one shape -> int64 numerators, and the known codes, 0 where none is known."""
        graph = self._graph
        none_below = graph.integers(-(1 << UNIFORM_BITS))
        numerator = graph.op("Where", known_mask, none_below, numerators(graph, uniforms))
        return numerator, graph.op("Where", known_mask, known_codes, graph.integers(0))

    def draw(
        self,
        logits: str,
        numerator: str,
        known: str,
        inverse_temperature: str,
        codebook_size: int,
        filters: Filters | None = None,
    ) -> str:
        """Integer logits float32 (B,K), of a column (B,1) each -> codes int64 (B,1)."""
        graph = self._graph
        index = _distances(graph, logits, inverse_temperature, self._size)
        if filters:
            frequencies = filters.frequencies(index, "int64")
        else:
            frequencies = graph.op("GatherElements", self._frequencies, index, axis=1)
        cumulative = graph.op("CumSum", frequencies, graph.constant(np.array(1, np.int64)))
        total = graph.op("Gather", cumulative, graph.integers(codebook_size - 1), axis=1)
        point = graph.op("Div", graph.op("Mul", total, numerator), graph.integers(1 << UNIFORM_BITS))
        below = graph.cast(graph.op("LessOrEqual", cumulative, point), "float32")
        return graph.op("Add", graph.cast(graph.op("ReduceSum", below, graph.integers(1)), "int64"), known)


def looked_up(graph: GraphBuilder, table: NDArray[np.int32], index: str, codebook_size: int) -> str:
    """table[index] for an index (B,K). onnxruntime's Gather copies slices, its GatherElements single numbers: on a CPU
    that is ten times as fast."""
    flat = graph.op("Reshape", index, graph.integers(-1))
    found = graph.op("GatherElements", graph.constant(table), flat, axis=0)
    return graph.op("Reshape", found, graph.integers(-1, codebook_size))


def numerators(graph: GraphBuilder, fractions: str) -> str:
    """Fractions float32 in [0,1] of any shape -> int64 in units of 2^-24."""
    return graph.cast(graph.op("Mul", fractions, graph.scalar(1 << UNIFORM_BITS)), "int64")


def scaled_total(graph: GraphBuilder, total: str, numerator: str) -> str:
    """floor(total * numerator / 2^24) in integers: total int32 (B,1), numerator int64 (B,1) -> int32 (B,1)."""
    product = graph.op("Mul", graph.cast(total, "int64"), numerator)
    return graph.cast(graph.op("Div", product, graph.integers(1 << UNIFORM_BITS)), "int32")


class Filters:
    """The frequencies of the codes that top-k and then top-p keep; docs/benchmarks.md has what a sort would take."""

    def __init__(
        self, graph: GraphBuilder, top_k: str, top_p: str, frequency_table: NDArray[np.int32], codebook_size: int
    ) -> None:
        """`top_k` int64 (B,1) in [1,K], `top_p` float32 (B,1) in (0,1]."""
        self._graph, self._table, self._size = graph, frequency_table, codebook_size
        batch = graph.op("Shape", top_k, start=0, end=1)
        self._none = self._filled(batch, 0, len(frequency_table))
        self._ones = self._filled(batch, 1, codebook_size)
        self._top_k, self._top_p = graph.cast(top_k, "int32"), numerators(graph, top_p)

    def _filled(self, batch: str, value: int, width: int) -> str:
        """int32 (B,width)."""
        one, shape = self._graph.constant(np.array([[value]], np.int32)), self._graph.integers(width)
        return self._graph.op("Expand", one, self._graph.op("Concat", batch, shape, axis=0))

    def frequencies(self, distances: str, dtype: str) -> str:
        """int32 (B,K) in [0,T) -> `dtype` (B,K), 0 for codes that are dropped."""
        graph, axis, table = self._graph, self._graph.constant(np.array(1, np.int64)), self._table[None]
        counts = graph.op("ScatterElements", self._none, distances, self._ones, axis=1, reduction="add")  # (B,T)
        nearer = graph.op("CumSum", counts, axis, exclusive=1)
        inside = graph.cast(graph.op("Less", nearer, self._top_k), "int32")
        mass = graph.op("Mul", graph.op("Mul", counts, graph.constant(table)), inside)
        cumulative = graph.op("CumSum", mass, axis)
        total = graph.op("Gather", cumulative, graph.integers(len(self._table) - 1), axis=1)  # (B,1)
        # at least 1, so that nothing is nearer than enough for the likeliest code
        wanted = graph.op("Max", scaled_total(graph, total, self._top_p), graph.constant(np.array(1, np.int32)))
        # beyond the k-th code all of the mass is nearer: dropped here too
        kept = graph.cast(graph.op("Less", graph.op("Sub", cumulative, mass), wanted), dtype)
        by_distance = graph.op("Mul", kept, graph.constant(table.astype(dtype)))
        return graph.op("GatherElements", by_distance, distances, axis=1)
