"""The folder of files in which all workers of a service count. Out: the folder, without what the dead left in it, and
none of a service that was killed.

Not a part of service/telemetry/metrics.py, because the supervisor needs it: prometheus_client decides at its import, by
the environment, whether its values are in such files.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"  # the variable that names the folder, as prometheus_client reads it
_PREFIX, _HELD = "vqserve-metrics-", ".held"
# Nothing of a dead worker is in flight any more, nobody would halve its counts of codes again, and what it was just
# writing is not whole. Whoever takes its place goes on with its other counts.
_OF_THE_LIVING = ("gauge_live*_{}.db", "codes_*_{}.bin", "*_{}.new")
# Those of prometheus_client: bytes for every route with every status, and for each model with a name of 64 letters.
# It makes a file that is full twice as large.
_RESERVED = {"counter": (96 << 10, 2 << 10), "gauge_livesum": (8 << 10, 1 << 10), "histogram": (192 << 10, 88 << 10)}

_place = 0  # of this process among the workers
_started: float | None = None  # Unix time at which their supervisor was


class CountsError(OSError):
    """What is counted cannot be kept in the folder; the message says why and what to do."""

    def __init__(self, folder: Path, error: OSError) -> None:
        why = error.strerror or error
        super().__init__(
            f"the workers count in files, and {folder} takes none: {why}: make room, or restart the service"
        )


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A new one in the temporary directory, which is there until the end. First those are removed that services have
    left which were killed.

    Raises:
        OSError: the temporary directory takes no folder.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_HELD}"):
        with suppress(OSError):  # it is another user's, no folder, held, or just gone: it is left as it is
            _remove_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        if hold(folder):  # else no other service may ever remove it: it keeps a name without the ending
            folder = folder.rename(folder.with_suffix(_HELD))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hold(folder: Path) -> bool:
    """Keep other services from removing it until this process ends, however it does. Its number would not do, which
    may be another's by now, or in another container. False where the file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # open until the end
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Raises OSError where somebody holds the folder, or it is a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
        log.info("removed %s, which a service has left that was killed", folder)
    finally:
        os.close(descriptor)


def take_place(place: int, started: float | None = None) -> None:
    """In a worker, before it counts: its files are named by its place among the workers, and who takes the place of a
    dead one counts on in them. Named by processes, each death would leave its files, until the folder, which may lie in
    memory, is full; and a page of metrics, which adds all of them up, would hold the event loop for longer and longer.

    `started`: the Unix time at which the supervisor was."""
    global _place, _started
    _place, _started = place, started


def place() -> int:
    return _place


def service_start() -> float:
    """Unix time: of several workers that of their supervisor, else now."""
    return time.time() if _started is None else _started


def reserve(folder: Path, models: int) -> None:
    """Write the files of this process whole before prometheus_client opens them. It would leave holes in them, and on a
    full disk the first count in a hole is a bus error, which ends a worker while it serves. What is written grows with
    the models, as their counts do.

    Raises:
        CountsError: there is no room, or no folder.
    """
    for kind, (of_routes, of_a_model) in _RESERVED.items():
        path = folder / f"{kind}_{_place}.db"
        written = path.with_suffix(".new")  # another worker may make its page now, and cannot read a part of one
        try:
            if not path.exists():
                written.write_bytes(bytes(of_routes + models * of_a_model))
                written.replace(path)
        except OSError as error:
            with suppress(OSError):
                written.unlink()
            raise CountsError(folder, error) from error


def forget_worker(folder: Path, place: int) -> None:
    """Remove what only a worker that lives may have there, of one that has ended. What cannot be removed is left: on a
    disk that had failed, and is read-only since, the error ended the supervision, which was deaf to SIGTERM then."""
    left, refused = list[Path](), list[OSError]()
    try:
        left = [path for pattern in _OF_THE_LIVING for path in folder.glob(pattern.format(place))]
    except OSError as error:
        refused.append(error)
    for path in left:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            refused.append(error)
    if refused:
        log.warning("what a worker has left in %s cannot be removed: %s", folder, refused[0].strerror)
