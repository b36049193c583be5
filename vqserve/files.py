"""Files of the command line: what is named and read, and what happens to one that is refused.

In: names of files and folders, or `-`. Out: paths, bytes, and one message for each file that cannot be done. Where the
results go says vqserve/outputs.py.
"""

from __future__ import annotations

import os.path
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from vqserve.connection import proxies_set
from vqserve.problems import NO_TYPE, OF_ONE_FILE, FileError, ProblemError, VqserveError
from vqserve.progress import say

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
CONTAINER_SUFFIX = ".vqc"
STANDARD = "-"
ENDED_WAITS = (httpx.ReadTimeout, httpx.WriteTimeout)  # for one answer, or of a service that stopped reading
Fault = VqserveError | httpx.TimeoutException | MemoryError
IN_OPTIONS = {  # what replaces a text does not hold it: a message may come by twice
    "?fit=": "--fit ",
    "and one container holds pictures of one size": "but one container holds one size: leave --together out, or make "
    "all alike",
    "leave ?model= out": "leave --model out",
    "GET /models lists": "vqserve info lists",
    "Send a valid key as Authorization: Bearer KEY or X-API-Key: KEY": "Pass a valid key with --key or in VQSERVE_KEY",
}


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
        """The work on one file, or on `count` files that are done or refused together.

        A network that fails ends it for all: it is raised as it came, and where that was is said.
        """
        try:
            yield
        except (VqserveError, *ENDED_WAITS, MemoryError) as error:
            said = f"{name}: {in_words_of_options(error)}"
            if count == self._count or not _is_of_the_file(error):
                raise VqserveError(said) from error
            self._refused += count
            say(said)
        except httpx.HTTPError:
            if count < self._count:
                say(f"{name}: not done, and none after it")
            raise


def _is_of_the_file(error: Fault) -> bool:
    """Else the next one would fail as well: a wrong key or option, no such model, a service that is full."""
    if not isinstance(error, ProblemError):
        return isinstance(error, (FileError, *ENDED_WAITS, MemoryError))
    if error.type == NO_TYPE:  # a proxy's refusal of a large body, or of a long wait
        return error.status in (413, 504)
    return error.type in OF_ONE_FILE


def in_words_of_options(error: Fault) -> str:
    """The service advises in words of its URL, httpx in those of Python, and a MemoryError has none. What another
    server says may be a proxy's refusal."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time: see that the URL is right, or give it more with --timeout"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time: give it more with --timeout"
    words = str(error)
    for of_url, of_options in IN_OPTIONS.items():
        words = words.replace(of_url, of_options)
    return words + (proxies_set() if isinstance(error, ProblemError) and error.type == NO_TYPE else "")


def named_files(names: Sequence[str], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files as they are named, and the files of folders whose suffix fits, in alphabetical order; not those of folders
    in them, and not other files, which is said. Hidden ones, such as `._x.png` of macOS, are nobody's pictures."""
    for name in names:
        path = Path(name)
        if name != STANDARD and str(path) == STANDARD:  # ./- is a file of that name
            path = path.absolute()
        if name == STANDARD or not is_folder(path):
            yield path
            continue
        try:
            inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        except OSError as error:
            raise VqserveError(f"{path} cannot be read: {error.strerror}") from error
        found = [file for file in inside if file.suffix.lower() in suffixes and not _is_no_file(file)]
        folders = [file.name for file in inside if is_folder(file)]
        if folders:
            more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
            say(f"{path}: the files of the folders in it are left out ({folders[0]}{more}); name those too")
        if not found:
            raise VqserveError(f"{path} holds no file that ends in {', '.join(suffixes)}")
        _say_others(path, inside)
        yield from found


def _say_others(folder: Path, inside: Sequence[Path]) -> None:
    """The files that no command takes."""
    known = (*PICTURE_SUFFIXES, CONTAINER_SUFFIX)
    others = [file.suffix.lower() for file in inside if file.suffix.lower() not in known and not is_folder(file)]
    counts = Counter(suffix or "no suffix" for suffix in others)
    if counts:
        kinds = ", ".join(f"{count} with {suffix}" for suffix, count in sorted(counts.items()))
        say(f"{folder}: {counts.total()} other files are left out ({kinds}); name those that should be taken")


def is_one_file(names: Sequence[str]) -> bool:
    """Whether exactly one file is named, or standard input. A folder is none, also with one file in it."""
    return len(names) == 1 and (names[0] == STANDARD or not is_folder(Path(names[0])))


def is_folder(path: Path) -> bool:
    """False also for what cannot be looked at: whoever reads it then says why."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises PermissionError


def _is_no_file(path: Path) -> bool:
    """A folder, or a pipe, whose end may never come; a link to nothing is refused when its turn comes."""
    return os.path.exists(path) and not os.path.isfile(path)  # noqa: PTH110, PTH113 - as `is_folder`


def stem_of(path: Path) -> str:
    """The name of what is made of it, without a suffix."""
    return "stdin" if str(path) == STANDARD else path.stem


def read(path: Path) -> bytes:
    """Raises FileError where it cannot be read, is closed, is empty, or is larger than the memory."""
    if str(path) == STANDARD and sys.stdin is None:
        raise FileError("standard input is closed: name a file, or send one into it")
    try:
        content = sys.stdin.buffer.read() if str(path) == STANDARD else path.read_bytes()
    except OSError as error:
        raise FileError(str(error.strerror)) from error
    except MemoryError as error:
        raise FileError("it is larger than the memory") from error
    if not content:
        raise FileError("it is empty")
    return content
