"""`prior_diagonal`: the sampler for few samples on a CPU, which draws several rows at once.

In: the parts of `export.graphs.prior_parts` and a `Schedule`. Out: an ONNX model that draws what `prior_row_unfiltered`
draws, or with `filters` what `prior_row` draws, in less time where a batch is small: the schedule's module says how.

A call takes the bands' inputs side by side, band k those of row i - k. Its caches are one row of columns: for each
vertical layer a column of zeros and what the schedule keeps, then each band's last inputs of the horizontal stack,
which the next call hands to the band on the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graphs.diagonal_schedule import Pass, Position, Schedule, schedule, taps
from export.graphs.onnx_builder import GraphBuilder
from export.graphs.prior_parts import PriorParts
from export.graphs.sampling_graph import Filters, QuickDraw
from service.bundle.fields import MOST_CACHED
from training.models.prior import HORIZONTAL_TAPS


def worthwhile(parts: PriorParts, w: int) -> bool:
    """Whether the grid has at least two of the bands that need no more than two passes a call, and the manifest room
    for what a call hands to the next one: often more than `prior_row` does."""
    if w < 2 * band_of(parts):
        return False
    plan = schedule(w, len(parts.vertical_layers), band_of(parts))
    return sum(_handed_on(plan, len(parts.horizontal_layers))) * parts.channels <= MOST_CACHED


def band_of(parts: PriorParts) -> int:
    """Columns a band: with twice the depth of the vertical stack, its second pass already sees all that it needs."""
    return 2 * len(parts.vertical_layers)


def _handed_on(plan: Schedule, horizontal_layers: int) -> list[int]:
    """How many vectors of C numbers: of each vertical layer, and last those of the horizontal stack."""
    return [1 + len(kept) for kept in plan.kept] + [(plan.bands - 1) * _states(horizontal_layers)]


def _states(horizontal_layers: int) -> int:
    """Vectors of the horizontal stack between two columns."""
    return 1 + horizontal_layers * (HORIZONTAL_TAPS - 1)


def diagonal(
    parts: PriorParts, w: int, frequency_table: NDArray[np.int32], band: int | None = None, *, filters: bool = False
) -> onnx.ModelProto:
    """The graph for grids w columns wide, with inputs top_k and top_p or without.

    Raises:
        ValueError: from `schedule`.
    """
    plan = schedule(w, len(parts.vertical_layers), band or band_of(parts))
    return _Writer(parts, plan, frequency_table, filters).model()


class _Columns:
    """Positions of one layer side by side, in a tensor (B,1,n,C) that begins with a column of zeros."""

    def __init__(self, graph: GraphBuilder, tensor: str, positions: Sequence[Position], width: int) -> None:
        self._graph, self._width = graph, width
        self._tensor, self._count = tensor, 1
        self._index: dict[Position, int] = {}
        self._number(positions)

    def _number(self, positions: Iterable[Position]) -> None:
        for position in positions:
            self._index[position] = self._count
            self._count += 1

    def append(self, tensor: str, positions: Sequence[Position]) -> None:
        """tensor (B,1,len(positions),C)."""
        self._tensor = self._graph.op("Concat", self._tensor, tensor, axis=2)
        self._number(positions)

    def take(self, positions: Sequence[Position]) -> str:
        """(B,1,len(positions),C), zeros for positions beside the grid."""
        index = [self._index[p] if 0 <= p[1] < self._width else 0 for p in positions]
        return self._graph.op("Gather", self._tensor, self._graph.integers(*index), axis=2)

    def following(self, positions: Sequence[Position]) -> str:
        """The same for the next call, whose rows count from one row further down: (B,1,1+len(positions),C)."""
        index = [self._index[row + 1, column] for row, column in positions]
        return self._graph.op("Gather", self._tensor, self._graph.integers(0, *index), axis=2)


class _Writer:
    def __init__(self, parts: PriorParts, plan: Schedule, frequency_table: NDArray[np.int32], filters: bool) -> None:
        self.parts, self.plan = parts, plan
        self.graph = graph = GraphBuilder("prior_diagonal" + "_filtered" * filters)
        self.channels, self.layers = parts.channels, len(parts.horizontal_layers)
        self.states = _states(self.layers)
        wide = ("B", plan.bands * plan.band)
        inputs = graph.input("uniforms", "float32", wide)
        self.labels = graph.input("labels", "int64", ("B",))
        self.temperature = self._in_each_band(graph.input("inverse_temperature", "float32", ("B",)))
        self.filters: Filters | None = None
        if filters:
            top_k, top_p = graph.input("top_k", "int64", ("B",)), graph.input("top_p", "float32", ("B",))
            each = self._in_each_band(top_k), self._in_each_band(top_p)
            self.filters = Filters(graph, *each, frequency_table, parts.prior.codebook_size)
        known = graph.input("known_codes", "int64", wide), graph.input("known_mask", "bool", wide)
        exists = graph.input("row_exists", "float32", ("B", plan.bands))  # 0 above the grid, where nothing may be seen
        self.exists = graph.op("Unsqueeze", exists, graph.integers(1, 3))  # (B,1,bands,1)
        self.draws = QuickDraw(graph, self.labels, plan.bands, frequency_table)
        numerators, known_codes = self.draws.prepare(inputs, *known)
        self.numerators, self.known = self._by_step(numerators), self._by_step(known_codes)
        sizes = _handed_on(plan, self.layers)
        self.cache_shape = ("B", 1, sum(sizes), self.channels)
        caches = graph.input("caches", "float32", self.cache_shape)
        *layers, carried = graph.ops("Split", caches, graph.integers(*sizes), count=len(sizes), axis=2)
        self.columns = [_Columns(graph, t, kept, plan.width) for t, kept in zip(layers, plan.kept, strict=True)]
        self.stream, self.left = self._handed_over(carried)
        self.context = ""  # of all positions so far, by `context_index`
        self.context_index: dict[Position, int] = {}
        self.codes: list[str] = []
        self.embedded = 0  # of `codes`, which the vertical stack sees already

    def model(self) -> onnx.ModelProto:
        plan, graph = self.plan, self.graph
        ends = [one.step for one in plan.passes[1:]] + [plan.band]
        for one, end in zip(plan.passes, ends, strict=True):
            self._embed_drawn()
            self._vertical(one)
            contexts = self._contexts(one.step, end)
            for step in range(one.step, end):
                self._draw(step, contexts[(step - one.step) * self.layers :][: self.layers])
        self._embed_drawn()
        codes = graph.op("Reshape", graph.op("Concat", *self.codes, axis=1), graph.integers(-1, plan.bands * plan.band))
        graph.output(codes, "sampled_codes", "int64", ("B", plan.bands * plan.band))
        kept = [columns.following(positions) for columns, positions in zip(self.columns, plan.kept, strict=True)]
        following = graph.op("Concat", *kept, self._to_hand_over(), axis=2)
        graph.output(following, "next_caches", "float32", self.cache_shape)
        return graph.model()

    def _in_each_band(self, control: str) -> str:
        """(B,) -> (B*bands,1)."""
        repeated = [self.graph.op("Unsqueeze", control, self.graph.integers(1))] * self.plan.bands
        return self.graph.op("Reshape", self.graph.op("Concat", *repeated, axis=1), self.graph.integers(-1, 1))

    def _by_step(self, inputs: str) -> list[str]:
        """(B, bands*band) -> for each step (B*bands, 1)."""
        return self.graph.split(
            self.graph.op("Reshape", inputs, self.graph.integers(-1, self.plan.band)), self.plan.band, axis=1
        )

    def _handed_over(self, carried: str) -> tuple[str, list[list[str]]]:
        """What `PriorParts.column` needs in each band, (B*bands,C) each: band 0 begins its row, so with zeros."""
        graph, bands, numbers = self.graph, self.plan.bands, self.states * self.channels
        rows = graph.op("Reshape", carried, graph.integers(0, bands - 1, numbers))
        nothing = graph.op("Mul", graph.slice(rows, 1, 0, 1), graph.scalar(0))
        flat = graph.op("Reshape", graph.op("Concat", nothing, rows, axis=1), graph.integers(-1, numbers))
        stream, *inputs = graph.split(flat, self.states, axis=1)
        each = HORIZONTAL_TAPS - 1
        return stream, [inputs[layer * each : (layer + 1) * each] for layer in range(self.layers)]

    def _to_hand_over(self) -> str:
        graph, bands = self.graph, self.plan.bands
        flat = graph.op("Concat", self.stream, *(x for inputs in self.left for x in inputs), axis=1)
        rows = graph.op("Reshape", flat, graph.integers(-1, bands, self.states * self.channels))
        shape = graph.integers(0, 1, (bands - 1) * self.states, self.channels)
        return graph.op("Reshape", graph.slice(rows, 1, 0, bands - 1), shape)

    def _embed_drawn(self) -> None:
        """Show the vertical stack what has been drawn since the last time; each row sees it as the row above."""
        new, graph, bands = self.codes[self.embedded :], self.graph, self.plan.bands
        if not new:
            return
        codes = graph.op("Reshape", graph.op("Concat", *new, axis=1), graph.integers(-1, bands, len(new)))
        vectors = self.parts.embed_drawn(graph, codes)  # (B,bands,len(new),C)
        exists = graph.op("Reshape", self.exists, graph.integers(0, bands, 1, 1))
        flat = graph.op(
            "Reshape", graph.op("Mul", vectors, exists), graph.integers(0, 1, bands * len(new), self.channels)
        )
        drawn = self.plan.drawn(self.embedded, len(self.codes))
        self.columns[0].append(flat, [(row + 1, column) for row, column in drawn])
        self.embedded = len(self.codes)

    def _vertical(self, one: Pass) -> None:
        graph, count = self.graph, len(self.parts.vertical_layers)
        if not self.context:
            biases = self.parts.label_biases(graph, self.labels, 0, count)
            self.biases = graph.split(biases, count, axis=-1)
        for index, (layer, outputs) in enumerate(zip(self.parts.vertical_layers, one.outputs, strict=True)):
            inputs = self.columns[index]
            read = inputs.take([tap for output in outputs for tap in taps(output)])
            gathered = graph.op("Reshape", read, graph.integers(0, 1, len(outputs), -1))
            result = self.parts.tapped(graph, layer, inputs.take(outputs), gathered, self.biases[index])
            if index + 1 < count:
                self.columns[index + 1].append(self._where_rows_exist(result, outputs), outputs)
        context = self.parts.context(graph, result, self.labels)
        self.context = graph.op("Concat", self.context, context, axis=2) if self.context else context
        for position in one.outputs[-1]:
            self.context_index[position] = len(self.context_index)

    def _where_rows_exist(self, result: str, outputs: Sequence[Position]) -> str:
        """Zeros for rows above the grid. Band 0 has none that anybody sees."""
        if all(row == 0 for row, _ in outputs):
            return result
        bands = self.graph.integers(*(-row for row, _ in outputs))
        return self.graph.op("Mul", result, self.graph.op("Gather", self.exists, bands, axis=2))

    def _contexts(self, start: int, end: int) -> list[str]:
        """(B*bands,2C) for each horizontal layer of each step from `start` to before `end`."""
        graph, width = self.graph, 2 * self.channels * self.layers
        last = self.plan.width - 1  # stands for the columns beside the grid, which are drawn for nobody
        index = [self.context_index[row, min(column, last)] for row, column in self.plan.drawn(start, end)]
        picked = graph.op("Gather", self.context, graph.integers(*index), axis=2)  # (B,1,bands*steps,width)
        rows = graph.op("Reshape", picked, graph.integers(-1, (end - start) * width))
        return graph.split(rows, (end - start) * self.layers, axis=1)

    def _draw(self, step: int, contexts: Sequence[str]) -> None:
        graph, size = self.graph, self.parts.prior.codebook_size
        logits = self.parts.column(graph, self.stream, contexts, self.left)
        code = self.draws.draw(logits, self.numerators[step], self.known[step], self.temperature, size, self.filters)
        self.codes.append(code)
        self.stream = graph.op("Squeeze", self.parts.embed_drawn(graph, code), graph.integers(1))
