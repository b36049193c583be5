"""Files of the command line: what is named and read, and what happens to one that is refused.

In: names of files and folders, or `-`. Out: paths, bytes, and one message for each file that cannot be done. Where the
results go says vqserve/outputs.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from vqserve.problems import NO_TYPE, OF_ONE_FILE, FileError, ProblemError, VqserveError
from vqserve.progress import say

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
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
    def one(self, name: Path | str, count: int = 1) -> Iterator[None]:
        """The work on one file, or on `count` files that are done or refused together."""
        try:
            yield
        except (VqserveError, httpx.ReadTimeout) as error:
            said = f"{name}: {_in_words_of_options(error)}"
            if count == self._count or not _is_of_the_file(error):
                raise VqserveError(said) from error
            self._refused += count
            say(said)


def _is_of_the_file(error: VqserveError | httpx.ReadTimeout) -> bool:
    """Else the next one would fail as well: a wrong key or option, no such model, a service that is full."""
    if not isinstance(error, ProblemError):
        return isinstance(error, FileError | httpx.ReadTimeout)
    if error.type == NO_TYPE:  # a proxy's refusal of a large body, or of a long wait
        return error.status in (413, 504)
    return error.type in OF_ONE_FILE


def _in_words_of_options(error: VqserveError | httpx.ReadTimeout) -> str:
    """The service advises in words of its URL, httpx in those of Python."""
    if isinstance(error, httpx.ReadTimeout):
        return "no answer in time: give it more with --timeout"
    words = str(error).replace("?fit=resize or ?fit=pad", "--fit resize or --fit pad")
    return words.replace("leave ?model= out", "leave --model out")


def named_files(names: Sequence[str], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files as they are named, and the files of folders whose suffix fits, in alphabetical order; not those of folders
    in them, and not other files, which is said."""
    for name in names:
        path = Path(name)
        if name == STANDARD or not path.is_dir():
            yield path
            continue
        inside = sorted(path.iterdir())
        found = [file for file in inside if file.suffix.lower() in suffixes and not file.is_dir()]
        folders = [file.name for file in inside if file.is_dir() and not file.name.startswith(".")]
        if folders:
            more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
            say(f"{path}: the files of the folders in it are left out ({folders[0]}{more}); name those too")
        if not found:
            raise VqserveError(f"{path} holds no file that ends in {', '.join(suffixes)}")
        _say_others(path, inside)
        yield from found


def _say_others(folder: Path, inside: Sequence[Path]) -> None:
    """The files that no command takes. Hidden ones are nobody's pictures."""
    known = (*PICTURE_SUFFIXES, CONTAINER_SUFFIX)
    others = [file for file in inside if not file.name.startswith(".") and not file.is_dir()]
    counts = Counter(file.suffix.lower() or "no suffix" for file in others if file.suffix.lower() not in known)
    if counts:
        kinds = ", ".join(f"{count} with {suffix}" for suffix, count in sorted(counts.items()))
        say(f"{folder}: {counts.total()} other files are left out ({kinds}); name those that should be taken")


def is_one_file(names: Sequence[str]) -> bool:
    """Whether exactly one file is named, or standard input. A folder is none, also with one file in it."""
    return len(names) == 1 and (names[0] == STANDARD or not Path(names[0]).is_dir())


def stem_of(path: Path) -> str:
    """The name of what is made of it, without a suffix."""
    return "stdin" if str(path) == STANDARD else path.stem


def read(path: Path) -> bytes:
    """Raises FileError where it cannot be read, is closed, or is empty."""
    if str(path) == STANDARD and sys.stdin is None:
        raise FileError("standard input is closed: name a file, or send one into it")
    try:
        content = sys.stdin.buffer.read() if str(path) == STANDARD else path.read_bytes()
    except OSError as error:
        raise FileError(str(error.strerror)) from error
    if not content:
        raise FileError("it is empty")
    return content
