"""What a folder job has to do, fixed before it starts, so that it can be interrupted and go on.

In: a folder of pictures and how to encode them. Out: OUT/job.json and OUT/plan/NNNNNN.json, one list of pictures a
shard. The lists are written once: a job that goes on takes them as they are, whatever has come into the folder since.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp"})  # as training and the command take
JOB_FILE = "job.json"


class PlanError(ValueError):
    """The job cannot start or go on; the message says what to do."""


class Job(BaseModel):
    """Everything that decides the bytes of the shards. Going on with other values would mix two jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    model: str
    version: str
    fit: Literal["exact", "resize", "pad"]
    pictures_per_shard: int
    max_pixels: int = 0  # of one picture: a larger one is refused. 0: of a job that an earlier version began
    pictures: int = 0
    shards: int = 0


def write_whole(path: Path, data: bytes) -> None:
    """The file is there as a whole or not at all, also when two workers write it, one is killed, or the power fails:
    what had its name before its bytes were on the disk was an empty file then."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def pictures_under(folder: Path) -> Iterator[str]:
    """Paths relative to `folder`, by their suffix, without holding them all in memory. Not what is hidden: a Mac puts
    files like `._a.png` beside pictures.

    Raises:
        PlanError: a folder cannot be read; without its pictures the list would be a wrong one for good.
    """
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(root).relative_to(folder)
        shown = (name for name in sorted(files) if not name.startswith("."))
        yield from ((here / name).as_posix() for name in shown if Path(name).suffix.lower() in SUFFIXES)


def _refuse(error: OSError) -> None:
    raise PlanError(f"{error.filename} cannot be read: {error.strerror}") from error


def plan(job: Job, out: Path) -> Job:
    """The job with its counts: the one that is in `out` already, with the limit of pixels that it began with, or a new
    one.

    Raises:
        PlanError: `out` holds another job, or there is no picture.
    """
    path = out / JOB_FILE
    if path.exists():
        known = _known(path)
        kept = {"pictures": known.pictures, "shards": known.shards, "max_pixels": known.max_pixels}
        if known != job.model_copy(update=kept):
            raise PlanError(f"{out} holds another job ({known}): use another folder, or the same arguments to go on")
        return known if known.max_pixels else known.model_copy(update={"max_pixels": job.max_pixels})
    (out / "plan").mkdir(parents=True, exist_ok=True)
    counts = _write_lists(pictures_under(Path(job.source)), job.pictures_per_shard, out)
    if not counts:
        raise PlanError(f"{job.source} holds no picture ({', '.join(sorted(SUFFIXES))})")
    job = job.model_copy(update={"pictures": sum(counts), "shards": len(counts)})
    write_whole(path, job.model_dump_json(indent=1).encode())  # last: an unfinished plan is made again
    return job


def _known(path: Path) -> Job:
    try:
        return Job.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise PlanError(f"{path} is not of a job that this version can go on with: use another folder") from error


def _write_lists(pictures: Iterable[str], size: int, out: Path) -> list[int]:
    left = iter(pictures)
    counts: list[int] = []
    while names := list(islice(left, size)):
        write_whole(list_path(out, len(counts)), json.dumps(names).encode())
        counts.append(len(names))
    return counts


def list_path(out: Path, shard: int) -> Path:
    return out / "plan" / f"{shard:06d}.json"


def index_path(out: Path, shard: int) -> Path:
    """Written last by whoever encodes the shard: when it is there, the shard is finished."""
    return out / "shards" / f"{shard:06d}.json"


def missing(job: Job, out: Path) -> list[int]:
    return [shard for shard in range(job.shards) if not _is_whole(index_path(out, shard))]


def _is_whole(index: Path) -> bool:
    """Of an earlier version, a power cut may have left an empty file."""
    try:
        json.loads(index.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True
