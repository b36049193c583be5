"""Clients that send one byte a second, that close their half, or that say nothing: are the others slowed down?

The others are 16 connections in a closed loop, measured without and with the bad ones, in turns: each turn gives a
ratio of two neighbouring runs, and the medians of those count, since the machine is not equally fast at all times.
"""

from __future__ import annotations

import time
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.abuse.bad_clients import Behaviour, bad_clients, half_closed, idle, slow
from benchmarks.abuse.common import DIGIT, settle
from benchmarks.open_loop import encode
from benchmarks.report import goal
from benchmarks.server_process import Server, our_server
from benchmarks.wrk import Closed, closed_loop

SIZES = {"seconds": (2.0, 4.0), "turns": (2, 16), "slow_clients": (50, 200), "half": (50, 200), "silent": (200, 1000)}
WHAT = "Clients of 1 byte/s, clients that close their sending half, and idle connections, beside 16 busy connections."
OTHERS = 16
MAX_SLOWDOWN = 1.1
_CONNECTED_S = 2.0  # after they have connected: a flood of new connections is another test
_CLOSING_S = 2.0


def run(bundle: Path, seconds: float, turns: int, slow_clients: int, half: int, silent: int) -> dict[str, Any]:
    kinds: dict[str, dict[Behaviour, int]] = {
        "slow": {slow: slow_clients},
        "half-closed": {half_closed: half},
        "idle": {idle: silent},
        "all": {slow: slow_clients, half_closed: half, idle: silent},
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


def case(server: Server, seconds: float, turns: int, counts: dict[Behaviour, int]) -> dict[str, Any]:
    runs = [_turn(server, seconds, counts, bad_first=bool(turn % 2)) for turn in range(turns)]
    return {
        "alone_per_s": [round(alone.per_second, 1) for alone, _ in runs],
        "beside_per_s": [round(beside.per_second, 1) for _, beside in runs],
        "alone_p99_ms": [alone.p99_ms for alone, _ in runs],
        "beside_p99_ms": [beside.p99_ms for _, beside in runs],
        "errors": sum(alone.errors + beside.errors for alone, beside in runs),
    }


def _turn(server: Server, seconds: float, counts: dict[Behaviour, int], bad_first: bool) -> tuple[Closed, Closed]:
    """Alone and beside them. Which of the two comes first changes, so that a machine that slows down favours none."""
    if not bad_first:
        alone = closed_loop(server.url, DIGIT, OTHERS, seconds)
    address = server.host, server.port
    with bad_clients(address, encode(DIGIT, *address), counts):
        time.sleep(_CONNECTED_S)
        beside = closed_loop(server.url, DIGIT, OTHERS, seconds)
    if bad_first:
        alone = closed_loop(server.url, DIGIT, OTHERS, seconds)
    return alone, beside


def goals(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    ratios = {
        "throughput alone / beside them": median(map(truediv, found["alone_per_s"], found["beside_per_s"])),
        "p99 beside them / alone": median(map(truediv, found["beside_p99_ms"], found["alone_p99_ms"])),
    }
    return [
        *(goal(f"{name}: {what}", ratio, at_most=MAX_SLOWDOWN) for what, ratio in ratios.items()),
        goal(f"{name}: failed requests of the others", found["errors"], at_most=0),
    ]
