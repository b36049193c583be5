"""Static batching of generation, to compare the service's scheduler with.

In: jobs of one or more `Draw`s. Out: a future of each job's codes int64 (n,h,w). Also here: the draw of every timing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from service.bundle import Bundle
from service.prior.draws import Codes, Draw, Floats
from service.prior.sampling import RowSampler

Submit = Callable[[Sequence[Draw]], asyncio.Future[Codes]]


class StaticBatching:
    """The usual alternative: gather what waits, draw that batch to its end, then gather again. First come first served.

    Same graph and same order; a request's samples stay together.
    """

    def __init__(self, sampler: RowSampler) -> None:
        self._sampler = sampler
        self._waiting: deque[tuple[Sequence[Draw], asyncio.Future[Codes]]] = deque()
        self._running = False
        self._executor = ThreadPoolExecutor(1)

    def submit(self, draws: Sequence[Draw]) -> asyncio.Future[Codes]:
        future: asyncio.Future[Codes] = asyncio.get_running_loop().create_future()
        self._waiting.append((draws, future))
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._next)
        return future

    def _next(self) -> None:
        batch: list[tuple[Sequence[Draw], asyncio.Future[Codes]]] = []
        while self._waiting and sum(len(d) for d, _ in batch) + len(self._waiting[0][0]) <= self._sampler.max_batch:
            batch.append(self._waiting.popleft())
        self._running = bool(batch)
        if batch:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(
                self._executor, draw_all, self._sampler, [d for draws, _ in batch for d in draws]
            )
            work.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _finish(self, batch: list[tuple[Sequence[Draw], asyncio.Future[Codes]]], codes: Codes) -> None:
        start = 0
        for draws, future in batch:
            future.set_result(codes[start : start + len(draws)])
            start += len(draws)
        self._next()


def plain_draw(bundle: Bundle, uniforms: Floats) -> Draw:
    """Temperature 1, no label, no filter, nothing known."""
    prior, one, grid = bundle.manifest.prior, np.float32(1), uniforms.shape
    assert prior is not None
    known = np.zeros(grid, np.int64), np.zeros(grid, np.bool_)
    return Draw(uniforms, prior.label_count, one, bundle.manifest.codes.codebook_size, one, *known)


def draw_all(sampler: RowSampler, draws: Sequence[Draw]) -> Codes:
    places = [sampler.open(draw) for draw in draws]
    codes = np.stack([sampler.advance(places) for _ in range(sampler.grid[0])], axis=1)
    for place in places:
        sampler.close(place)
    return codes
