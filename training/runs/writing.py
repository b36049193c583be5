"""Files that are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

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
    """A path beside `path` to write to. It is renamed to `path` at the end, or removed where that is not reached.

    Raises:
        WriteError: `path` cannot be written; the message ends with `then`, what to do once it can.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path} cannot be written ({reason}): make room there or correct its permissions, then {then}"
        ) from error
    finally:
        with suppress(OSError):  # in its place the reason would be lost
            partial.unlink()
