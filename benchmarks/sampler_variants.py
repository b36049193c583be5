"""Ways to write the sampler, all exact: each gives the same codes for the same uniforms.

In: a bundle's prior. Out: functions from uniforms (B,h,w) to codes (B,h,w), at temperature 1, no label, and filters
that keep all codes.

    row, row_unfiltered   one graph a row, columns unrolled: what the service runs (with and without top-k and top-p)
    row_sorted            as row, the thresholds of the filters from a sort of the codebook instead of a histogram
    diagonal, diagonal_filtered
                          bands of several rows a call: what the service runs for few samples on a wide grid
    pixel                 one graph a row for the vertical stack, one a pixel for the horizontal stack, numpy draws
    scan                  as row_unfiltered, the columns as one Scan instead of unrolled
    row_jacobi            vertical stack as pixel; the row's codes by fixed-point iteration of the horizontal stack
    grid_jacobi           fixed-point iteration of the whole teacher-forced graph (Song et al., arXiv:2002.03629)
    naive                 one teacher-forced forward a pixel
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.static_batching import draw_all, plain_draw
from service.bundle import Bundle
from service.bundle.fields import GraphName
from service.codec.prior_coding import frequencies
from service.inference.sessions import SessionMaker
from service.prior.diagonal import DiagonalSampler
from service.prior.draws import Codes, Floats
from service.prior.sampling import RowSampler, open_row_graph

UNIFORM_UNITS = 1 << 24
Sample = Callable[[Floats], Codes]


def draw_codes(logits: NDArray[np.int32], uniforms: Floats, table: tuple[int, ...]) -> Codes:
    """logits (..., K), uniforms (...) -> codes (...): the number of cumulative frequencies up to the point."""
    cumulative = frequencies(logits, table).cumsum(axis=-1)
    numerators = (uniforms * np.float32(UNIFORM_UNITS)).astype(np.int64)
    points = cumulative[..., -1] * numerators // UNIFORM_UNITS
    drawn: Codes = (cumulative <= points[..., None]).sum(axis=-1)
    return drawn


@dataclass(frozen=True)
class Variants:
    bundle: Bundle
    maker: SessionMaker

    def __post_init__(self) -> None:
        assert self.bundle.manifest.prior is not None

    @property
    def prior(self) -> Any:
        return self.bundle.manifest.prior

    @property
    def grid(self) -> tuple[int, int]:
        return self.bundle.manifest.codes.height, self.bundle.manifest.codes.width

    def session(self, name: GraphName) -> Any:
        return self.maker.open(self.bundle.graph_path(name))

    def labels(self, batch: int) -> Codes:
        return np.full(batch, self.prior.label_count, np.int64)

    def row(self, max_batch: int, *, filters: bool) -> Sample:
        """The service's own sampler. `filters` makes it take the graph with filters, set to what filters nothing."""
        sampler = RowSampler(self.bundle, self.maker, max_batch, max_batch)
        if filters:
            sampler._unfiltered = _WithoutEffect(sampler._filtered, self.bundle.manifest.codes.codebook_size)
        return self._rows_of(sampler)

    def sorted_row(self, max_batch: int, sorted_graph: Path) -> Sample:
        """The service's sampler with another `prior_row`."""
        sampler = RowSampler(self.bundle, self.maker, max_batch, max_batch)
        filtered = open_row_graph(self.maker, sorted_graph)
        sampler._unfiltered = _WithoutEffect(filtered, self.bundle.manifest.codes.codebook_size)
        return self._rows_of(sampler)

    def scan(self, max_batch: int, scan_graph: Path) -> Sample:
        """The service's sampler with another graph of the same inputs and outputs."""
        sampler = RowSampler(self.bundle, self.maker, max_batch, max_batch)
        sampler._unfiltered = open_row_graph(self.maker, scan_graph)
        return self._rows_of(sampler)

    def _rows_of(self, sampler: RowSampler) -> Sample:
        return lambda uniforms: draw_all(sampler, [plain_draw(self.bundle, one) for one in uniforms])

    def diagonal(self, max_batch: int, *, filters: bool) -> Sample:
        """The service's sampler for few samples, whatever the batch."""
        sampler = DiagonalSampler(self.bundle, self.maker, max_batch)

        def sample(uniforms: Floats) -> Codes:
            places = np.array([sampler.open(plain_draw(self.bundle, one), filtered=filters) for one in uniforms])
            codes = np.stack([sampler.advance(places) for _ in range(self.grid[0])], axis=1)
            for place in places:
                sampler.close(int(place))
            return codes

        return sample

    def pixel(self) -> Sample:
        context_of, pixel_of = self.session("prior_context"), self.session("prior_pixel")

        def row(context: Floats, uniforms: Floats) -> Codes:
            batch, width = uniforms.shape
            left = np.zeros((batch, *self.prior.pixel_cache_shape), np.float32)
            codes = np.full((batch, width + 1), -1, np.int64)
            for j in range(width):
                feeds = {"context": np.ascontiguousarray(context[:, j]), "previous_codes": codes[:, j], "left": left}
                logits, left = pixel_of.run(None, feeds)
                codes[:, j + 1] = draw_codes(logits, uniforms[:, j], self.prior.frequency_table)
            return codes[:, 1:]

        return lambda uniforms: self._by_rows(context_of, row, uniforms)

    def row_jacobi(self, horizontal_graph: Path) -> Sample:
        """`horizontal_graph` is written by benchmarks.sampler_graphs."""
        context_of, horizontal = self.session("prior_context"), self.maker.open(horizontal_graph)

        def row(context: Floats, uniforms: Floats) -> Codes:
            def refine(codes: Codes) -> Codes:
                feeds = {"context": context[:, None], "codes": codes[:, None]}
                logits = horizontal.run(None, feeds)[0][:, 0]  # (B,w,K)
                return draw_codes(logits, uniforms, self.prior.frequency_table)

            return fixed_point(refine, uniforms.shape)

        return lambda uniforms: self._by_rows(context_of, row, uniforms)

    def grid_jacobi(self) -> Sample:
        teacher_forced = self.session("prior")

        def sample(uniforms: Floats) -> Codes:
            def refine(codes: Codes) -> Codes:
                (logits,) = teacher_forced.run(None, {"codes": codes, "labels": self.labels(len(codes))})
                return draw_codes(logits, uniforms, self.prior.frequency_table)

            return fixed_point(refine, uniforms.shape)

        return sample

    def naive(self, pixels: int | None = None) -> Sample:
        """The first `pixels` only: the time of the others is the same, since each is one whole forward."""
        teacher_forced = self.session("prior")

        def sample(uniforms: Floats) -> Codes:
            codes = np.zeros(uniforms.shape, np.int64)
            for i, j in list(np.ndindex(self.grid))[:pixels]:
                (logits,) = teacher_forced.run(None, {"codes": codes, "labels": self.labels(len(codes))})
                codes[:, i, j] = draw_codes(logits[:, i, j], uniforms[:, i, j], self.prior.frequency_table)
            return codes

        return sample

    def _by_rows(self, context_of: Any, row: Callable[[Floats, Floats], Codes], uniforms: Floats) -> Codes:
        batch, height, width = uniforms.shape
        caches = np.zeros((batch, *self.prior.cache_shape), np.float32)
        codes = np.full((batch, height + 1, width), -1, np.int64)
        for i in range(height):
            feeds = {"codes_above": codes[:, i], "labels": self.labels(batch), "caches": caches}
            context, caches = context_of.run(None, feeds)
            codes[:, i + 1] = row(context, uniforms[:, i])
        return codes[:, 1:]


def fixed_point(refine: Callable[[Codes], Codes], shape: tuple[int, ...]) -> Codes:
    """Apply `refine` to zeros until nothing changes: after n times the first n codes in raster order are final."""
    codes = np.zeros(shape, np.int64)
    while (refined := refine(codes)).tobytes() != codes.tobytes():
        codes = refined
    return codes


class _WithoutEffect:
    """The graph with filters in the place of the one without."""

    def __init__(self, filtered: Any, codebook_size: int) -> None:
        self._filtered, self._size = filtered, codebook_size

    def run(self, names: None, feeds: dict[str, Any]) -> Any:
        batch = len(feeds["labels"])
        off = {"top_k": np.full(batch, self._size, np.int64), "top_p": np.ones(batch, np.float32)}
        return self._filtered.run(names, {**feeds, **off})
