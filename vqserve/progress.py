"""What people see of the work. In: a list, or a message. Out: the list's items, with a bar on standard error where that
is a terminal, and messages on lines of their own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Generic, TextIO, TypeVar

T = TypeVar("T")
WIDTH = 30


class Progress(Generic[T]):
    """Iterate over it. Says nothing for fewer than two items, and nothing where nobody watches.

    `prints`: the loop prints its results. On a terminal they are the progress, and a bar would be in their way.
    """

    def __init__(self, items: Sequence[T], what: str, prints: bool = False) -> None:
        self._items = items
        self._what = what
        self._prints = prints

    def __iter__(self) -> Iterator[T]:
        visible = len(self._items) > 1 and _on_terminal(sys.stderr) and not (self._prints and _on_terminal(sys.stdout))
        for done, item in enumerate(self._items):
            if visible:
                self._draw(done)
            yield item
        if visible:
            self._draw(len(self._items))
            sys.stderr.write("\n")

    def _draw(self, done: int) -> None:
        filled = WIDTH * done // len(self._items)
        bar = "#" * filled + "." * (WIDTH - filled)
        sys.stderr.write(f"\r{self._what} [{bar}] {done}/{len(self._items)}")
        sys.stderr.flush()


def say(message: str) -> None:
    """One line on standard error, in the place of a bar."""
    clear_line()
    if sys.stderr is not None:  # closed: print would take standard output instead
        print(f"vqserve: {_in_one_line(message)}", file=sys.stderr)


def _in_one_line(message: str) -> str:
    """Line breaks and control characters, which a terminal obeys and a file's name may hold, as Python escapes them."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], message)


def clear_line() -> None:
    """Of the terminal, where a bar may be."""
    if _on_terminal(sys.stderr):
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _on_terminal(stream: TextIO | None) -> bool:
    """None is a standard stream that was closed before the command began."""
    return stream is not None and stream.isatty()
