"""Data sets known by name: where their files lie, their checksums, and how to fetch them.

In: a name (mnist, fashion_mnist, cifar10) and the folder that holds data sets. Out: its pictures, read from checked
files of the folder `root/name`, downloaded where they are missing, or a `DataError` that says which file to put where.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from training.data.arrays import CIFAR_ARCHIVE, IDX_PARTS, read_bytes, read_cifar10, read_idx
from training.data.dataset import DataError, Source

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class File:
    name: str
    md5: str
    of_content: bool = False  # the MD5 is of the decompressed content, which does not depend on who compressed it


@dataclass(frozen=True)
class Named:
    mirrors: tuple[str, ...]  # folders that hold the files, tried in order
    files: tuple[File, ...]
    licence: str
    label_names: tuple[str, ...] = ()  # empty: as the reader names them


def _idx_files(*md5s: str, of_content: bool) -> tuple[File, ...]:
    return tuple(File(f"{part}.gz", md5, of_content) for part, md5 in zip(IDX_PARTS, md5s, strict=True))


NAMED = {
    "mnist": Named(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        _idx_files(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
            of_content=True,
        ),
        "MNIST, Yann LeCun and Corinna Cortes, CC BY-SA 3.0",
    ),
    "fashion_mnist": Named(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        _idx_files(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
            of_content=False,
        ),
        "Fashion-MNIST, Zalando SE, MIT",
        ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "cifar10": Named(
        ("https://www.cs.toronto.edu/~kriz/",),
        (File(CIFAR_ARCHIVE, "c32a1d4ab5d03f1284b67883e8d87530"),),
        "CIFAR-10, Alex Krizhevsky, no licence stated",
    ),
}


def read_named(name: str, root: Path) -> Source:
    """A named data set, from the very files that were checked: others beside them are not looked at."""
    named = NAMED[name]
    paths = [_obtain(named, file, root / name) for file in named.files]
    return read_cifar10(*paths) if paths[0].name == CIFAR_ARCHIVE else read_idx(paths, named.label_names)


def _obtain(named: Named, file: File, folder: Path) -> Path:
    """One file, present and checked. A raw one counts where the checksum is of the content, and is checked as well."""
    path = folder / file.name
    raw = path.with_suffix("")
    present = [one for one in (path, raw) if one.exists() and (one == path or file.of_content)]
    for one in present:
        if _md5(one, file) != file.md5:
            raise DataError(f"{one} has another MD5 than {file.md5}: delete it, it will be fetched again")
    if not present:
        _download(named, file, path)
    return present[0] if present else path


def _md5(path: Path, file: File) -> str:
    content = read_bytes(path) if file.of_content else path.read_bytes()
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _download(named: Named, file: File, path: Path) -> None:
    """Fetch from the first mirror whose file has the right checksum; `path` appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    problems = []
    for mirror in named.mirrors:
        try:
            with urllib.request.urlopen(mirror + file.name, timeout=TIMEOUT_S) as answer:  # noqa: S310 - our own table
                partial.write_bytes(answer.read())
            if _md5(partial, file) == file.md5:
                partial.replace(path)
                return
            problems.append(f"{mirror}{file.name}: wrong checksum")
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, DataError) as error:
            problems.append(f"{mirror}{file.name}: {error}")
        finally:
            partial.unlink(missing_ok=True)
    raise DataError(f"cannot download {file.name} ({'; '.join(problems)}). Put the file at {path} yourself")
