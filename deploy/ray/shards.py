"""One shard of a folder job: a list of pictures in, containers and their index out. Nothing here knows of Ray.

OUT/shards/000042-0.vqc, 000042-1.vqc, ...: containers (docs/code-format.md), one for each size of picture, and
more where the codes of one size are too many for a reader.
OUT/shards/000042.json: which picture is where, and why others are nowhere. Encoding a shard again writes the same bytes
to the same names, so a worker that dies and is replaced neither loses nor doubles a picture.

Pixels are held for a few pictures at a time: what a shard keeps until its end are codes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from deploy.ray.plan import Job, PlanError, index_path, list_path, write_whole
from service import codec
from service.bundle import load_bundle
from service.errors import NotAPicture, PictureTooLarge, WrongPictureSize, utf8
from service.inference.prior_sessions import codec_model
from service.inference.sessions import session_maker
from service.inference.windows import run_in_windows
from service.pictures.images import Picture, open_to_fit, to_picture
from service.settings import Settings

RUN_PICTURES = 64  # pictures in one run of the encoder: what the service takes at most on CUDA
# Pixels that are open together. The encoders of models/ take up to 430 bytes for each while they run: 0.9 GB. A larger
# picture is a group of its own and runs in windows; 1,024 digits of models/mnist are one group.
GROUP_PIXELS = 1 << 21
OF_THE_NAME = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)  # of links that lead nowhere, on any disk
CONTAINER_CODES = codec.DEFAULT_LIMITS.max_codes
Codes = NDArray[Any]  # in the smallest type that holds a code, since a shard keeps all of its codes until its end


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Container(_Record):
    """`pictures` are in the order of the container's pictures, their names with escapes like `\\udce9` for bytes that
    are not UTF-8; `size` is (height, width) in pixels."""

    file: str
    size: tuple[int, int]
    pictures: tuple[str, ...]


class Refused(_Record):
    picture: str
    reason: str


class Shard(_Record):
    shard: int
    containers: tuple[Container, ...]
    refused: tuple[Refused, ...]
    bytes: int

    @property
    def encoded(self) -> int:
        return sum(len(container.pictures) for container in self.containers)


@dataclass(frozen=True)
class Opened:
    """A picture that was read, under the name that the index gives it."""

    name: str
    picture: Picture

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.height, self.picture.width


@dataclass(frozen=True)
class Encoded:
    """codes (h,w) of a picture of `size` (height, width)."""

    name: str
    size: tuple[int, int]
    codes: Codes


T = TypeVar("T", Opened, Encoded)


class ShardEncoder:
    """A bundle opened for folder jobs; one process may encode many shards with it."""

    def __init__(self, bundle: Path, settings: Settings) -> None:
        self._bundle = load_bundle(bundle)
        maker = replace(session_maker(settings, self._bundle.graph_path("decoder")), bundle=self._bundle)
        self._session = maker.open(self._bundle.graph_path("encoder_quantizer"))
        self._codec = codec_model(self._bundle, maker.open)

    def encode(self, job: Job, out: Path, shard: int) -> Shard:
        """Encode the pictures of one list and write the shard's files, the index last.

        Raises:
            PlanError: the bundle is not that of the job, which may have been replaced since, or on this node only.
            OSError: a picture could not be read, whatever it is, or a file not written; the same job goes on later.
        """
        self._require_version(job)
        names: list[str] = json.loads(list_path(out, shard).read_bytes())
        refused: list[Refused] = []
        opened = self._open_all(job, names, refused)
        encoded = [item for group in _groups(opened) for item in self._encode_group(group)]
        containers, total = [], 0
        for number, members in enumerate(_containers(encoded)):
            size, codes = members[0].size, np.stack([item.codes for item in members]).astype(np.int64)
            data = codec.encode(self._codec, codes, size=size)
            file = f"{shard:06d}-{number}.vqc"
            write_whole(index_path(out, shard).with_name(file), data)
            containers.append(Container(file=file, size=size, pictures=tuple(utf8(item.name) for item in members)))
            total += len(data)
        result = Shard(shard=shard, containers=tuple(containers), refused=tuple(refused), bytes=total)
        write_whole(index_path(out, shard), result.model_dump_json().encode())
        return result

    def _require_version(self, job: Job) -> None:
        """Shards of two versions lay in one folder, and no bundle could decode them all."""
        found = self._bundle.manifest.version
        if found != job.version:
            raise PlanError(
                f"{self._bundle.folder} is version {found[:12]} now, and the job began with {job.version[:12]}: bring "
                "that one back"
            )

    def _open_all(self, job: Job, names: Sequence[str], refused: list[Refused]) -> Iterator[Opened]:
        """One after the other, as they are asked for; what cannot be opened is added to `refused`."""
        spec = self._bundle.manifest.picture
        for name in names:
            try:
                image = open_to_fit(_read(Path(job.source), name), job.max_pixels, spec, job.fit)
                picture = to_picture(image, spec, job.fit)
            except (NotAPicture, PictureTooLarge, WrongPictureSize) as error:
                refused.append(Refused(picture=utf8(name), reason=utf8(str(error))))
            else:
                yield Opened(name, picture)

    def _encode_group(self, group: Sequence[Opened]) -> list[Encoded]:
        encoded = []
        for size, members in _by_size(group):
            codes = self._codes([item.picture for item in members])
            encoded += [Encoded(item.name, size, one) for item, one in zip(members, codes, strict=True)]
        return encoded

    def _codes(self, pictures: Sequence[Picture]) -> Codes:
        """Pictures of one size -> (n, h, w)."""
        manifest, runs = self._bundle.manifest, []
        for start in range(0, len(pictures), RUN_PICTURES):
            pixels = np.stack([picture.pixels for picture in pictures[start : start + RUN_PICTURES]])
            runs.append(run_in_windows(self._run, pixels, scale_in=manifest.picture.multiple_of, scale_out=1))
        return np.concatenate(runs).astype(np.min_scalar_type(manifest.codes.codebook_size - 1))

    def _run(self, pixels: NDArray[Any]) -> NDArray[Any]:
        codes: NDArray[Any] = self._session.run(None, {"images": pixels})[0]
        return codes


def _groups(opened: Iterable[Opened]) -> Iterator[list[Opened]]:
    """In their order, as many as first have GROUP_PIXELS together."""
    group: list[Opened] = []
    pixels = 0
    for item in opened:
        group.append(item)
        pixels += item.picture.pixels.shape[0] * item.picture.pixels.shape[1]
        if pixels >= GROUP_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def _containers(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """What goes into one container each: pictures of one size, with at most CONTAINER_CODES codes."""
    for _, members in _by_size(encoded):
        most = max(1, CONTAINER_CODES // members[0].codes.size)
        yield from (members[start : start + most] for start in range(0, len(members), most))


def _by_size(items: Sequence[T]) -> list[tuple[tuple[int, int], list[T]]]:
    """Groups of one size, smallest first; within a group in the order of the list."""
    ordered = sorted(items, key=lambda item: item.size)
    return [(size, list(group)) for size, group in groupby(ordered, key=lambda item: item.size)]


def read_index(out: Path, shard: int) -> Shard:
    return Shard.model_validate_json(index_path(out, shard).read_bytes())


def _read(source: Path, name: str) -> bytes:
    """Raises NotAPicture for what is gone, may not be read, or is a pipe, whose end may never come. OSError where the
    disk fails, as one on a network may, or is not there: that says nothing of the picture, which would be left out for
    good."""
    path = source / name
    try:
        if path.exists() and not path.is_file():
            raise NotAPicture("It is no file.")
        return path.read_bytes()
    except (FileNotFoundError, PermissionError) as error:
        if not _is_there(source, path.parent):
            raise
        raise NotAPicture(str(error)) from error
    except OSError as error:
        if error.errno not in OF_THE_NAME:
            raise
        raise NotAPicture(str(error)) from error


def _is_there(source: Path, folder: Path) -> bool:
    """Whether `folder` can be looked into, and the pictures' disk has not left an empty folder in its place. OSError
    where `source` cannot be listed."""
    with os.scandir(source) as inside:
        return any(inside) and os.access(folder, os.R_OK | os.X_OK)
