"""Several rows at once: what a call of `prior_diagonal` computes, in which order, and what it keeps for the next one.

The grid is cut into bands of columns. A call draws one band of several rows, each one row above its left neighbour's:

           band 0   band 1   band 2
    row 5    .        .      call 7
    row 6    .      call 7   call 8
    row 7  call 7   call 8   call 9

so that the bands of a call are a batch: where the time goes into starting small operations, three columns take little
longer than one. A code depends on the row above up to L columns to its right (L vertical layers), which a band wider
than L has always drawn by then. Within a call the vertical stack is computed in few passes, each as far as the codes
drawn so far allow: layer l ends l columns before them.

Nothing here knows ONNX: positions are pairs (row, column), where row 0 is the row of band 0 and row -k that of band k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from training.models.prior import VERTICAL_TAPS

Position = tuple[int, int]
Layers = tuple[tuple[Position, ...], ...]


@dataclass(frozen=True)
class Pass:
    """`outputs[l - 1]` is what layer l computes once `step` columns of every band have been drawn."""

    step: int
    outputs: Layers


@dataclass(frozen=True)
class Schedule:
    """`kept[l]` is what the call reads of the inputs of layer l + 1 and did not make: the caches, layer by layer."""

    width: int
    band: int
    bands: int
    passes: tuple[Pass, ...]
    kept: Layers

    def drawn(self, start: int, end: int) -> list[Position]:
        """The codes of the steps from `start` to before `end`, band by band. The last band may lie beyond the grid."""
        return [(-k, k * self.band + step) for k in range(self.bands) for step in range(start, end)]


def taps(position: Position) -> list[Position]:
    """What a vertical layer reads of its input for this output, in the order of VERTICAL_TAPS."""
    return [(position[0] + row, position[1] + column) for row, column in VERTICAL_TAPS]


def schedule(width: int, layers: int, band: int) -> Schedule:
    """For a grid `width` columns wide and a vertical stack of so many layers.

    Raises:
        ValueError: the band is not wider than the stack is deep, so that a row would wait for itself, or as wide as
            the grid.
    """
    if not layers < band < width:
        raise ValueError(f"a band of {band} columns is none for {layers} vertical layers over {width} columns")
    bands = -(-width // band)
    passes = tuple(_passes(width, layers, band, bands))
    return Schedule(width, band, bands, passes, tuple(_kept(width, layers, band, bands, passes)))


def _passes(width: int, layers: int, band: int, bands: int) -> Iterator[Pass]:
    """As few as possible: one at the start, and one whenever band 0 comes to a column whose context is missing."""
    # by (band, layer): the first column that is still to be computed; the call before went beyond the end of its band
    done = {
        (k, layer): min(k * band + layers - layer, width) if k else 0
        for k in range(bands)
        for layer in range(1, layers + 1)
    }
    step = 0
    while step < band:
        outputs: list[list[Position]] = [[] for _ in range(layers)]
        for (k, layer), first in done.items():
            end = (k + 1) * band + min(step, layers) - layer  # further than `layers` would be the next call's work
            end = width if k == bands - 1 else min(end, width)
            outputs[layer - 1] += [(-k, column) for column in range(first, end)]
            done[k, layer] = max(first, end)
        yield Pass(step, tuple(tuple(positions) for positions in outputs))
        step = done[0, layers]


def _kept(width: int, layers: int, band: int, bands: int, passes: tuple[Pass, ...]) -> Iterator[tuple[Position, ...]]:
    for layer in range(layers):
        outputs = [position for one in passes for position in one.outputs[layer]]
        read = {p for output in outputs for p in taps(output) if 0 <= p[1] < width}
        if layer:
            made = {position for one in passes for position in one.outputs[layer - 1]}
        else:  # the codes of the row above
            made = {(1 - k, k * band + step) for k in range(bands) for step in range(band)}
        needed = read - made
        while more := {(row + 1, column) for row, column in needed} - made - needed:
            needed |= more  # what a later call reads passes through this one
        yield tuple(sorted(needed))
