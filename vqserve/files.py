"""Files of the command line: what is named and read, where results go, and what happens to one that is refused.

In: names of files and folders, or `-`. Out: bytes, places, and one message for each file that cannot be done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vqserve.problems import ProblemError, UnexpectedAnswerError, VqserveError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CONTAINER_SUFFIX = ".vqc"
STANDARD = "-"


class Files:
    """Many files one after the other: one that is refused is named, and the others are done all the same.

    At the end, and for a single file at once, it raises VqserveError.
    """

    def __init__(self, count: int) -> None:
        self._count, self._refused = count, 0

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._refused and kind is None:
            raise VqserveError(f"{self._refused} of {self._count} files were refused")

    @contextmanager
    def one(self, path: Path) -> Iterator[None]:
        try:
            yield
        except VqserveError as error:
            said = f"{path}: {in_words_of_options(error)}"
            if self._count == 1 or not _is_of_the_file(error):
                raise VqserveError(said) from error
            self._refused += 1
            print(f"vqserve: {said}", file=sys.stderr)


def _is_of_the_file(error: VqserveError) -> bool:
    """Else the next one would fail as well: a wrong key, no such model, a service that is full."""
    if isinstance(error, ProblemError):
        return error.status in (400, 413, 422)
    return not isinstance(error, UnexpectedAnswerError)


def in_words_of_options(error: VqserveError) -> str:
    """The service advises in words of its URL."""
    return str(error).replace("?fit=resize or ?fit=pad", "--fit resize or --fit pad")


def named_files(names: Sequence[str], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files as they are named, and the files of folders whose suffix fits, in alphabetical order."""
    for name in names:
        path = Path(name)
        if name == STANDARD or not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        if not found:
            raise VqserveError(f"{path} holds no file that ends in {', '.join(suffixes)}")
        yield from found


def read(path: Path) -> bytes:
    """Raises VqserveError where it cannot be read."""
    try:
        return sys.stdin.buffer.read() if str(path) == STANDARD else path.read_bytes()
    except OSError as error:
        raise VqserveError(str(error.strerror)) from error


def places(options: argparse.Namespace, results: Sequence[tuple[Path, str]]) -> list[Path | None]:
    """Where all the results of a command go, each given by its source and its name; see `place`.

    Raises VqserveError where two have the same place, or one that nobody named replaces a file: a decoded picture would
    take the place of its original.
    """
    output: str | None = options.output
    targets = [place(output, source, name, single=len(results) == 1) for source, name in results]
    taken: dict[Path, Path] = {}
    for (source, _), target in zip(results, targets, strict=True):
        if target is None:
            continue
        if output is None and not options.force and target.exists():
            raise VqserveError(f"{target} is there already: name another place with --output, or pass --force")
        resolved = target.resolve()
        if resolved in taken:
            both = f"{taken[resolved]} and {source} would both become {target}"
            raise VqserveError(f"{both}: rename one, or name another --output for it")
        taken[resolved] = source
    return targets


def place(output: str | None, source: Path, name: str, single: bool) -> Path | None:
    """None for standard output, the file `output`, or `name` in the folder `output` or beside its source."""
    if output == STANDARD or (output is None and str(source) == STANDARD):
        if not single:
            raise VqserveError("several results do not fit standard output: pass a folder with --output")
        return None
    if output is None:
        return source.with_name(name)
    if single and not Path(output).is_dir() and not output.endswith("/"):
        return Path(output)
    return Path(output) / name


def write(target: Path | None, data: bytes) -> None:
    if target is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
