"""Where the results of the command line go. In: `--output`, `--force`, and what the inputs make. Out: places, or
VqserveError before any work is done."""

from __future__ import annotations

import argparse
import errno
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vqserve.files import PICTURE_SUFFIXES, STANDARD, is_folder
from vqserve.problems import FileError, VqserveError
from vqserve.progress import clear_line

OTHER_PICTURES = (*PICTURE_SUFFIXES[1:], ".gif", ".tif", ".tiff", ".avif", ".heic", ".jxl")  # than PNG
OPEN_FILES = ("/dev/fd/", "/proc/")
SEVERAL = "several results do not fit standard output: pass a folder with --output"
Identity = tuple[int, int]  # of a file, whatever it is called: its device and its number there


@dataclass(frozen=True)
class Output:
    """`name` is what --output says: the file itself with `is_file`, else a folder. `single`: there is one result.

    `inputs` are the files that the command reads, `free` the places where nothing was.
    """

    name: str | None
    single: bool
    is_file: bool
    force: bool
    inputs: frozenset[Identity | None] = frozenset()
    free: set[Path] = field(default_factory=set)

    @classmethod
    def of(cls, options: argparse.Namespace, single: bool, inputs: Sequence[Path] = ()) -> Output:
        """Raises VqserveError where there may be several results, and `name` is that of one file or `-`, and where
        it is said to be in a file."""
        name: str | None = options.output
        if name is not None and (file := _file_in_the_way(name)) is not None:
            raise VqserveError(f"{name} cannot be written: {file} is no folder: name another place with --output")
        with _to_be_written(name):
            no_folder = name is not None and not name.endswith("/") and not Path(name).is_dir()
            there = name is not None and no_folder and Path(name).exists()
        if name == STANDARD and not single:
            raise VqserveError(SEVERAL)
        if name is not None and no_folder and not single and Path(name).suffix:
            raise VqserveError(f"{name} is the name of one file, for what may be several: pass a folder, as {name}/")
        if there and not single:
            raise VqserveError(f"{name} is a file, for what may be several: name a folder with --output")
        read = frozenset(_identity(path) for path in inputs if str(path) != STANDARD)
        return cls(name, single, single and no_folder, options.force, read - {None})

    def require_png(self, command: str) -> None:
        """Raises VqserveError where --output is the name of another kind of picture than the command writes."""
        if self.name is not None and self.is_file and Path(self.name).suffix.lower() in OTHER_PICTURES:
            raise VqserveError(f"{command} writes PNG: name it {Path(self.name).with_suffix('.png')}")

    def places(self, results: Sequence[tuple[Path, str]], taken: dict[str, Path] | None = None) -> list[Path | None]:
        """Where all the results of a command go, each given by its source and its name; see `place`. Where they are not
        all known at once, `taken` is kept between the calls.

        Raises VqserveError where two have the same place, or one must not be replaced.
        """
        targets = [self.place(source, name) for source, name in results]
        taken = {} if taken is None else taken
        for (source, _), target in zip(results, targets, strict=True):
            if target is None:
                continue
            with _to_be_written(target):  # the current folder may be gone
                resolved = os.path.realpath(target)  # Path.resolve raises RuntimeError for a link to itself
            if resolved in taken:
                both = f"{taken[resolved]} and {source} would both become {target}"
                raise VqserveError(f"{both}: rename one, or name another --output for it")
            self.require_free(target)
            taken[resolved] = source
            if not os.path.exists(target):  # noqa: PTH110 - as in `_file_in_the_way`
                self.free.add(target)
        return targets

    def write(self, target: Path | None, data: bytes) -> None:
        """As `write`. Raises FileError where a free place is one no longer: where a disk takes x and X for one name,
        the first of two results would be lost."""
        if target in self.free and os.path.exists(target):  # noqa: PTH110 - as in `places`
            raise FileError(f"{target} is there by now: rename the input if another one differs from it in case only")
        write(target, data)

    def place(self, source: Path, name: str) -> Path | None:
        """None for standard output, the file --output, or `name` in that folder or beside its source."""
        if self.name == STANDARD or (self.name is None and str(source) == STANDARD):
            if not self.single:
                raise VqserveError(SEVERAL)
            return None
        if self.name is None:
            self.require_folder_of(source)
            return source.with_name(name)
        return Path(self.name) if self.is_file else Path(self.name) / name

    def require_folder_of(self, source: Path) -> None:
        """Raises VqserveError where the result goes beside it, and it is a pipe of the shell, as <(command) is."""
        if self.name is None and str(source).startswith(OPEN_FILES):
            raise VqserveError(f"{source} is in no folder: name a file, a folder or - for its result with --output")

    def require_free(self, target: Path, *, named: bool = True) -> None:
        """Raises VqserveError where an input is there, or nobody named the file that is, such as the original picture.

        `named`: the place is the one that --output names, if it names a file. A folder names none of those in it.
        """
        if self.force:
            return
        advice = "name another place with --output, or pass --force"
        if _identity(target) in self.inputs:
            raise VqserveError(f"{target} is one of the inputs: {advice}")
        with _to_be_written(target):
            there = not (named and self.is_file) and _is_there(target)
        if there:
            raise VqserveError(f"{target} is there already: {advice}")


def _file_in_the_way(name: str) -> Path | None:
    """What is there, and no folder, though `name` says that something is in it."""
    path = Path(name)
    folders = [path, *path.parents] if name.endswith("/") else path.parents
    # Path.exists raises where it may not look: whoever writes there then says why
    return next((one for one in folders if os.path.exists(one) and not is_folder(one)), None)  # noqa: PTH110


def _is_there(target: Path) -> bool:
    """False for a file whose name is too long: it is refused when its turn comes, and the others are written."""
    try:
        return target.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        target.parent.exists()  # raises where it is the folder's name
        return False


def _identity(path: Path) -> Identity | None:
    """None for what is no regular file: a terminal may well be both input and output."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def write(target: Path | None, data: bytes) -> None:
    """None is standard output. A file has all of `data`, or is as it was.

    Raises VqserveError where it cannot be written, and BrokenPipeError where its reader has left.
    """
    if target is None:
        _to_standard_output(data)
        return
    with _to_be_written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():  # a device or a pipe: nothing may take its place
            target.write_bytes(data)
        else:
            _write_whole(Path(os.path.realpath(target)), data)


@contextmanager
def _to_be_written(target: Path | str | None) -> Iterator[None]:
    """Around a look at `target`, or its writing. Raises as `write`; FileError where it is the name that is too long."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        advice = "see to it, or name another place with --output"
        kind = FileError if error.errno == errno.ENAMETOOLONG else VqserveError
        raise kind(f"{target} cannot be written: {error.strerror}: {advice}") from error


def _write_whole(target: Path, data: bytes) -> None:
    """Raises OSError. Nobody sees a part of the file, and none is left, also where Ctrl-C ends it.

    After a power cut the file may be empty, and so may one that it replaced: to wait for the disk made 500 digits take
    up to twice as long (1.0 s, 1.5 to 1.9 s)."""
    there = target.exists()
    if there:
        target.open("ab").close()  # one that is protected stays
    part = target.with_name(f".vqserve-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as stream:
            if there:
                shutil.copymode(target, part)  # before there is anything to read in it
            stream.write(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def print_json(value: object, indent: int | None = None) -> None:
    """On standard output, at once: who reads along may have enough. Names are written as they are, or escaped where
    its encoding has no such signs. Raises as `write`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode((sys.stdout and sys.stdout.encoding) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    _to_standard_output(text + "\n")


def _to_standard_output(data: bytes | str) -> None:
    """Raises as `write`."""
    if sys.stdout is None:
        raise VqserveError("standard output is closed: leave it open, or name a file with --output")
    try:
        if isinstance(data, str):
            sys.stdout.write(data)
        else:
            sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        let_go_of_standard_output()
        raise VqserveError(f"standard output cannot be written: {error.strerror}") from error


def let_go_of_standard_output() -> None:
    """Nobody reads it, as behind `| head`. What is left in its buffer would end the process with a message."""
    clear_line()
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
