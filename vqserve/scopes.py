"""Work of httpx that may be cancelled. In: a call of it. Out: what it gives, or nothing of it stays behind.

httpcore, below httpx, cleans up after a cancelled request under shields of anyio. They hold against a scope of
anyio, not against `asyncio.timeout` or `Task.cancel`: connections stayed in its pool for good, and pictures that had
been sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def in_scope(work: Callable[[], Awaitable[T]], give_back: Callable[[T], Awaitable[object]] | None = None) -> T:
    """`work` in a task of its own. Whoever is cancelled here ends it by a scope and waits until it has cleaned up;
    `give_back` gets what came at the last moment all the same."""
    scope, given = anyio.CancelScope(), list[T]()

    async def run() -> None:
        with scope:
            given.append(await work())

    task = asyncio.create_task(run())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        scope.cancel()
        await asyncio.wait([task])
        if given and give_back is not None:
            await in_scope(lambda: give_back(given[0]))
        raise
    return given[0]
