"""Code grids of any size, cut into tiles that the prior codes independently, in groups that it codes together.

In: the number of pictures, their grid (h, w) and the largest tile. Out: tiles, and groups of tiles of one shape. The
order of both is part of the container format.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

GROUP_TILES = 256  # of one group: bounds the memory of the prior's batch; part of the format, like the order of tiles


@dataclass(frozen=True)
class Tile:
    """Rows top..top+height and columns left..left+width of the code grid of one picture."""

    picture: int
    top: int
    left: int
    height: int
    width: int

    @property
    def where(self) -> tuple[int, slice, slice]:
        """The index of this tile in codes (B, h, w)."""
        return self.picture, slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def tiles_of(pictures: int, grid: tuple[int, int], largest: tuple[int, int]) -> list[Tile]:
    """Picture by picture, row by row of tiles. Only the last row and column of tiles can be smaller than `largest`."""
    return [
        Tile(picture, top, left, min(largest[0], grid[0] - top), min(largest[1], grid[1] - left))
        for picture in range(pictures)
        for top in range(0, grid[0], largest[0])
        for left in range(0, grid[1], largest[1])
    ]


def grown(tile: Tile, margin: int, grid: tuple[int, int]) -> Tile:
    """The tile and up to `margin` codes on each side, as far as the grid (h,w) reaches."""
    top, left = max(0, tile.top - margin), max(0, tile.left - margin)
    bottom, right = min(grid[0], tile.top + tile.height + margin), min(grid[1], tile.left + tile.width + margin)
    return Tile(tile.picture, top, left, bottom - top, right - left)


def overlap(first: Tile, second: Tile) -> bool:
    return (
        first.picture == second.picture
        and first.top < second.top + second.height
        and second.top < first.top + first.height
        and first.left < second.left + second.width
        and second.left < first.left + first.width
    )


def bounds(tiles: list[Tile]) -> Tile:
    """The smallest rectangle around tiles of one picture."""
    top, left = min(tile.top for tile in tiles), min(tile.left for tile in tiles)
    bottom, right = max(tile.top + tile.height for tile in tiles), max(tile.left + tile.width for tile in tiles)
    return Tile(tiles[0].picture, top, left, bottom - top, right - left)


def groups_of(tiles: list[Tile]) -> list[list[Tile]]:
    """Tiles of one shape, tallest first, then widest first, otherwise in their order; at most GROUP_TILES a group."""
    ordered = sorted(tiles, key=lambda tile: (-tile.height, -tile.width))
    groups = []
    for _, same_shape in groupby(ordered, key=lambda tile: (tile.height, tile.width)):
        members = list(same_shape)
        groups += [members[start : start + GROUP_TILES] for start in range(0, len(members), GROUP_TILES)]
    return groups
