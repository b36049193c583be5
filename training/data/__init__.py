"""Pictures for training: from a name, an IDX folder, a `.npz` file or a folder of picture files.

In: the `data` section of a config. Out: a `DataSet` of uint8 pictures in memory, with fixed splits, and `Stream`, which
turns a split into training batches.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from training.data.arrays import CIFAR_ARCHIVE, IDX_PARTS, find_idx, read_cifar10, read_idx_folder, read_npz
from training.data.dataset import (
    DataError,
    DataSet,
    Ragged,
    Source,
    Split,
    digest_of,
    require_one_size,
    split_source,
    tiles,
)
from training.data.folder import read_folder
from training.data.named import NAMED, read_named
from training.data.stream import Batch, Stream

if TYPE_CHECKING:
    from training.config import DataConfig

__all__ = ["Batch", "DataError", "DataSet", "Ragged", "Split", "Stream", "licence_of", "load_data", "tiles"]

logger = logging.getLogger(__name__)


def load_data(config: DataConfig) -> DataSet:
    """Read, split and check the data set that `config` names.

    Raises:
        DataError: nothing usable there; the message says which file or setting to change.
    """
    source = _read(config)
    for problem in source.skipped:
        logger.warning("skipped %s", problem)
    if source.skipped:
        logger.warning("skipped %d pictures in all", len(source.skipped))
    train, validation, test = split_source(source, config.validation_fraction, config.test_fraction)
    _tell_of_unseen_labels(train, source.label_names)
    if config.crop is None:
        train, validation, test = (require_one_size(split) for split in (train, validation, test))
    else:
        for split in (train, test):  # the validation pictures are some of the training pictures
            _require_room_for(split, config.crop)
        validation, test = tiles(validation, config.crop), tiles(test, config.crop)
    _require_one_shape(train, test, cropped=config.crop is not None)
    assert isinstance(test.images, Tensor)
    channels, height, width = (int(size) for size in test.images.shape[1:])
    digest = digest_of((train, validation, test))
    return DataSet(train, validation, test, source.label_names, source.skipped, (channels, height, width), digest)


def licence_of(config: DataConfig) -> str:
    """`data.licence`, or the licence that a named data set is known to have."""
    if config.licence is not None:
        return config.licence
    return NAMED[config.source].licence if config.source in NAMED else "unknown: set data.licence in the config"


def _read(config: DataConfig) -> Source:
    path = Path(config.source)
    if not path.exists():
        if config.source not in NAMED:
            raise DataError(f"data.source {config.source!r} is no path here and none of {', '.join(NAMED)}")
        return read_named(config.source, Path(config.root))
    if path.is_file():
        return read_npz(path)
    if (path / CIFAR_ARCHIVE).is_file():
        return read_cifar10(path / CIFAR_ARCHIVE)
    if any(find_idx(path, part) for part in IDX_PARTS):
        return read_idx_folder(path)
    return read_folder(
        path,
        grey=config.grey,
        smallest_side=config.crop or 1,
        shorter_side=config.shorter_side,
        memory_mib=config.memory_mib,
    )


def _tell_of_unseen_labels(train: Split, label_names: tuple[str, ...]) -> None:
    """They keep their numbers, which belong to the data; but what the model answers to them is noise."""
    seen = set(train.labels.tolist())
    unseen = [name for index, name in enumerate(label_names) if index not in seen]
    if unseen:
        logger.warning("no training picture has the labels %s: the model will not know them", ", ".join(unseen))


def _require_room_for(split: Split, crop: int) -> None:
    if isinstance(split.images, Tensor) and min(split.images.shape[2:]) < crop:
        height, width = split.images.shape[2:]
        raise DataError(f"data.crop is {crop}, some pictures are {height}x{width}: choose a smaller crop")


def _require_one_shape(train: Split, test: Split, *, cropped: bool) -> None:
    """Crops have one size, whatever they were cut from."""
    if not (isinstance(train.images, Tensor) and isinstance(test.images, Tensor)):
        return
    axes = slice(1, 2 if cropped else 4)  # channels, height, width
    expected, found = tuple(train.images.shape[axes]), tuple(test.images.shape[axes])
    if found != expected:
        raise DataError(
            f"training pictures are {expected} (channels, height, width), test pictures {found}: make them alike; with "
            "data.crop the sizes may differ"
        )
