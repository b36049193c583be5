"""The files of metrics in the folder that all workers share. In: the folder. Out: it, without what the dead left.

Not a part of service/metrics.py, because the supervisor needs it: prometheus_client decides at its import, by the
environment, whether its values are in such files.
"""

from __future__ import annotations

import os
from pathlib import Path

# Nothing of a dead process is in flight any more, and nobody would halve its counts of codes again. Its other counts
# are those of the service too.
_OF_THE_LIVING = ("gauge_live*_{}.db", "codes_*_{}.bin")
_COUNTED_ON = ("counter_{}.db", "histogram_{}.db")


def forget_dead_processes(folder: Path) -> None:
    """Remove the gauges and the counts of codes of processes that have ended."""
    for path in _matching(folder, _OF_THE_LIVING, "*"):
        if not _lives(int(path.stem.rpartition("_")[2])):
            path.unlink(missing_ok=True)  # another worker may be faster


def forget_process(folder: Path, process_id: int, has_served: bool) -> None:
    """Remove these of one that has ended, and all that it leaves if it never served: then it has counted nothing, and
    the folder, which may lie in memory, would fill with one more at every attempt."""
    patterns = _OF_THE_LIVING if has_served else (*_OF_THE_LIVING, *_COUNTED_ON)
    for path in _matching(folder, patterns, str(process_id)):
        path.unlink(missing_ok=True)


def _matching(folder: Path, patterns: tuple[str, ...], process: str) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern.format(process))]


def _lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
