"""A folder of picture files, of any size, with labels from its sub-folders.

In: a folder; with `train` and `test` sub-folders these are the splits, and what lies below them is the data. Out: a
`Source` of ragged uint8 pictures, decoded as the service decodes them (`service.pixels`). A file that cannot be
decoded, or is animated, is skipped and listed, never raised.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from service.pixels import is_animated, to_pixels
from training.data.dataset import DataError, Ragged, Source, Split, ranked, test_count_of

logger = logging.getLogger(__name__)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # all that Pillow raises on bad files


def read_folder(folder: Path, *, grey: bool, smallest_side: int, shorter_side: int | None, memory_mib: int) -> Source:
    """Decode every picture once, which finds the corrupt ones, and keep up to `memory_mib` of them decoded."""
    parts = split_folders(folder)
    decode = partial(decode_picture, grey=grey, smallest_side=smallest_side, shorter_side=shorter_side)
    files = [picture_files(part) for part in parts]
    if not files[0]:
        raise DataError(f"{parts[0]} holds no {', '.join(FORMATS)} files: put pictures there or correct data.source")
    label_names = sub_folders(parts[0], files[0])
    _tell_of_labels(parts[0], files[0], label_names)
    budget = _Budget(memory_mib * 2**20)
    skipped: list[str] = []
    splits, names = [], []
    for part, paths in zip(parts, files, strict=True):
        kept, items, at_edge = _decode_all(paths, decode, budget, skipped, smallest_side)
        if not kept:
            raise DataError(f"none of the {len(paths)} pictures in {part} can be decoded; the first: {skipped[0]}")
        if at_edge and smallest_side > 1:
            logger.warning("%d pictures of %s are no larger than data.crop; smaller ones are enlarged", at_edge, part)
        splits.append(Split(Ragged(items, decode), _labels(part, kept, label_names)))
        names.append([path.relative_to(part).as_posix() for path in kept])
    return Source(splits[0], names[0], splits[1] if len(splits) > 1 else None, label_names, tuple(skipped))


def split_files(folder: Path, test_fraction: float) -> tuple[list[Path], list[Path]]:
    """The files of training and validation, and those of the test split, of a folder that training has read.

    Raises:
        DataError: it holds no pictures.
    """
    parts = split_folders(folder)
    decode = partial(decode_picture, grey=False, smallest_side=1, shorter_side=None)
    kept = [_decode_all(picture_files(part), decode, _Budget(0), skipped=[], side=1)[0] for part in parts]
    if not all(kept):
        raise DataError(f"{folder} holds no pictures that can be decoded: put some there")
    if len(kept) > 1:
        return kept[0], kept[1]
    order = ranked([path.relative_to(parts[0]).as_posix() for path in kept[0]])
    count = test_count_of(len(order), test_fraction)
    others, test = ([kept[0][index] for index in sorted(part)] for part in (order[count:], order[:count]))
    return others, test


def split_folders(folder: Path) -> list[Path]:
    """`train` and `test` below it, `train` where nothing lies beside it, else the folder: `train` is a label then."""
    train, test = folder / "train", folder / "test"
    if train.is_dir() and test.is_dir():
        return [train, test]
    alone = train.is_dir() and all(path.is_relative_to(train) for path in picture_files(folder))
    return [train] if alone else [folder]


def picture_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())


def _tell_of_labels(folder: Path, paths: Sequence[Path], label_names: tuple[str, ...]) -> None:
    """Without a word, one stray picture would take all labels away."""
    loose = [path for path in paths if path.parent == folder]
    if label_names:
        logger.info("labels: %s", ", ".join(label_names))
    elif 0 < len(loose) < len(paths):
        logger.warning("no labels: %s and %d more lie beside the sub-folders", loose[0], len(loose) - 1)


def sub_folders(folder: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """The label names: the first-level sub-folders, where every picture lies in one and there are at least two."""
    parts = [path.relative_to(folder).parts for path in paths]
    names = sorted({part[0] for part in parts if len(part) > 1})
    return tuple(names) if len(names) > 1 and all(len(part) > 1 for part in parts) else ()


def decode_picture(path: Path, *, grey: bool, smallest_side: int, shorter_side: int | None) -> Tensor:
    """One picture as (C, H, W) uint8, upright, scaled to `shorter_side` and never smaller than `smallest_side`."""
    with Image.open(path, formats=tuple(set(FORMATS.values()))) as opened:
        if is_animated(opened):  # the service refuses it
            raise ValueError("animated: save one frame of it as a picture")
        picture = to_pixels(opened, 1 if grey else 3)
    side = max(shorter_side or min(picture.size), smallest_side)
    if side != min(picture.size):
        scale = side / min(picture.size)
        size = (max(side, round(picture.width * scale)), max(side, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pixels = np.array(picture, dtype=np.uint8)
    channels_last = pixels if pixels.ndim == 3 else pixels[..., None]
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(2, 0, 1)))


class _Budget:
    def __init__(self, bytes_left: int) -> None:
        self.bytes_left = bytes_left

    def take(self, size: int) -> bool:
        fits = size <= self.bytes_left
        self.bytes_left -= size if fits else 0
        return fits


def _decode_all(
    paths: Sequence[Path], decode: partial[Tensor], budget: _Budget, skipped: list[str], side: int
) -> tuple[list[Path], list[Tensor | Path], int]:
    """The files that can be decoded, the pictures or, beyond the budget, their files, and how many have just `side`
    pixels on their shorter side."""

    def attempt(path: Path) -> Tensor | str:
        try:
            return decode(path)
        except UNREADABLE as error:
            return f"{path}: {error}"

    at_side = 0
    kept: list[Path] = []
    items: list[Tensor | Path] = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        for path, result in zip(paths, _in_batches(pool, attempt, paths), strict=True):
            if isinstance(result, str):
                skipped.append(result)
                continue
            kept.append(path)
            at_side += min(result.shape[1:]) == side
            items.append(result if budget.take(result.nbytes) else path)
    return kept, items, at_side


def _in_batches(pool: ThreadPoolExecutor, attempt: object, paths: Sequence[Path]) -> Iterator[Tensor | str]:
    """`pool.map`, 64 files at a time: it would otherwise hold every decoded picture at once."""
    for start in range(0, len(paths), 64):
        yield from pool.map(attempt, paths[start : start + 64])  # type: ignore[arg-type]


def _labels(folder: Path, paths: Sequence[Path], label_names: tuple[str, ...]) -> Tensor:
    if not label_names:
        return torch.zeros(len(paths), dtype=torch.int64)
    first_parts = [path.relative_to(folder).parts[0] for path in paths]
    unknown = sorted(set(first_parts) - set(label_names))
    if unknown:
        raise DataError(f"{folder} has the label {unknown[0]!r}, which the training pictures lack")
    return torch.tensor([label_names.index(part) for part in first_parts], dtype=torch.int64)
