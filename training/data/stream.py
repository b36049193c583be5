"""The endless, shuffled stream of training batches.

In: a `Split` (or codes in place of pictures), a batch size and a seed. Out: `batch(step)`, a pure function of the seed
and the step, so that a resumed run sees what an uninterrupted one would have seen, and several processes together see
the same global batch that one process would.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.dataset import DataError, Split

Batch = tuple[Tensor, Tensor]  # pictures (B, C, H, W) uint8 or codes (B, h, w) int64; labels (B,) int64


def to_unit(images: Tensor) -> Tensor:
    """uint8 (B,C,H,W) -> float32 in [0,1]."""
    return images.float().div_(255)


class Stream:
    """Every picture once an epoch, in an order drawn anew each epoch; `crop` and `flip` are drawn anew each step.

    `crop` is the side of a square, or height and width, in pixels.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        *,
        crop: int | tuple[int, int] | None = None,
        flip: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} is not a multiple of the {world_size} processes: change either")
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._crop, self._flip = (crop, crop) if isinstance(crop, int) else crop, flip
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self._order = lru_cache(maxsize=2)(self._draw_order)  # a batch can straddle two epochs

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._split))

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of step 0, 1, ..."""
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)[self._mine]
        count = len(self._split)
        indices = [int(self._order(position // count)[position % count]) for position in positions]
        # drawn for the global batch, then sliced: a picture's crop does not depend on the number of processes
        draws = np.random.default_rng([self._seed, 1, step]).random((self._batch_size, 3))[self._mine]
        return self._pictures(indices, draws), self._split.labels[indices]

    def _pictures(self, indices: list[int], draws: NDArray[np.float64]) -> Tensor:
        images = self._split.images
        if isinstance(images, Tensor) and self._crop is None:
            pictures = images[indices]
        else:
            cut = [self._cut(images[index], *draw[:2]) for index, draw in zip(indices, draws, strict=True)]
            pictures = torch.stack(cut)
        if not self._flip:
            return pictures
        flipped = torch.from_numpy(draws[:, 2] < 0.5)[:, None, None, None]
        return torch.where(flipped, pictures.flip(-1), pictures)

    def _cut(self, picture: Tensor, y: float, x: float) -> Tensor:
        """A crop whose corner is uniform over all places where it fits; `y` and `x` are uniform in [0, 1)."""
        if self._crop is None:
            return picture
        height, width = self._crop
        top = int(y * (picture.shape[1] - height + 1))
        left = int(x * (picture.shape[2] - width + 1))
        return picture[:, top : top + height, left : left + width]
