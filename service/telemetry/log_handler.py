"""Lines that wait for nobody. In: log records. Out: their lines on standard error, but for those that nobody reads, or
for which the disk has no room, which are left out; once there is room again, a line says how many.

A pipe holds 64 KiB, and a write to one that is full waits for its reader. The event loop would wait with it: /healthz
would not answer, and neither SIGTERM nor Ctrl-C would end the service.
"""

from __future__ import annotations

import logging
import os
import select
import stat
from typing import TextIO

_UNREAD = "nobody read them"
_PATIENCE_MS = 250  # with a reader that is only busy: once, until it reads again


class StandardError(logging.StreamHandler[TextIO]):
    """Writes a line where it is taken, without the stream's own buffer. A stream without a descriptor takes any."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._outlet = _outlet_of(self.stream)
        self._missing = 0  # lines, since one was written
        self._rest = b""  # of a line that was taken in part

    def emit(self, record: logging.LogRecord) -> None:
        if self._outlet is None:
            super().emit(record)
            return
        try:
            self._put(self._outlet, self._line(record))
        except Exception:  # noqa: BLE001 - as of every handler: whoever logs has no part in it
            self.handleError(record)

    def close(self) -> None:
        self.acquire()
        try:
            if self._outlet is not None:
                self._outlet.close()
        finally:
            self.release()
        super().close()

    def _put(self, outlet: Outlet, line: bytes) -> None:
        patience_ms = 0 if self._missing or self._rest else _PATIENCE_MS
        if self._rest:
            self._rest = self._rest[outlet.write(self._rest, patience_ms) :]
        if not self._rest:
            text = self._told(outlet) + line
            if taken := outlet.write(text, patience_ms):
                self._missing, self._rest = 0, text[taken:]
                return
        self._missing += 1

    def _told(self, outlet: Outlet) -> bytes:
        if not self._missing:
            return b""
        said, values = "%d lines of the log are missing: %s", (self._missing, outlet.why)
        return self._line(logging.LogRecord(__name__, logging.WARNING, "", 0, said, values, None))

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + self.terminator).encode()


class Outlet:
    """A descriptor of others too, which is written to without waiting for its reader."""

    why = _UNREAD  # the last bytes that were not taken were not

    def __init__(self, descriptor: int) -> None:
        again = _opened_again(descriptor)
        self._given = descriptor
        self._descriptor = descriptor if again is None else again
        self._may_wait = again is None and not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)

    def write(self, data: bytes, patience_ms: int) -> int:
        """How many bytes were taken; it waits for room for no longer than `patience_ms` at a time."""
        done = 0
        while done < len(data):
            left = data[done:]
            taken = self._taken(left) or (self._taken(left) if self._room.poll(patience_ms) else 0)
            if not taken:
                break
            done += taken
        return done

    def close(self) -> None:
        """What is written later still arrives."""
        if self._descriptor != self._given:
            os.close(self._descriptor)
            self._descriptor, self._may_wait = self._given, True

    def _taken(self, data: bytes) -> int:
        try:
            if not self._may_wait:
                return os.write(self._descriptor, data)
            # where there is room at all, there is for so much; not always in a terminal
            return os.write(self._descriptor, data[: select.PIPE_BUF]) if self._room.poll(0) else 0
        except (BlockingIOError, BrokenPipeError):  # of a named pipe the reader may come back
            self.why = _UNREAD
        except OSError as error:  # of a file on a full disk
            self.why = error.strerror or str(error)
        return 0


def _outlet_of(stream: TextIO | None) -> Outlet | None:
    try:
        return None if stream is None else Outlet(stream.fileno())
    except (OSError, ValueError):  # it is in memory, as in tests, or closed
        return None


def _opened_again(descriptor: int) -> int | None:
    """The same pipe or terminal with O_NONBLOCK, which on the given descriptor would be for all who share it, as the
    shell that has started us. None: it is neither, or another user's, or there is no /proc."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
