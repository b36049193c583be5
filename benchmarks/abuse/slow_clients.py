"""Clients that send one byte a second, that close their half, or that say nothing: are the others slowed down?

The others are 16 connections in a closed loop, measured in turns without and with the bad ones.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.abuse.common import DIGIT, settle
from benchmarks.open_loop import encode
from benchmarks.report import goal
from benchmarks.server_process import Server, our_server
from benchmarks.wrk import closed_loop

SIZES = {"seconds": (2.0, 10.0), "turns": (2, 5), "slow": (50, 200), "half_closed": (50, 200), "idle": (200, 1000)}
WHAT = "Clients of 1 byte/s, clients that close their sending half, and idle connections, beside 16 busy connections."
OTHERS = 16
MAX_SLOWDOWN = 1.1
_CLOSING_S = 2.0
_CUT = 40  # bytes of a request after which a half-closed client stops
_AGAIN_AFTER_S = (0.2, 1.8)


def run(bundle: Path, seconds: float, turns: int, slow: int, half_closed: int, idle: int) -> dict[str, Any]:
    kinds = {
        "slow": (slow, 0, 0),
        "half-closed": (0, half_closed, 0),
        "idle": (0, 0, idle),
        "all": (slow, half_closed, idle),
    }
    with our_server(bundle) as server:
        before = server.usage().descriptors
        settle(server, DIGIT)
        cases = {name: case(server, seconds, turns, counts) for name, counts in kinds.items()}
        time.sleep(_CLOSING_S)
        left = server.usage().descriptors - before
    return {
        "what": WHAT,
        "cases": cases,
        "goals": [
            *(one for name, found in cases.items() for one in goals(name, found)),
            goal("descriptors that stay when all have left", left, at_most=0),
        ],
    }


def case(server: Server, seconds: float, turns: int, counts: tuple[int, int, int]) -> dict[str, Any]:
    alone, beside = [], []
    for _ in range(turns):
        alone.append(closed_loop(server.url, DIGIT, OTHERS, seconds))
        with bad_clients(server, *counts):
            beside.append(closed_loop(server.url, DIGIT, OTHERS, seconds))
    return {
        "alone_per_s": round(median(one.per_second for one in alone), 1),
        "beside_per_s": round(median(one.per_second for one in beside), 1),
        "alone_p99_ms": median(one.p99_ms for one in alone),
        "beside_p99_ms": median(one.p99_ms for one in beside),
        "errors": sum(one.errors for one in (*alone, *beside)),
    }


def goals(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        goal(
            f"{name}: throughput alone / beside them",
            found["alone_per_s"] / found["beside_per_s"],
            at_most=MAX_SLOWDOWN,
        ),
        goal(f"{name}: p99 beside them / alone", found["beside_p99_ms"] / found["alone_p99_ms"], at_most=MAX_SLOWDOWN),
        goal(f"{name}: failed requests of the others", found["errors"], at_most=0),
    ]


@contextmanager
def bad_clients(server: Server, slow: int, half_closed: int, idle: int) -> Iterator[None]:
    """Connected when the block begins, gone when it ends. They live in a thread: wrk is a process of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    crowd = asyncio.run_coroutine_threadsafe(_connect(server, slow, half_closed, idle), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(_leave(crowd), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _connect(server: Server, slow: int, half_closed: int, idle: int) -> list[asyncio.Task[None]]:
    behaviours = [_slow] * slow + [_half_closed] * half_closed + [_idle] * idle
    connected = [asyncio.Event() for _ in behaviours]
    tasks = [
        asyncio.create_task(_stay(server, behaviour, event))
        for behaviour, event in zip(behaviours, connected, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in connected))
    return tasks


async def _leave(crowd: list[asyncio.Task[None]]) -> None:
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)


async def _stay(server: Server, behaviour: Any, connected: asyncio.Event) -> None:
    """Behave badly, again on a new connection whenever the server has ended the last one."""
    while True:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        connected.set()
        try:
            with suppress(ConnectionError):
                await behaviour(reader, writer, encode(DIGIT, server.host, server.port))
        finally:
            writer.close()


async def _slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """The head at once, so that the server waits for the body with a request in hand; the body a byte a second."""
    head = request.index(b"\r\n\r\n") + 4
    writer.write(request[:head])
    for place in range(head, len(request)):
        writer.write(request[place : place + 1])
        await writer.drain()
        await asyncio.sleep(1)
    await reader.read()


async def _half_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """Part of a request, then no more will come; reads until the server closes. Each comes again after a time of its
    own: together they would be a flood of new connections, which is another test."""
    writer.write(request[:_CUT])
    writer.write_eof()
    await reader.read()
    await asyncio.sleep(random.uniform(*_AGAIN_AFTER_S))


async def _idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    await reader.read()
