"""A graph whose batches are cut into parts that run at once, each in a thread of its own. For CPUs.

A row graph is a thousand small operations one after the other. Inside of one, a second thread has little to do and must
be woken; with a part of the samples for itself it has the same work as the first. The prior is exact, so a sample's
codes do not depend on the part that it is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.sessions import SessionMaker

_LEAST_PART = 4  # samples; of small grids, fewer take less time than waking a thread


class SplitBatches:
    """`run` is that of a session of `maker` whose inputs and outputs all begin with the batch. One caller at a time."""

    def __init__(self, maker: SessionMaker, path: Path, least_part: int = _LEAST_PART) -> None:
        self._session = replace(maker, threads=1).open(path)
        self._threads, self._least_part = maker.threads, least_part

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        count = len(next(iter(feeds.values())))
        parts = min(self._threads, count // self._least_part)
        if parts < 2:
            outputs: list[Any] = self._session.run(names, feeds)
            return outputs
        ends = [count * part // parts for part in range(parts + 1)]
        cut = [{name: array[start:end] for name, array in feeds.items()} for start, end in pairwise(ends)]
        others = [_helpers(self._threads - 1).submit(self._session.run, names, part) for part in cut[1:]]
        found = [self._session.run(names, cut[0]), *(other.result() for other in others)]
        return [np.concatenate(of_all) for of_all in zip(*found, strict=True)]


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """Beside the thread of a sampler; those of one process share them, so that a reload leaves none behind."""
    return ThreadPoolExecutor(count, thread_name_prefix="sampler-part")
