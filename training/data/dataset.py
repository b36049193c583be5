"""What every reader returns: splits of uint8 pictures with labels, and the fixed rules that make the splits.

In: pictures as one tensor (N, C, H, W) or as `Ragged` pictures of different sizes, labels, and a name for each picture.
Out: `DataSet`, whose splits depend on nothing but the names of the pictures and the fractions of the configuration, or
on the test split that the source has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.errors import TrainingError


class DataError(TrainingError):
    """The data cannot be used; the message says which file or setting to change."""


class TooFewError(DataError):
    """There are fewer pictures than splits."""


class Ragged:
    """Pictures of different sizes. Each is (C, H_i, W_i) uint8; one beyond the memory limit is decoded at each use."""

    def __init__(self, items: Sequence[Tensor | Path], decode: Callable[[Path], Tensor]) -> None:
        self._items = items
        self._decode = decode

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        item = self._items[index]
        return item if isinstance(item, Tensor) else self._decode(item)

    def select(self, indices: Sequence[int]) -> Ragged:
        return Ragged([self._items[index] for index in indices], self._decode)


@dataclass(frozen=True)
class Split:
    """Pictures with a label each."""

    images: Tensor | Ragged  # (N, C, H, W) uint8, or N pictures of different sizes
    labels: Tensor  # (N,) int64 in [0, label count); all zero where the data has no labels

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int]) -> Split:
        """The pictures of these indices, in their order."""
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)
        images = self.images[chosen] if isinstance(self.images, Tensor) else self.images.select(indices)
        return Split(images, self.labels[chosen])


@dataclass(frozen=True)
class Source:
    """What a reader found, before splitting: `test` is None where the source has no test split of its own."""

    train: Split
    names: Sequence[str]  # of the training pictures: the split rule ranks them
    test: Split | None
    label_names: tuple[str, ...]  # empty: no labels
    skipped: tuple[str, ...] = ()  # "file: reason"


@dataclass(frozen=True)
class DataSet:
    """What a run is trained and measured on. Only `train` may be `Ragged`, where training sees crops."""

    train: Split
    validation: Split
    test: Split
    label_names: tuple[str, ...]
    skipped: tuple[str, ...]
    picture: tuple[int, int, int]  # C, H, W of one training example
    digest: str  # SHA-256 of the pixels and labels of all three splits

    def is_that_of(self, facts: Mapping[str, Any]) -> bool:
        """Whether a run that keeps these `facts` is of these pictures. Those of a reshaped array have the same digest;
        of an unfinished run of an earlier version nothing but that is known."""
        picture = list(self.picture)
        return bool(facts["digest"] == self.digest and facts.get("picture", picture) == picture)

    def require_multiple_of(self, factor: int) -> None:
        """Raises DataError where the sides of a picture, in pixels, are not multiples of `factor`."""
        _, height, width = self.picture
        if height % factor or width % factor:
            raise DataError(
                f"pictures are {height}x{width}, the encoder downsamples by {factor}: both sides must be multiples of "
                f"{factor}. Set data.crop to such a size, or choose another autoencoder.downsampling"
            )


def ranked(names: Sequence[str]) -> list[int]:
    """Indices in the order of the SHA-256 of each name: a shuffle that no seed, platform or file order can change."""
    keys = [hashlib.sha256(os.fsencode(name)).digest() for name in names]  # as on the disk: not all names are UTF-8
    return sorted(range(len(names)), key=keys.__getitem__)


def test_count_of(count: int, test_fraction: float) -> int:
    """How many of `count` pictures, the first in `ranked` order, are the test split: at least one."""
    return max(1, round(test_fraction * count))


def split_source(source: Source, validation_fraction: float, test_fraction: float) -> tuple[Split, Split, Split]:
    """Train, validation and test; the held-out pictures come first in `ranked` order, at least one for each split."""
    order = ranked(source.names)
    test_count = 0 if source.test is not None else test_count_of(len(order), test_fraction)
    validation_count = max(1, round(validation_fraction * len(order)))
    held_out = test_count + validation_count
    if held_out >= len(order):
        parts, fractions = ["training", "validation"], f"data.validation_fraction={validation_fraction}"
        if source.test is None:
            parts, fractions = [*parts, "test"], f"{fractions} and data.test_fraction={test_fraction}"
        why, remedy = f"{held_out} are held out, by {fractions}, and one at least of each", ", or lower these"
        if len(order) < len(parts):  # of which no fraction leaves one for training
            why, remedy = f"{len(parts)} are the fewest, one each for {', '.join(parts)}", ""
        raise TooFewError(f"too few pictures, {len(order)}: {why}. Add pictures to data.source{remedy}")
    test = source.test if source.test is not None else source.train.select(sorted(order[:test_count]))
    validation = source.train.select(sorted(order[test_count:held_out]))
    return source.train.select(sorted(order[held_out:])), validation, test


def tiles(split: Split, size: int) -> Split:
    """All non-overlapping size x size tiles of every picture, centred: what a model trained on crops is measured on."""
    cut: list[Tensor] = []
    labels: list[Tensor] = []
    for index in range(len(split)):
        picture = split.images[index]  # (C, H, W)
        _, height, width = picture.shape
        top, left = height % size // 2, width % size // 2
        patches = picture[:, top:, left:].unfold(1, size, size).unfold(2, size, size)  # (C, rows, columns, size, size)
        found = patches.permute(1, 2, 0, 3, 4).flatten(0, 1)
        cut.append(found)
        labels.append(split.labels[index].expand(len(found)))
    return Split(torch.cat(cut).contiguous(), torch.cat(labels))


def require_one_size(split: Split) -> Split:
    """A split whose pictures are one tensor; refuses pictures of different sizes, which need `data.crop`."""
    if isinstance(split.images, Tensor):
        return split
    pictures = [split.images[index] for index in range(len(split))]
    sizes = sorted({(int(picture.shape[1]), int(picture.shape[2])) for picture in pictures})
    if len(sizes) > 1:
        crop = max(8, min(map(min, sizes)) // 8 * 8)
        raise DataError(
            f"pictures have {len(sizes)} sizes ({sizes[0]}, {sizes[-1]}, ...): bring them to one, or, for all but "
            f"compare, set data.crop={crop}, say"
        )
    return Split(torch.stack(pictures), split.labels)


def digest_of(splits: Sequence[Split]) -> str:
    """SHA-256 of the bytes of pixels and labels, not of their shapes."""
    sha = hashlib.sha256()
    for split in splits:
        images = [split.images] if isinstance(split.images, Tensor) else split.images
        for index in range(len(images)):
            sha.update(np.ascontiguousarray(images[index].numpy()).data)
        sha.update(split.labels.numpy().data)
    return sha.hexdigest()
