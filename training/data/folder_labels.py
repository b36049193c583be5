"""The labels of a folder of picture files: its first-level sub-folders, by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.data.dataset import DataError

logger = logging.getLogger(__name__)


def tell_of_labels(folder: Path, files: Sequence[Path], kept: Sequence[Path], label_names: Sequence[str]) -> None:
    """Without a word, one stray picture would take all labels away, and a folder without usable ones its own, so that
    those after it have other numbers."""
    loose = [path for path in kept if path.parent == folder]
    names, used = first_folders(folder, files), first_folders(folder, kept)
    if label_names:
        logger.info("labels: %s", ", ".join(label_names))
        _tell_of_numbers(label_names)
    elif 0 < len(loose) < len(kept):
        logger.warning("no labels: %s and %d more lie beside the sub-folders", loose[0], len(loose) - 1)
    elif len(names) > 1 and len(used) == 1:
        logger.warning("no labels: of %d sub-folders only %s has pictures that can be used", len(names), *used)
    elif len(used) == 1 and not loose:
        _tell_of_one_level_more(folder / next(iter(used)), kept)
    for name in sorted(names - used):
        logger.warning("%s is no label: none of its pictures can be used", folder / name)


def _tell_of_one_level_more(only: Path, kept: Sequence[Path]) -> None:
    """As a zip has it that was packed with its folder."""
    below = sorted(first_folders(only, kept))
    if len(below) > 1:
        logger.warning(
            "no labels: all pictures lie in %s; if its sub-folders, such as %s, are labels or a split, move them up",
            only,
            below[0],
        )


def _tell_of_numbers(label_names: Sequence[str]) -> None:
    """Of folders 0 to 11 the order is that of their names: 0, 1, 10, 11, 2, ..."""
    if not all(name.isdecimal() for name in label_names):
        return
    for label, (name, expected) in enumerate(zip(label_names, sorted(label_names, key=int), strict=True)):
        if name != expected:
            logger.warning("label %d is the folder %r: pad the names with zeros", label, name)
            return


def first_folders(folder: Path, paths: Sequence[Path]) -> set[str]:
    parts = [path.relative_to(folder).parts for path in paths]
    return {part[0] for part in parts if len(part) > 1}


def sub_folders(folder: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """The label names: the first-level sub-folders, where every picture lies in one and there are at least two.

    Raises:
        DataError: one is no UTF-8 or blank, so that no manifest could hold it.
    """
    names = sorted(first_folders(folder, paths))
    if len(names) < 2 or any(path.parent == folder for path in paths):
        return ()
    for name in names:
        if os.fsencode(name).decode(errors="replace") != name:
            raise DataError(f"the name of the folder {str(folder / name)!r}, a label, is not UTF-8: rename it")
        if not name.strip():
            raise DataError(f"the folder {str(folder / name)!r}, a label, has a blank name: rename it")
    return tuple(names)


def labels_of(folder: Path, paths: Sequence[Path], label_names: tuple[str, ...]) -> Tensor:
    """(N,) int64: the number of the label of each picture, 0 where there are none.

    Raises:
        DataError: a picture has no label, or one that is not among `label_names`.
    """
    if not label_names:
        return torch.zeros(len(paths), dtype=torch.int64)
    loose = next((path for path in paths if path.parent == folder), None)
    if loose is not None:
        raise DataError(f"{loose} has no label: move it into the sub-folder of its label, as in the training pictures")
    first_parts = [path.relative_to(folder).parts[0] for path in paths]
    unknown = sorted(set(first_parts) - set(label_names))
    if unknown:
        raise DataError(
            f"{folder} has the label {unknown[0]!r}, which the training pictures lack: add some, or remove it"
        )
    return torch.tensor([label_names.index(part) for part in first_parts], dtype=torch.int64)
