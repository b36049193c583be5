"""A folder of picture files, of any sizes, with labels from its sub-folders.

In: a folder; with `train` and `test` sub-folders these are the splits, and what lies below them is the data. Out: a
`Source` of ragged uint8 pictures, decoded as the service decodes them (`service.pictures.pixels`). A file that cannot
be decoded, is animated, too large for Pillow, or would be enlarged beyond use is skipped and listed, never raised; so
is a link to itself or to nothing.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from service.pictures.pixels import UNREADABLE, is_animated, to_pixels
from training.data.dataset import DataError, Ragged, Source, Split, ranked, test_count_of
from training.data.folder_labels import first_folders, labels_of, sub_folders, tell_of_labels

logger = logging.getLogger(__name__)

MOST_ENLARGED = 4  # times: of a larger picture than that, training would see little but the interpolation
SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")  # of folders, in any case
MOST_SUFFIXES = 10  # of files that are not read, in the log
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
_Decoded = tuple[Tensor, bool]  # a picture, and whether it was smaller than it had to be
_Decoder = Callable[[Path], _Decoded]


def read_folder(folder: Path, *, grey: bool, smallest_side: int, shorter_side: int | None, memory_mib: int) -> Source:
    """Decode every picture once, which finds the corrupt ones, and keep up to `memory_mib` of them decoded."""
    parts = split_folders(folder)
    _tell_of_parts(folder, parts)
    decode = partial(decode_picture, grey=grey, smallest_side=smallest_side, shorter_side=shorter_side)
    skipped: list[str] = []
    files = [_files_of(part, skipped) for part in parts]
    budget = _Budget(memory_mib * 2**20)
    splits: list[Split] = []
    names: list[list[str]] = []
    label_names: tuple[str, ...] = ()
    for part, (paths, others) in zip(parts, files, strict=True):
        before = len(skipped)
        kept, items, smaller = _decode_all(paths, decode, budget, skipped)
        if not kept:
            raise DataError(
                f"none of the {len(paths)} pictures in {part} can be decoded: put others there or correct data.source; "
                f"the first: {skipped[before]}"
            )
        if smaller:
            logger.warning("%d pictures of %s are smaller than data.crop, and are enlarged", smaller, part)
        if not splits:  # the training pictures; a folder of nothing but unreadable files is no label
            label_names = sub_folders(part, kept)
            tell_of_labels(part, [*paths, *others], kept, label_names)
        splits.append(Split(Ragged(items, partial(_decode_again, decode)), labels_of(part, kept, label_names)))
        names.append([path.relative_to(part).as_posix() for path in kept])
    return Source(splits[0], names[0], splits[1] if len(splits) > 1 else None, label_names, tuple(skipped))


def split_files(folder: Path, test_fraction: float, crop: int = 1) -> tuple[list[Path], list[Path]]:
    """The files of training and validation, and those of the test split, of a folder that training has read.

    `crop` is its `data.crop`, for which training skips what is much smaller.

    Raises:
        DataError: it holds no pictures.
    """
    parts = split_folders(folder)
    decode = partial(decode_picture, grey=False, smallest_side=crop, shorter_side=None)
    kept = [_decode_all(picture_files(part), decode, _Budget(0), skipped=[])[0] for part in parts]
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
    found = picture_files(folder)
    names = sorted(first_folders(folder, found))
    if len(names) > 1 and all(name.lower() in SPLIT_NAMES for name in names):
        raise DataError(
            f"{folder} has the folders {', '.join(names)}, which are no labels: name those of the split train and "
            "test, and move what is for validation into train, from which it is taken"
        )
    alone = train.is_dir() and all(path.is_relative_to(train) for path in found)
    return [train] if alone else [folder]


def would_read(source: Path, folder: Path) -> bool:
    """Whether picture files in `folder` would be among those of `source`."""
    source, folder = source.resolve(), folder.resolve()
    if not folder.is_relative_to(source) or any(map(_is_left_out, folder.relative_to(source).parts)):
        return False
    parts = split_folders(source)
    return len(parts) == 1 or any(folder.is_relative_to(part) for part in parts)


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _tell_of_parts(folder: Path, parts: Sequence[Path]) -> None:
    if len(parts) == 2:
        logger.info("training pictures are those of %s, test pictures those of %s", *parts)
        beside = [path for path in picture_files(folder) if not any(map(path.is_relative_to, parts))]
        if beside:
            logger.warning("not used: %s and %d more pictures beside train and test", beside[0], len(beside) - 1)


def _files_of(folder: Path, skipped: list[str]) -> tuple[list[Path], list[Path]]:
    """The picture files of one part of the data, and all others but hidden ones, whose number the log has."""
    files = sorted(_files_below(folder, (), skipped))
    pictures = [path for path in files if is_picture(path)]
    others = [path for path in files if not (is_picture(path) or _is_left_out(path.name))]
    if others:
        logger.warning("not read in %s: %s: save pictures as one of %s", folder, _counts(others), ", ".join(FORMATS))
    if not pictures:
        raise DataError(f"{folder} holds no {', '.join(FORMATS)} files: put pictures there or correct data.source")
    return pictures, others


def _counts(files: Sequence[Path]) -> str:
    """How many there are of each suffix, the most first."""
    numbers = Counter(path.suffix.lower() or "without a suffix" for path in files)
    found = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} {suffix}" for suffix, count in found[:MOST_SUFFIXES]]
    rest = sum(count for _, count in found[MOST_SUFFIXES:])
    return ", ".join([*listed, f"{rest} of other suffixes"] if rest else listed)


def is_picture(path: Path) -> bool:
    """Not what macOS writes beside each file on a disk of another system, which begins with `._` and has its suffix."""
    return path.suffix.lower() in FORMATS and not path.name.startswith("._")


def picture_files(folder: Path) -> list[Path]:
    """All below it, through links to folders too; not in hidden folders, nor in the one that macOS adds to a zip.

    Raises:
        DataError: a folder cannot be listed, or is a link to one that holds it.
    """
    return sorted(filter(is_picture, _files_below(folder, (), [])))


def _files_below(folder: Path, above: tuple[Path, ...], skipped: list[str]) -> Iterator[Path]:
    """Of any suffix, and the links of pictures that lead nowhere, so that they are told and count."""
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder} is a link to {real}, which holds it: remove the link")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}): correct its permissions or data.source"
        ) from error
    for entry in entries:
        path = folder / entry.name
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:  # a link to itself, or into a folder without permission
            skipped.append(f"{path}: {error.strerror}")
            continue
        if is_folder and not _is_left_out(entry.name):
            yield from _files_below(path, (*above, real), skipped)
        elif is_file or (is_picture(path) and _leads_nowhere(path)):
            yield path


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def decode_picture(path: Path, *, grey: bool, smallest_side: int, shorter_side: int | None) -> _Decoded:
    """One picture as (C, H, W) uint8, upright, scaled to `shorter_side` and never smaller than `smallest_side`; and
    whether it was smaller.

    Raises:
        one of UNREADABLE: it cannot be decoded; ValueError: it is animated, or would be enlarged more than 4 times.
    """
    with _opened(path) as opened:
        if is_animated(opened):  # the service refuses it
            raise ValueError("animated: save one frame of it as a picture")
        picture = to_pixels(opened, 1 if grey else 3)
    smaller = min(picture.size) < smallest_side
    side = max(shorter_side or min(picture.size), smallest_side)
    if side > MOST_ENLARGED * min(picture.size):
        given = f"{picture.width}x{picture.height}"
        raise ValueError(f"{given} would be enlarged more than {MOST_ENLARGED} times to have {side} pixels a side")
    if side != min(picture.size):
        scale = side / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pixels = np.array(picture, dtype=np.uint8)
    channels_last = pixels if pixels.ndim == 3 else pixels[..., None]
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(2, 0, 1))), smaller


def _opened(path: Path) -> Image.Image:
    """Of what is too large Pillow says that it "could be decompression bomb DOS attack"."""
    try:
        return Image.open(path, formats=tuple(set(FORMATS.values())))
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"it has more than {most} megapixels: save it smaller") from error


def _large_ones_too() -> warnings.catch_warnings[None]:
    """Pillow would print two lines of its own about a picture of half as many pixels as it refuses.

    Around all threads: what is ignored is so in the whole process."""
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def _decode_again(decode: _Decoder, path: Path) -> Tensor:
    """A picture that did not fit into memory."""
    try:
        with _large_ones_too():
            return decode(path)[0]
    except UNREADABLE as error:
        raise DataError(
            f"{path} could be read when the training began and cannot be read now ({error}): bring it back, then go on "
            "with --resume"
        ) from error


class _Budget:
    def __init__(self, bytes_left: int) -> None:
        self.bytes_left = bytes_left

    def take(self, size: int) -> bool:
        fits = size <= self.bytes_left
        self.bytes_left -= size if fits else 0
        return fits


def _decode_all(
    paths: Sequence[Path], decode: _Decoder, budget: _Budget, skipped: list[str]
) -> tuple[list[Path], list[Tensor | Path], int]:
    """The files that can be decoded, the pictures or, beyond the budget, their files, and how many were smaller than
    they had to be."""

    def attempt(path: Path) -> _Decoded | str:
        try:
            return decode(path)
        except UNREADABLE as error:
            return f"{path}: {'the link leads nowhere' if _leads_nowhere(path) else error}"

    count = 0
    kept: list[Path] = []
    items: list[Tensor | Path] = []
    with _large_ones_too(), ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        for path, result in zip(paths, _in_batches(pool, attempt, paths), strict=True):
            if isinstance(result, str):
                skipped.append(result)
                continue
            picture, smaller = result
            kept.append(path)
            count += smaller
            items.append(picture if budget.take(picture.nbytes) else path)
    return kept, items, count


def _in_batches(pool: ThreadPoolExecutor, attempt: object, paths: Sequence[Path]) -> Iterator[_Decoded | str]:
    """`pool.map`, 64 files at a time: it would otherwise hold every decoded picture at once."""
    for start in range(0, len(paths), 64):
        yield from pool.map(attempt, paths[start : start + 64])  # type: ignore[arg-type]
