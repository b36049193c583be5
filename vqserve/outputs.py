"""Where the results of the command line go. In: `--output`, `--force`, and what the inputs make. Out: places, or
VqserveError before any work is done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqserve.files import STANDARD
from vqserve.problems import VqserveError


@dataclass(frozen=True)
class Output:
    """`name` is what --output says: the file itself with `is_file`, else a folder. `single`: there is one result."""

    name: str | None
    single: bool
    is_file: bool
    force: bool

    @classmethod
    def of(cls, options: argparse.Namespace, single: bool) -> Output:
        """Raises VqserveError where there may be several results, and `name` is that of one file."""
        name: str | None = options.output
        no_folder = name is not None and not name.endswith("/") and not Path(name).is_dir()
        if name is not None and no_folder and not single and Path(name).suffix:
            raise VqserveError(f"{name} is the name of one file, for what may be several: pass a folder, as {name}/")
        return cls(name, single, single and no_folder, options.force)

    def places(self, results: Sequence[tuple[Path, str]]) -> list[Path | None]:
        """Where all the results of a command go, each given by its source and its name; see `place`.

        Raises VqserveError where two have the same place, or one must not be replaced.
        """
        targets = [self.place(source, name) for source, name in results]
        taken: dict[Path, Path] = {}
        for (source, _), target in zip(results, targets, strict=True):
            if target is None:
                continue
            self.require_free(target)
            resolved = target.resolve()
            if resolved in taken:
                both = f"{taken[resolved]} and {source} would both become {target}"
                raise VqserveError(f"{both}: rename one, or name another --output for it")
            taken[resolved] = source
        return targets

    def place(self, source: Path, name: str) -> Path | None:
        """None for standard output, the file --output, or `name` in that folder or beside its source."""
        if self.name == STANDARD or (self.name is None and str(source) == STANDARD):
            if not self.single:
                raise VqserveError("several results do not fit standard output: pass a folder with --output")
            return None
        if self.name is None:
            return source.with_name(name)
        return Path(self.name) if self.is_file else Path(self.name) / name

    def require_free(self, target: Path, *, named: bool = True) -> None:
        """Raises VqserveError where nobody named the place and a file is there, such as the original picture.

        `named`: the place is the one that --output names, if it names one.
        """
        if not (named and self.name) and not self.force and target.exists():
            raise VqserveError(f"{target} is there already: name another place with --output, or pass --force")


def write(target: Path | None, data: bytes) -> None:
    """Raises OSError. None is standard output."""
    if target is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
