"""Pictures for training: from a name, an IDX folder, a `.npz` file or a folder of picture files.

In: the `data` section of a config. Out: a `DataSet` of uint8 pictures with fixed splits, and `Stream`, which
turns a split into training batches.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from training.config import DataConfig
from training.data.arrays import CIFAR_ARCHIVE, IDX_PARTS, find_idx, read_cifar10, read_idx_folder, read_npz
from training.data.dataset import (
    DataError,
    DataSet,
    Ragged,
    Source,
    Split,
    TooFewError,
    digest_of,
    require_one_size,
    split_source,
    tiles,
)
from training.data.folder import read_folder, would_read
from training.data.named import NAMED, read_named
from training.data.stream import Batch, Stream, to_unit

__all__ = [
    "Batch",
    "DataError",
    "DataSet",
    "Ragged",
    "Split",
    "Stream",
    "licence_of",
    "load_data",
    "load_to_measure",
    "tiles",
    "to_unit",
    "would_read_run",
]

logger = logging.getLogger(__name__)

BRING_LARGER = "bring larger pictures"  # where the crop is a finished run's


def load_data(config: DataConfig, *, begun: bool = False) -> DataSet:
    """Read, split and check the data set that `config` names. `begun`: for a run whose settings cannot change any more.

    Raises:
        DataError: nothing usable there; the message says which file or setting to change.
    """
    if not begun:
        _require_settings_used(config)
    data = _split(config, _read(config))
    _tell_of_unseen_labels(data.train, data.label_names)
    return data


def load_to_measure(config: DataConfig, digest: str) -> DataSet:
    """The pictures to measure a model on that was trained on the data set of this `digest`.

    Of the same data they are its test split, as `load_data` makes it. Of other data no picture was trained on: all of
    them are the test split, where it has none of its own; where it has one, it needs nothing to train on.

    Raises:
        DataError: nothing usable there.
    """
    source = _read(config)
    try:
        data = _split(config, source, BRING_LARGER)
        if source.test is not None or data.digest == digest:
            return data
    except DataError as error:
        if source.test is None and not isinstance(error, TooFewError):  # to train on
            raise
    return _whole(config, source)


def _split(config: DataConfig, source: Source, too_small: str = "choose a smaller crop") -> DataSet:
    train, validation, test = split_source(source, config.validation_fraction, config.test_fraction)
    if config.crop is None:
        train, validation, test = (require_one_size(split) for split in (train, validation, test))
    else:
        for split in (train, test):  # the validation pictures are some of the training pictures
            _require_room_for(split, config.crop, too_small)
        validation, test = tiles(validation, config.crop), tiles(test, config.crop)
    for name, split in (("validation", validation), ("test", test)):
        _require_one_shape(train, split, name, cropped=config.crop is not None)
    return _data_set(source, train, validation, test)


def _whole(config: DataConfig, source: Source) -> DataSet:
    nothing, test = source.train.select([]), source.train if source.test is None else source.test
    if config.crop is None:
        test = require_one_size(test)
    else:
        _require_room_for(test, config.crop, BRING_LARGER)
        test = tiles(test, config.crop)
    return _data_set(source, nothing, nothing, test)


def _data_set(source: Source, train: Split, validation: Split, test: Split) -> DataSet:
    assert isinstance(test.images, Tensor)
    channels, height, width = (int(size) for size in test.images.shape[1:])
    digest = digest_of((train, validation, test))
    return DataSet(train, validation, test, source.label_names, source.skipped, (channels, height, width), digest)


def would_read_run(config: DataConfig, folder: Path) -> bool:
    """Whether the pictures that a run writes into `folder` would be some of its own data at the next look."""
    source = _place_of(config)
    return source.is_dir() and not _holds_arrays(source) and would_read(source, folder)


def licence_of(config: DataConfig) -> str:
    """`data.licence`, or the licence that a named data set is known to have; not what lies here under that name."""
    if config.licence is not None:
        return config.licence
    named = config.source in NAMED and not Path(config.source).exists()  # as `_read_source` reads it
    return NAMED[config.source].licence if named else "unknown: set data.licence in the config"


def _read(config: DataConfig) -> Source:
    source = _read_source(config)
    for problem in source.skipped:
        logger.warning("skipped %s", problem)
    if source.skipped:
        logger.warning("pictures skipped in all: %d", len(source.skipped))
    return source


def _place_of(config: DataConfig) -> Path:
    if not config.source:  # which would be the current folder
        raise DataError(f"data.source, or --data, is empty: name a folder, a file or one of {', '.join(NAMED)}")
    return Path(config.source)


def _require_settings_used(config: DataConfig) -> None:
    """Of arrays the two would be ignored without a word, and so would be a shorter side below the crop."""
    path = _place_of(config)
    files = path.is_dir() and not _holds_arrays(path)
    if not files and (config.grey or config.shorter_side is not None):
        raise DataError("data.grey and data.shorter_side are for picture files; convert the arrays")
    if config.shorter_side is not None and config.shorter_side < (config.crop or 1):
        raise DataError(
            f"data.shorter_side {config.shorter_side} is below data.crop {config.crop}, to which pictures would be "
            "scaled: make it data.crop at least, or leave it out"
        )


def _holds_arrays(path: Path) -> bool:
    return (path / CIFAR_ARCHIVE).is_file() or any(find_idx(path, part) for part in IDX_PARTS)


def _read_source(config: DataConfig) -> Source:
    path = _place_of(config)
    if not path.exists():
        if config.source not in NAMED:
            raise DataError(
                f"data.source {config.source!r} is no path here and none of {', '.join(NAMED)}: correct it, or say "
                "with --data where the pictures are"
            )
        return read_named(config.source, Path(config.root))
    if path.is_file():
        return read_npz(path)
    if (path / CIFAR_ARCHIVE).is_file():
        return read_cifar10(path / CIFAR_ARCHIVE)
    if _holds_arrays(path):
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


def _require_room_for(split: Split, crop: int, too_small: str) -> None:
    if isinstance(split.images, Tensor) and min(split.images.shape[2:]) < crop:
        height, width = split.images.shape[2:]
        raise DataError(f"data.crop is {crop}, some pictures are {height}x{width}: {too_small}")


def _require_one_shape(train: Split, other: Split, name: str, *, cropped: bool) -> None:
    """`other` is the split of that name. Crops have one size, whatever they were cut from."""
    if not (isinstance(train.images, Tensor) and isinstance(other.images, Tensor)):
        return
    expected, found = tuple(train.images.shape[1:]), tuple(other.images.shape[1:])  # channels, height, width
    if found[0] != expected[0]:
        raise DataError(f"training pictures have {expected[0]} channels, {name} pictures {found[0]}: make them alike")
    if found != expected and not cropped:
        raise DataError(
            f"training pictures are {expected} (channels, height, width), {name} pictures {found}: make them alike; "
            "with data.crop the sizes may differ"
        )
