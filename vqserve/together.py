"""`vqserve encode --together`: many pictures in few containers. In: picture files. Out: a container for each group."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqserve.backends import Backend, backend_of
from vqserve.files import CONTAINER_SUFFIX, STANDARD, Files, read
from vqserve.outputs import Output
from vqserve.problems import FileError, ProblemError, TooLargeTogetherError, VqserveError
from vqserve.progress import Progress, say

TOGETHER = 256  # pictures a container: the service's limit of one request
TOO_LARGE = 413


@dataclass(frozen=True)
class Group:
    """Pictures of one container, and its place; None is standard output."""

    pictures: Sequence[Path]
    target: Path | None

    def __str__(self) -> str:
        first, last = self.pictures[0], self.pictures[-1]
        return str(first) if first == last else f"{first} to {last}"

    def with_name(self, refusal: str) -> str:
        """Which picture of the group was refused, by its name instead of its number."""
        return re.sub(r"Picture (\d+) of \d+", lambda number: str(self.pictures[int(number[1]) - 1]), refusal, count=1)

    def halves(self, of: str) -> tuple[Group, Group]:
        """`of`: what it is too large for.

        Raises VqserveError for standard output, which holds one container, and for standard input, which is gone."""
        if self.target is None:
            raise VqserveError(f"too large for one {of}, and two containers do not fit standard output: name a file")
        if any(str(picture) == STANDARD for picture in self.pictures):
            raise VqserveError(f"too large for one {of}, and standard input can be read only once: name a file")
        middle, stem = len(self.pictures) // 2, self.target.stem
        return (
            Group(self.pictures[:middle], self.target.with_stem(f"{stem}-1")),
            Group(self.pictures[middle:], self.target.with_stem(f"{stem}-2")),
        )


def encode_together(inputs: Sequence[Path], options: argparse.Namespace) -> None:
    """A group that is refused is named, and the others are done. One that is too large becomes two containers."""
    parts = [inputs[start : start + TOGETHER] for start in range(0, len(inputs), TOGETHER)]
    names = ["pictures"] if len(parts) == 1 else [f"pictures-{number:03d}" for number in range(len(parts))]
    # Without a suffix --output is a folder, so that it does not depend on how many pictures there are.
    names_one = options.output in (None, STANDARD) or bool(Path(options.output).suffix)
    output = Output.of(options, names_one and len(parts) == 1, inputs)
    targets = output.places([(part[0], name + CONTAINER_SUFFIX) for part, name in zip(parts, names, strict=True)])
    groups = [Group(part, target) for part, target in zip(parts, targets, strict=True)]
    with backend_of(options) as backend, Files(len(inputs)) as files:
        for group in Progress(groups, "encode"):
            left = [group]
            while left:
                part = left.pop()
                with files.one(str(part), len(part.pictures)):
                    left += reversed(_encode(part, backend, output, options))


def _encode(group: Group, backend: Backend, output: Output, options: argparse.Namespace) -> Sequence[Group]:
    """What is left to do: nothing, or the halves of a group that is more than the service takes at once."""
    pictures = [_read(path) for path in group.pictures]
    try:
        container = backend.compress(pictures, options.fit, options.effort)
    except TooLargeTogetherError:
        return _halves(group, output, "container")
    except FileError as error:
        raise FileError(group.with_name(str(error))) from error
    except ProblemError as error:
        if error.status != TOO_LARGE or len(pictures) == 1:
            error.detail = group.with_name(error.detail)
            raise
        return _halves(group, output, "request")
    output.write(group.target, container)
    return ()


def _halves(group: Group, output: Output, of: str) -> Sequence[Group]:
    halves = group.halves(of)
    for half in halves:
        if half.target is not None:
            output.require_free(half.target, named=False)
    say(f"{group}: too large for one {of}, trying {halves[0].target} and {halves[1].target}")
    return halves


def _read(path: Path) -> bytes:
    """As `read`, and the error names the file, since the group's name is that of its first and last."""
    try:
        return read(path)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
