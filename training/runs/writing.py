"""Files that are whole or absent, whatever interrupts their writing, a power cut too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.errors import TrainingError

GO_ON = "go on with --resume"
AGAIN = "run the command again, fit with --resume"


class WriteError(TrainingError):
    """A file could not be written, as on a full disk; the message names it and says how to go on."""


@contextmanager
def written_whole(path: Path, then: str) -> Iterator[Path]:
    """A path beside `path` to write to. It is renamed to `path` at the end, once it is on the disk, or removed where
    that is not reached. Renamed at once it was an empty file after a power cut, and the earlier one was gone.

    Raises:
        WriteError: `path` cannot be written; the message ends with `then`, what to do once it can.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error, then) from error
    finally:
        with suppress(OSError):  # in its place the reason would be lost
            partial.unlink()


def cannot_write(path: Path, error: OSError, then: str) -> WriteError:
    reason = error.strerror or str(error)
    return WriteError(f"{path} cannot be written ({reason}): make room there or correct its permissions, then {then}")
