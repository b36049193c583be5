"""Large arrays through a convolutional network: overlapping windows of large pictures, a few pictures at a time.

In: a batch, a `run` for one window, and how many pixels one code spans. Out: what `run` on the whole would give: every
window carries a margin that is wider than the network sees, and only its core is kept. Windows at the border of the
picture end there, so the network pads them as it would pad the whole. So the memory of a run grows neither with the
picture nor with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.stopping import check_stop

CORE = 64  # codes, in each direction: 256 x 256 pixels where a code spans 4
MARGIN = 8  # codes; as far as the encoders and decoders of `training` see at most, beyond their own
WHOLE = CORE + 2 * MARGIN  # up to this many codes in each direction a picture runs whole: a window would be as large


@dataclass(frozen=True)
class Window:
    """Slices of the code grid, (rows, columns): what the network sees, and what is kept of it."""

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]

    def kept_in_seen(self, scale: int) -> tuple[slice, slice]:
        rows, columns = (
            slice((kept.start - seen.start) * scale, (kept.stop - seen.start) * scale)
            for seen, kept in zip(self.seen, self.kept, strict=True)
        )
        return rows, columns


def windows(grid: tuple[int, int]) -> Iterator[Window]:
    """Cores cover the grid (h,w) without overlap."""
    for top in range(0, grid[0], CORE):
        for left in range(0, grid[1], CORE):
            kept = tuple(slice(start, min(start + CORE, end)) for start, end in zip((top, left), grid, strict=True))
            seen = tuple(
                slice(max(0, part.start - MARGIN), min(end, part.stop + MARGIN))
                for part, end in zip(kept, grid, strict=True)
            )
            yield Window((seen[0], seen[1]), (kept[0], kept[1]))


def run_in_windows(
    run: Callable[[NDArray[Any]], NDArray[Any]], batch: NDArray[Any], *, scale_in: int, scale_out: int
) -> NDArray[Any]:
    """`run` maps (B, h*scale_in, w*scale_in, ...) to (B, h*scale_out, w*scale_out, ...), one of the scales being 1."""
    grid = (batch.shape[1] // scale_in, batch.shape[2] // scale_in)
    if max(grid) <= WHOLE:
        return run(batch)
    result: NDArray[Any] | None = None
    for window in windows(grid):
        check_stop()
        given = batch[:, *_scaled(window.seen, scale_in)]
        found = of_all(given, run(np.ascontiguousarray(given)))[:, *window.kept_in_seen(scale_out)]
        if result is None:
            shape = (len(batch), grid[0] * scale_out, grid[1] * scale_out, *found.shape[3:])
            result = np.empty(shape, found.dtype)
        result[:, *_scaled(window.kept, scale_out)] = found
    assert result is not None
    return result


def run_in_parts(run: Callable[[NDArray[Any]], NDArray[Any]], batch: NDArray[Any], most: int) -> NDArray[Any]:
    """`run` maps (B, ...) to (B, ...) and gets `most` pictures at a time. Stops between two parts: see `check_stop`."""
    if len(batch) <= most:
        return run(batch)
    result: NDArray[Any] | None = None
    for start in range(0, len(batch), most):
        check_stop()
        part = batch[start : start + most]
        found = of_all(part, run(part))
        if result is None:
            result = np.empty((len(batch), *found.shape[1:]), found.dtype)
        result[start : start + most] = found
    assert result is not None
    return result


def of_all(given: NDArray[Any], found: NDArray[Any]) -> NDArray[Any]:
    """What was found, of each picture: one row would be taken for that of all. Raises ValueError."""
    if len(found) != len(given):
        raise ValueError(f"a run of {len(given)} pictures gave {len(found)}")
    return found


def _scaled(slices: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    rows, columns = (slice(part.start * scale, part.stop * scale) for part in slices)
    return rows, columns
