"""How grids go into a diagonal and codes come out. In: grids (h,w). Out: one input a call, and the way back.

    call 7:   band 0 of row 7,   band 1 of row 6,   band 2 of row 5
    call 8:   band 0 of row 8,   band 1 of row 7,   band 2 of row 6

Call i holds band k of row i - k, for every band k. `export.graphs.diagonal_schedule` says why.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Shear:
    """Where the codes of a grid (h,w) stand in the calls of a graph: (calls, columns), `columns` those of all bands."""

    def __init__(self, bands: int, columns: int, grid: tuple[int, int]) -> None:
        height, width = grid
        self.bands, self.columns, self.calls = bands, columns, height + bands - 1
        self.column = np.arange(width)
        self.band = self.column // (columns // bands)
        rows = np.arange(self.calls)[:, None] - np.arange(bands)
        self.row_exists = ((rows >= 0) & (rows < height)).astype(np.float32)  # (calls, bands)

    def of(self, grids: NDArray[Any]) -> NDArray[Any]:
        """(...,h,w) -> (...,calls,columns), zeros where a band has no row."""
        *batch, height, _ = grids.shape
        sheared = np.zeros((*batch, self.calls, self.columns), grids.dtype)
        sheared[..., np.arange(height)[:, None] + self.band, self.column] = grids
        return sheared

    def undone(self, sheared: NDArray[Any]) -> NDArray[Any]:
        """(...,calls,columns) -> (...,h,w)."""
        height = self.calls - self.bands + 1
        grids: NDArray[Any] = sheared[..., np.arange(height)[:, None] + self.band, self.column]
        return grids
