"""A progress line for people. In: a list. Out: its items, with a bar on standard error where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
WIDTH = 30


class Progress(Generic[T]):
    """Iterate over it. Says nothing for fewer than two items, and nothing where nobody watches."""

    def __init__(self, items: Sequence[T], what: str) -> None:
        self._items = items
        self._what = what

    def __iter__(self) -> Iterator[T]:
        visible = len(self._items) > 1 and sys.stderr.isatty()
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
