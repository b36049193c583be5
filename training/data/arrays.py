"""Readers of pictures that are stored as arrays: IDX folders, `.npz` files and the CIFAR-10 binary archive.

In: a path. Out: a `Source` of uint8 pictures (N, C, H, W) and int64 labels. Nothing here unpickles: `.npz` files are
read with `allow_pickle=False`, and CIFAR-10 in its binary form, not in the pickled one.
"""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import DataError, Source, Split
from training.data.folder import is_picture

IDX_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_RECORD = 1 + 3 * 32 * 32  # one label byte, then the red, green and blue planes
MOST_LABELS_WITH_GAPS = 256  # as many as a byte has; of more, half of the numbers must occur
NPZ_KEYS = (("x_train", "y_train", "x_test", "y_test"), ("images", "labels", "test_images", "test_labels"))
FROM_UNIT = "; floats in [0,1] become uint8 by (255 * images).round().astype(np.uint8)"
MOST_LISTED = 10  # names in a message
MOST_AXES = 4  # of an IDX file: N, H, W and channels
# What numpy and zipfile raise on a file that is no .npz, or on a damaged one; the fuzz test keeps this list honest.
# RuntimeError: an encrypted member; NotImplementedError, one of its kind: an unknown compression.
_UNREADABLE = (
    *(EOFError, IndexError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(lzma.LZMAError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read_bytes(path: Path) -> bytes:
    """The file's content, decompressed where it is gzip."""
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}): delete it and fetch it again") from error


def find_idx(folder: Path, part: str) -> Path | None:
    """The file of one IDX part, raw or gzip, under the original name or the one with a dot before `idx`."""
    names = (part, f"{part}.gz", part.replace("-idx", ".idx"), part.replace("-idx", ".idx") + ".gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def parse_idx(content: bytes, path: Path) -> NDArray[np.uint8]:
    """An IDX array of unsigned bytes: two zero bytes, type 8, the number of axes, each axis as big-endian uint32."""
    axes = content[3] if len(content) > 3 else 0
    if content[:3] != b"\x00\x00\x08" or not 1 <= axes <= MOST_AXES or len(content) < 4 + 4 * axes:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes in 1 to {MOST_AXES} axes: put one there, raw or .gz"
        )
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    expected, found = math.prod(shape), len(content) - 4 - 4 * axes  # Python's integers do not overflow
    if found != expected:
        raise DataError(
            f"{path} is damaged: its header says {shape}, {expected} bytes, but {found} bytes follow: fetch it again"
        )
    if not found:
        raise DataError(f"{path} is empty: its header says {shape}: fetch it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_idx_folder(folder: Path) -> Source:
    """MNIST's four files, wherever `find_idx` finds them. The labels are named by their numbers."""
    found = {part: find_idx(folder, part) for part in IDX_PARTS}
    missing = [part for part, path in found.items() if path is None]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)} (raw or .gz): put the files there")
    return read_idx([path for path in found.values() if path], ())


def read_idx(paths: Sequence[Path], label_names: tuple[str, ...]) -> Source:
    """Four files in the order of `IDX_PARTS`. Without `label_names` the labels are named by their numbers."""
    train_x, train_y, test_x, test_y = (parse_idx(read_bytes(path), path) for path in paths)
    return _source(paths[0].parent, (train_x, train_y), (test_x, test_y), label_names)


def read_npz(path: Path) -> Source:
    """Keras's names (x_train, y_train, x_test, y_test) or images, labels, test_images, test_labels; all but the first
    of each are optional, but labels belong to both splits or to none.

    Raises:
        DataError: it cannot be read, has no pictures, or has an array that would be ignored.
    """
    try:
        with path.open("rb") as file:  # numpy leaves a file open that it cannot read
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is one array: save a .npz with images and, where there are any, labels")
            images, labels, test_images, test_labels = _npz_keys(path, stored.files)
            arrays = {key: _array(stored, key) for key in stored.files}
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a .npz of plain arrays: {_reason(path, error)}") from error
    test = (arrays[test_images], arrays.get(test_labels)) if test_images in arrays else None
    return _source(path, (arrays[images], arrays.get(labels)), test, ())


def _npz_keys(path: Path, found: Sequence[str]) -> tuple[str, str, str, str]:
    """The one of `NPZ_KEYS` that the file uses, all of whose arrays are read."""
    keys = next((keys for keys in NPZ_KEYS if keys[0] in found), None)
    if keys is None:
        zipped = any(is_picture(Path(name)) for name in found)
        remedy = "unpack it and name the folder" if zipped else "name the pictures x_train or images"
        raise DataError(f"{path} has {_listed(found) or 'no arrays'}: {remedy}")
    read = keys if keys[2] in found else keys[:2]  # labels of test pictures that are not there belong to nothing
    ignored = [key for key in found if key not in read]
    if ignored:
        understood = " or ".join(", ".join(keys) for keys in NPZ_KEYS)
        raise DataError(
            f"{path}: {_listed(ignored)} would be ignored beside {keys[0]}: remove what is not of one set of names, "
            f"{understood}; test labels need test pictures"
        )
    return keys


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _array(stored: np.lib.npyio.NpzFile, key: str) -> NDArray[np.generic]:
    array = stored[key]
    if not isinstance(array, np.ndarray):  # numpy gives the bytes of a file of another kind
        raise ValueError(f"{key} is no array")
    return array


def _reason(path: Path, error: Exception) -> str:
    """In one line, with what to do. Where numpy says more, it is how to run the code that may be in the file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: correct its permissions or data.source"
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return "data.source is a folder of picture files, or a .npz"
    too_large = isinstance(error, MemoryError) and type(error) is not MemoryError  # numpy's; a deep header has Python's
    remedy = "with fewer pictures" if too_large else "with np.savez"
    return f"{str(error).partition(chr(10))[0] or type(error).__name__}: save it again {remedy}"


def read_cifar10(path: Path) -> Source:
    """The binary archive as its authors publish it, read without unpacking."""
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
            batches = [_cifar_records(archive, members, name, path) for name in names]
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it and fetch it again") from error
    train = np.concatenate(batches[:-1])
    return _source(path, _cifar_arrays(train), _cifar_arrays(batches[-1]), CIFAR_LABELS)


def _cifar_records(
    archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, path: Path
) -> NDArray[np.uint8]:
    stream = archive.extractfile(members[name]) if name in members else None
    content = stream.read() if stream is not None else b""
    if not content or len(content) % CIFAR_RECORD:
        raise DataError(f"{path}: {name} is missing or not a multiple of {CIFAR_RECORD} bytes: fetch the archive again")
    return np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)


def _cifar_arrays(records: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3), as other arrays come
    return images, records[:, 0]


_Arrays = tuple[NDArray[np.generic], NDArray[np.generic] | None]


def _source(path: Path, train: _Arrays, test: _Arrays | None, label_names: tuple[str, ...]) -> Source:
    train_split = _split(path, *train)
    test_split = _split(path, *test) if test is not None else None
    labelled = train[1] is not None
    if test is not None and (test[1] is not None) != labelled:
        raise DataError(f"{path} has labels for one of training and test pictures only: give them to both or to none")
    if train[1] is not None and not label_names:
        label_names = _numbers(path, train[1])
    for split in (train_split, *([test_split] if test_split else [])):
        if labelled and (int(split.labels.min()) < 0 or int(split.labels.max()) >= len(label_names)):
            raise DataError(f"{path}: labels must lie in 0..{len(label_names) - 1}: correct the others")
    names = [str(index) for index in range(len(train_split))]
    return Source(train_split, names, test_split, label_names if labelled else ())


def _numbers(path: Path, labels: NDArray[np.generic]) -> tuple[str, ...]:
    """The names of labels that have none: their numbers, from 0 to the largest. Each costs the prior weights."""
    largest, different = int(labels.max()), len(np.unique(labels))
    if largest >= max(MOST_LABELS_WITH_GAPS, 2 * different):
        raise DataError(
            f"{path}: {different} different labels reach up to {largest}, but they are numbered 0..n-1: renumber those "
            "of training and test together with np.unique(labels, return_inverse=True)"
        )
    return tuple(str(number) for number in range(max(largest, 0) + 1))


def _split(path: Path, images: NDArray[np.generic], labels: NDArray[np.generic] | None) -> Split:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise DataError(
            f"{path}: pictures are {images.dtype} {images.shape}: save them as uint8 (N,H,W) or (N,H,W,1 or 3)"
            f"{FROM_UNIT if np.issubdtype(images.dtype, np.floating) else ''}"
        )
    if images.size == 0:
        raise DataError(f"{path} has no pictures: an array of them is {images.shape}: save it again with some")
    channels_last = images if images.ndim == 4 else images[..., None]
    pixels = torch.from_numpy(channels_last.transpose(0, 3, 1, 2).astype(np.uint8, order="C"))  # (N, C, H, W) uint8
    if labels is None:
        return Split(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    flat = labels.reshape(-1)
    if len(flat) != len(pixels) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {len(pixels)} pictures, labels are {labels.dtype} {labels.shape}: give each picture one integer"
        )
    return Split(pixels, torch.from_numpy(flat.astype(np.int64)))
