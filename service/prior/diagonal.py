"""Few samples on a CPU: several rows of each in one call. In: `Draw`s. Out: rows, as from `service.prior.sampling`.

`prior_diagonal` and, with top-k and top-p, `prior_diagonal_filtered` draw one band of columns of several rows a call
(`service.prior.shear`). A row begins in band 0 and is whole `bands - 1` calls later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle
from service.bundle.fields import GraphName
from service.inference.graph_checks import require_array, require_codes
from service.inference.graph_faults import faults_of
from service.inference.sessions import SessionMaker
from service.inference.split_batches import SplitBatches
from service.prior.draws import LARGEST_UNIFORM, Codes, Draw
from service.prior.row_caches import HostCaches
from service.prior.shear import Shear

GRAPH: GraphName = "prior_diagonal"
FILTERED: GraphName = "prior_diagonal_filtered"


class DiagonalSampler:
    """Up to `places` samples at once. Calls follow one another, as those of `service.prior.sampling.RowSampler`."""

    def __init__(self, bundle: Bundle, maker: SessionMaker, places: int) -> None:
        codes, inputs = bundle.manifest.codes, bundle.manifest.graphs[GRAPH].inputs
        shapes = {tensor.name: tuple(int(axis) for axis in tensor.shape[1:]) for tensor in inputs}  # without B
        self.places = places
        (bands,), (columns,) = shapes["row_exists"], shapes["uniforms"]
        self._bundle = bundle
        self._sessions = {
            graph: SplitBatches(maker, bundle.graph_path(graph), least_part=1)
            for graph in (GRAPH, FILTERED)
            if graph in bundle.manifest.graphs
        }
        self._cache_shape = shapes["caches"]
        with faults_of(bundle, GRAPH):
            self._shear = Shear(bands, columns, (codes.height, codes.width))
            self._make_tables(places, self._shear, codes.codebook_size)
            self._caches = HostCaches(places, places, self._cache_shape)

    def _make_tables(self, places: int, shear: Shear, codebook_size: int) -> None:
        """What each place holds of its sample."""
        self._free = list(range(places))
        table = (places, shear.calls, shear.columns)
        self._uniforms = np.zeros(table, np.float32)
        self._uniforms[0, :, 1::2] = LARGEST_UNIFORM  # so that known input draws the first and the last code
        self._known_codes, self._known_mask = np.zeros(table, np.int64), np.zeros(table, np.bool_)
        self._drawn = np.zeros(table, np.int64)
        self._labels, self._inverse_temperature = np.zeros(places, np.int64), np.ones(places, np.float32)
        self._top_k, self._top_p = np.full(places, codebook_size, np.int64), np.ones(places, np.float32)
        self._filtered = np.zeros(places, np.bool_)
        self._call = np.zeros(places, np.int64)  # the next one

    def suits(self, batch: int | None, *, filtered: bool) -> bool:
        """Whether there is a graph and a place for a sample, and so few advance with it that drawing it here is
        quicker."""
        drawable = FILTERED in self._sessions or not filtered
        return drawable and bool(self._free) and batch is not None and batch <= self.places

    def open(self, draw: Draw, *, filtered: bool) -> int:
        """Take a free place for a sample without guidance, before its first row."""
        place = self._free.pop()
        self._uniforms[place] = self._shear.of(draw.uniforms)
        self._known_codes[place] = self._shear.of(draw.known_codes)
        self._known_mask[place] = self._shear.of(draw.known_mask)
        self._labels[place], self._inverse_temperature[place] = draw.label, draw.inverse_temperature
        self._top_k[place], self._top_p[place], self._filtered[place] = draw.top_k, draw.top_p, filtered
        self._call[place] = 0
        self._caches.clear(place)
        return place

    def close(self, place: int) -> None:
        self._free.append(place)

    def advance(self, index: Codes) -> Codes:
        """The next row of the samples at these places (B,) -> (B,w). The first row of a sample takes a call a band."""
        fresh = index[self._call[index] == 0]
        if len(fresh):
            for _ in range(self._shear.bands - 1):
                self._run(fresh)
        self._run(index)
        begun = self._call[index, None] - self._shear.bands  # the call that drew band 0 of the row
        rows: Codes = self._drawn[index[:, None], begun + self._shear.band, self._shear.column]
        return rows

    def check(self, size: int) -> None:
        """Run a batch of what the first place holds; what it draws is thrown away. Raises as `RowSampler.check`."""
        index, caches = np.zeros(size, np.int64), np.zeros((size, *self._cache_shape), np.float32)
        for graph, session in self._sessions.items():
            feeds = self._feeds(index, graph)
            with faults_of(self._bundle, graph):
                drawn, _ = session.run(None, feeds | {"caches": caches})
            require_array(self._bundle, graph, drawn, feeds["known_codes"])
            in_grid = feeds["row_exists"][:, self._shear.band] > 0  # of the codes at `column`: others are ignored
            require_codes(self._bundle, graph, drawn[:, self._shear.column][in_grid])

    def _run(self, index: Codes) -> None:
        graph = FILTERED if self._filtered[index].any() else GRAPH
        feeds = self._feeds(index, graph)
        self._drawn[index, self._call[index]] = self._caches.run(self._sessions[graph], index, feeds)
        self._call[index] += 1

    def _feeds(self, index: Codes, graph: GraphName) -> dict[str, NDArray[Any]]:
        calls = np.minimum(self._call[index], self._shear.calls - 1)
        filters: dict[str, NDArray[Any]] = {}
        if graph == FILTERED:
            filters = {"top_k": self._top_k[index], "top_p": self._top_p[index]}
        return filters | {
            "uniforms": self._uniforms[index, calls],
            "labels": self._labels[index],
            "inverse_temperature": self._inverse_temperature[index],
            "known_codes": self._known_codes[index, calls],
            "known_mask": self._known_mask[index, calls],
            "row_exists": self._shear.row_exists[calls],
        }
