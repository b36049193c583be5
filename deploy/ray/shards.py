"""One shard of a folder job: a list of pictures in, containers and their index out. Nothing here knows of Ray.

OUT/shards/000042-0.vqc, 000042-1.vqc, ...: containers (docs/code-format.md), one for each size of picture.
OUT/shards/000042.json: which picture is where, and why others are nowhere. Encoding a shard again writes the same bytes
to the same names, so a worker that dies and is replaced neither loses nor doubles a picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from deploy.ray.plan import Job, index_path, list_path, write_whole
from service import codec
from service.bundle import load_bundle
from service.containers import open_codec
from service.errors import NotAPicture, PictureTooLarge, WrongPictureSize
from service.images import Picture, open_picture, to_picture
from service.sessions import session_maker
from service.settings import Settings

RUN_PICTURES = 64  # pictures in one run of the encoder: what the service takes at most by default
Codes = NDArray[np.int64]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Container(_Record):
    """`pictures` are in the order of the container's pictures; `size` is (height, width) in pixels."""

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


class ShardEncoder:
    """A bundle opened for folder jobs; one process may encode many shards with it."""

    def __init__(self, bundle: Path, settings: Settings) -> None:
        self._bundle = load_bundle(bundle)
        maker = session_maker(settings, self._bundle.graph_path("decoder"))
        self._session = maker.open(self._bundle.graph_path("encoder_quantizer"))
        self._codec = open_codec(self._bundle, maker)
        self._max_pixels = settings.max_pixels

    def encode(self, job: Job, out: Path, shard: int) -> Shard:
        """Encode the pictures of one list and write the shard's files, the index last."""
        names: list[str] = json.loads(list_path(out, shard).read_bytes())
        opened, refused = self._open_all(Path(job.source), names, job.fit)
        containers, total = [], 0
        for number, (size, group) in enumerate(_by_size(opened)):
            codes = self._codes([item.picture for item in group])
            data = codec.encode(self._codec, codes, size=size)
            file = f"{shard:06d}-{number}.vqc"
            write_whole(index_path(out, shard).with_name(file), data)
            containers.append(Container(file=file, size=size, pictures=tuple(item.name for item in group)))
            total += len(data)
        result = Shard(shard=shard, containers=tuple(containers), refused=tuple(refused), bytes=total)
        write_whole(index_path(out, shard), result.model_dump_json().encode())
        return result

    def _open_all(
        self, source: Path, names: Sequence[str], fit: Literal["exact", "resize", "pad"]
    ) -> tuple[list[Opened], list[Refused]]:
        opened, refused = [], []
        for name in names:
            try:
                image = open_picture((source / name).read_bytes(), self._max_pixels)
                opened.append(Opened(name, to_picture(image, self._bundle.manifest.picture, fit)))
            except (OSError, NotAPicture, PictureTooLarge, WrongPictureSize) as error:
                refused.append(Refused(picture=name, reason=str(error)))
        return opened, refused

    def _codes(self, pictures: Sequence[Picture]) -> Codes:
        """Pictures of one size -> int64 (n, h, w)."""
        runs = []
        for start in range(0, len(pictures), RUN_PICTURES):
            pixels = np.stack([picture.pixels for picture in pictures[start : start + RUN_PICTURES]])
            runs.append(self._session.run(None, {"images": pixels})[0])
        codes: Codes = np.concatenate(runs)
        return codes


def _by_size(opened: Sequence[Opened]) -> list[tuple[tuple[int, int], list[Opened]]]:
    """Groups of one size, smallest first; within a group in the order of the list."""
    ordered = sorted(opened, key=lambda item: item.size)
    return [(size, list(group)) for size, group in groupby(ordered, key=lambda item: item.size)]


def read_index(out: Path, shard: int) -> Shard:
    return Shard.model_validate_json(index_path(out, shard).read_bytes())
