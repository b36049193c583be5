"""What the workers of one service tell one another: which manifest of a model one of them has begun to serve.

In: a folder that they share, which lives as long as the service. Out: one small file a model, replaced whole. A single
process has no such folder, and nobody to tell.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from service.bundle import MANIFEST_FILE

log = logging.getLogger(__name__)

Stamp = tuple[int, ...]  # another one where a manifest has been written again


def stamp_of(folder: Path) -> Stamp | None:
    """Changes when the bundle's manifest is written again; None while it cannot be seen.

    Its ctime, which nobody can set, is a part of it: `cp -a`, tar and rsync give a manifest the time of its source, and
    one that is removed first may even have the inode of the one before.
    """
    try:
        state = (folder / MANIFEST_FILE).stat()
    except OSError:  # it is just being replaced, or a network disk does not answer
        return None
    return state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_size


class ServedStamps:
    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.unread: set[str] = set()  # the models of which the last read has failed

    @property
    def shared(self) -> bool:
        """Whether there are other workers."""
        return self._folder is not None

    def tell(self, name: str, stamp: Stamp) -> None:
        """This process serves what the manifest with this stamp describes."""
        if self._folder is None:
            return
        written = self._folder / f"{name}.{os.getpid()}.served.new"
        try:
            written.write_text(" ".join(map(str, stamp)), encoding="ascii")
            written.replace(self._file(self._folder, name))
        except OSError as error:
            log.error("other workers are not told of the reload of %s: %s", name, error)

    def told(self, name: str) -> Stamp | None:
        """What was told last, by whichever worker; None where nothing was, or it cannot be read: the log says so once,
        until it can be read again."""
        if self._folder is None:
            return None
        try:
            text = self._file(self._folder, name).read_text(encoding="ascii")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            if name not in self.unread:
                log.error("what other workers serve of %s cannot be read: %s", name, error)
            self.unread.add(name)
            return None
        self.unread.discard(name)
        return tuple(map(int, text.split())) or None

    @staticmethod
    def _file(folder: Path, name: str) -> Path:
        return folder / f"{name}.served"
