"""Sampling by rows. In: what to draw, as `Draw`s. Out: their codes, one call of the row graph for a row of all of them.

The prior is exact, so a sample's codes depend on its own `Draw` only: not on the batch, its order, or what else is in
it. That is why samples at different rows, of different requests, with different controls, can share a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle
from service.bundle.fields import GraphName
from service.inference.batch_limits import buckets
from service.inference.graph_checks import require_array, require_codes
from service.inference.graph_faults import faults_of
from service.inference.sessions import CPU, CUDA, SessionMaker
from service.inference.split_batches import SplitBatches
from service.prior import diagonal
from service.prior.diagonal import DiagonalSampler
from service.prior.draws import LARGEST_UNIFORM, UNGUIDED, Codes, Draw
from service.prior.row_caches import DeviceCaches, HostCaches

Graph = Literal["filtered", "unfiltered", "guided", "diagonal"]
_NAMES: dict[Graph, GraphName] = {
    "filtered": "prior_row",
    "unfiltered": "prior_row_unfiltered",
    "guided": "prior_row_guided",
}
_DIAGONAL_BATCH = 4  # of more samples, rows one after the other are as quick (docs/benchmarks.md)
_EVERY_SIZE_TO = 64  # the time that this takes grows with its square


def open_row_graph(maker: SessionMaker, path: Path) -> Any:
    """Something with the `run` of a session; on CUDA a session, whose memory may be bound."""
    return maker.open(path, fixed_batches=True) if maker.resident else SplitBatches(maker, path)


def open_caches(maker: SessionMaker, places: int, max_batch: int, shape: tuple[int, int, int]) -> HostCaches:
    if maker.resident:
        return DeviceCaches(places, max_batch, shape, maker.device)
    return HostCaches(places, max_batch, shape)


class RowSampler:
    """The row graphs, and a table with one place for each sample that has been started. All of them draw the same codes
    where they can draw a sample at all; they differ in time.

    `places` is how many samples may be under way; `max_batch` of them, at most, advance in one call. Calls of `open`
    and `advance` must follow one another; `close` may come at any time, even for a place that is advancing. `warm` is
    for whoever draws more than once.
    """

    def __init__(self, bundle: Bundle, maker: SessionMaker, max_batch: int, places: int, *, warm: bool = True) -> None:
        codes, prior = bundle.manifest.codes, bundle.manifest.prior
        assert prior is not None
        self._bundle = bundle
        self.grid = (codes.height, codes.width)
        self.max_batch = max_batch
        self._codebook_size = codes.codebook_size
        self._filtered = open_row_graph(maker, bundle.graph_path("prior_row"))
        self._unfiltered = open_row_graph(maker, bundle.graph_path("prior_row_unfiltered"))
        # A GPU wants few shapes, so batches are padded to them. On a CPU padding costs a quarter of the time, so every
        # size is a bucket of its own there (benchmarks/batch_sizes.py).
        self._buckets = buckets(max_batch) if maker.provider == CUDA else ()
        self._pad = places  # the last place pads batches
        self._free = list(reversed(range(places)))
        entries = places + 1
        with faults_of(bundle, "prior_row"):
            self._make_tables(entries)
            self._caches = open_caches(maker, entries, max_batch, prior.cache_shape)
        self._two_buffers = maker.resident  # which take turns: `service.prior.row_caches.DeviceCaches`
        self._guided: Any = None
        if "prior_row_guided" in bundle.manifest.graphs:
            layers, width, channels = prior.cache_shape
            self._guided = open_row_graph(maker, bundle.graph_path("prior_row_guided"))
            with faults_of(bundle, "prior_row_guided"):
                self._guided_caches = open_caches(maker, entries, max_batch, (2 * layers, width, channels))
        self._diagonal: DiagonalSampler | None = None
        if diagonal.GRAPH in bundle.manifest.graphs and maker.provider == CPU:
            self._diagonal = DiagonalSampler(bundle, maker, min(_DIAGONAL_BATCH, max_batch))
        if warm:
            self.warm_up()

    def _make_tables(self, entries: int) -> None:
        """What each place holds of its sample."""
        self._uniforms = np.zeros((entries, *self.grid), np.float32)
        self._uniforms[self._pad, :, 1::2] = LARGEST_UNIFORM  # so that known input draws the first and the last code
        self._labels = np.zeros(entries, np.int64)
        self._inverse_temperature = np.ones(entries, np.float32)
        self._top_k = np.full(entries, self._codebook_size, np.int64)
        self._top_p = np.ones(entries, np.float32)
        self._known_codes = np.zeros((entries, *self.grid), np.int64)
        self._known_mask = np.zeros((entries, *self.grid), np.bool_)
        self._guidance = np.ones(entries, np.float32)
        self._graph: list[Graph] = ["unfiltered"] * entries
        self._row = np.zeros(entries, np.int64)
        self._diagonal_place = np.zeros(entries, np.int64)

    @property
    def free_places(self) -> int:
        return len(self._free)

    def open(self, draw: Draw, batch: int | None = None) -> int:
        """Take a free place for a sample, before its first row. `batch`: how many are going to advance with it."""
        place = self._free.pop()
        try:
            self._fill(place, draw, batch)
        except BaseException:  # on CUDA a place is cleared on the device, which may fail
            self._free.append(place)
            raise
        return place

    def _fill(self, place: int, draw: Draw, batch: int | None) -> None:
        self._row[place] = 0
        self._graph[place] = graph = self._quickest(draw)
        filtered = graph == "filtered"
        if graph != "guided" and self._diagonal is not None and self._diagonal.suits(batch, filtered=filtered):
            self._diagonal_place[place] = self._diagonal.open(draw, filtered=filtered)
            self._graph[place] = "diagonal"
            return
        self._uniforms[place] = draw.uniforms
        self._labels[place] = draw.label
        self._inverse_temperature[place] = draw.inverse_temperature
        self._top_k[place] = draw.top_k
        self._top_p[place] = draw.top_p
        self._known_codes[place] = draw.known_codes
        self._known_mask[place] = draw.known_mask
        self._guidance[place] = draw.guidance
        (self._guided_caches if self._graph[place] == "guided" else self._caches).clear(place)

    def _quickest(self, draw: Draw) -> Graph:
        """The graph that draws this sample in the least time."""
        if draw.guidance != UNGUIDED:
            return "guided"
        return "filtered" if draw.top_k < self._codebook_size or draw.top_p < 1 else "unfiltered"

    def close(self, place: int) -> None:
        if self._graph[place] == "diagonal":
            assert self._diagonal is not None
            self._diagonal.close(int(self._diagonal_place[place]))
        self._free.append(place)

    def advance(self, places: Sequence[int]) -> Codes:
        """Draw the next row of each of these samples, at least one -> (len(places), w). Guided ones have a graph, so a
        call, of their own, and so have those drawn diagonally."""
        index = np.array(places, np.int64)
        graphs = [self._graph[place] for place in places]
        first, *others = _companies(set(graphs))
        if others:
            drawn = np.empty((len(places), self.grid[1]), np.int64)
            for together in (first, *others):
                where = np.array([graph in together for graph in graphs])
                drawn[where] = self._draw(index[where], _drawing_all(together))
        else:
            drawn = self._draw(index, _drawing_all(first))
        self._row[index] += 1
        return drawn

    def _draw(self, index: Codes, graph: Graph) -> Codes:
        if graph == "diagonal":
            assert self._diagonal is not None
            return self._diagonal.advance(self._diagonal_place[index])
        count = len(index)
        size = next((size for size in self._buckets if size >= count), count)
        if size > count:
            index = np.concatenate([index, np.full(size - count, self._pad)])
        return self._run(index, self._row[index], graph)[:count]

    def sizes(self) -> Sequence[int]:
        """The batch sizes that run before the first request: all that can come, up to `_EVERY_SIZE_TO` on a CPU."""
        return self._buckets or (*range(1, min(self.max_batch, _EVERY_SIZE_TO + 1)), self.max_batch)

    def warm_up(self) -> None:
        """Run every graph at all `sizes`, so that later batches find their memory reserved. Raises as `check`."""
        least, *others = self.sizes()
        # The largest first: the others fit into its memory. But on a CPU one sample comes before all: a session plans
        # the memory of the first batch size that it sees, and of no other, because onnxruntime knows plans by the XOR
        # of all axes of all inputs, where the batch, an axis of an even number of inputs, cancels out. Without a plan
        # each of a thousand values is allocated by itself (benchmarks/batch_sizes.py).
        for size in (*reversed(others), least) if self._buckets else (least, *reversed(others)):
            self.check(size)

    def check(self, size: int = 1) -> None:
        """Run every graph on a batch of known input; what they draw is thrown away.

        Raises BundleError where one cannot run, or draws what are no codes of the model.
        """
        index, first = np.full(size, self._pad, np.int64), np.zeros(size, np.int64)
        graphs: tuple[Graph, ...] = ("filtered", "unfiltered", *(() if self._guided is None else ("guided",)))
        # There and back, every graph runs with both buffers.
        for graph in (*graphs, *reversed(graphs)) if self._two_buffers else graphs:
            with faults_of(self._bundle, _NAMES[graph]):
                drawn = self._run(index, first, graph)
            require_array(self._bundle, _NAMES[graph], drawn, self._known_codes[index, first])
            require_codes(self._bundle, _NAMES[graph], drawn)
        if self._diagonal is not None and size <= self._diagonal.places:
            self._diagonal.check(size)

    def _run(self, index: Codes, rows: Codes, graph: Graph) -> Codes:
        feeds: dict[str, NDArray[Any]] = {
            "uniforms": self._uniforms[index, rows],
            "labels": self._labels[index],
            "inverse_temperature": self._inverse_temperature[index],
            "known_codes": self._known_codes[index, rows],
            "known_mask": self._known_mask[index, rows],
        }
        if graph == "unfiltered":
            return self._caches.run(self._unfiltered, index, feeds)
        feeds |= {"top_k": self._top_k[index], "top_p": self._top_p[index]}
        if graph == "filtered":
            return self._caches.run(self._filtered, index, feeds)
        return self._guided_caches.run(self._guided, index, feeds | {"guidance": self._guidance[index]})


def _companies(graphs: set[Graph]) -> list[set[Graph]]:
    """What may share a call: samples with filters and without, if they are neither guided nor drawn diagonally."""
    apart: list[set[Graph]] = [{graph} for graph in ("guided", "diagonal") if graph in graphs]
    rest = graphs - {"guided", "diagonal"}
    return [*apart, rest] if rest else apart


def _drawing_all(needed: set[Graph]) -> Graph:
    """The graph for samples of which each needs one of these: without an effect, filters filter nothing."""
    return "filtered" if "filtered" in needed else next(iter(needed))
