"""Clients that send one byte a second, that close their half, or that say nothing: are the others slowed down?

The others are 16 connections in a closed loop. Two servers take turns of a second: one has the bad clients, which pause
while the other one, which has none, is measured. The machine is not equally fast at all times, so that the medians of
the ratios of neighbouring turns count; and no two processes are equally fast, so that after half of the turns they
change their parts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.abuse.bad_clients import Behaviour, bad_clients, half_closed, idle, slow
from benchmarks.abuse.common import DIGIT, settle
from benchmarks.open_loop import encode
from benchmarks.report import goal
from benchmarks.server_process import Server, our_server
from benchmarks.wrk import Closed, closed_loop

SIZES = {"seconds": (1.0, 1.0), "turns": (4, 60), "slow_clients": (50, 200), "half": (50, 200), "silent": (200, 1000)}
WHAT = "Clients of 1 byte/s, clients that close their sending half, and idle connections, beside 16 busy connections."
OTHERS = 16
MAX_SLOWDOWN = 1.1
_CONNECTED_S = 2.0  # after they have connected: a flood of new connections is another test
_CLOSING_S = 2.0
_PAUSE_S = 0.2  # until all are silent


@dataclass
class Found:
    """A pair for each turn, and what of the bad clients stays behind in the end."""

    alone: list[Closed] = field(default_factory=list)
    beside: list[Closed] = field(default_factory=list)
    connections: int = 0  # that the bad clients made during their turns
    descriptors: int = 0


def run(bundle: Path, seconds: float, turns: int, slow_clients: int, half: int, silent: int) -> dict[str, Any]:
    kinds: dict[str, dict[Behaviour, int]] = {
        "slow": {slow: slow_clients},
        "half-closed": {half_closed: half},
        "idle": {idle: silent},
        "all": {slow: slow_clients, half_closed: half, idle: silent},
    }
    found = {name: case(bundle, seconds, turns, counts) for name, counts in kinds.items()}
    return {
        "what": WHAT,
        "cases": {name: numbers(one) for name, one in found.items()},
        "goals": [
            *(one for name, one_case in found.items() for one in goals(name, one_case)),
            goal("descriptors that stay when all have left", sum(one.descriptors for one in found.values()), at_most=0),
        ],
    }


def case(bundle: Path, seconds: float, turns: int, counts: dict[Behaviour, int]) -> Found:
    found = Found()
    with our_server(bundle) as first, our_server(bundle) as second:
        for server in (first, second):
            settle(server, DIGIT)
        for alone, beside in ((first, second), (second, first)):
            before = beside.usage().descriptors
            _take_turns(alone, beside, seconds, turns // 2, counts, found)
            time.sleep(_CLOSING_S)
            found.descriptors += max(0, beside.usage().descriptors - before)
    return found


def _take_turns(
    alone: Server, beside: Server, seconds: float, turns: int, counts: dict[Behaviour, int], found: Found
) -> None:
    """Which of the two comes first changes, so that a machine that slows down favours none."""
    address = beside.host, beside.port
    with bad_clients(address, encode(DIGIT, *address), counts) as crowd:
        time.sleep(_CONNECTED_S)
        crowd.pause()
        time.sleep(_PAUSE_S)
        before = crowd.connections
        for turn in range(turns):
            for among in (False, True) if turn % 2 else (True, False):
                if among:
                    crowd.resume()
                    found.beside.append(closed_loop(beside.url, DIGIT, OTHERS, seconds))
                else:
                    crowd.pause()
                    time.sleep(_PAUSE_S)
                    found.alone.append(closed_loop(alone.url, DIGIT, OTHERS, seconds))
        found.connections += crowd.connections - before


def numbers(found: Found) -> dict[str, Any]:
    return {
        "bad_connections": found.connections,
        "alone_per_s": [round(one.per_second, 1) for one in found.alone],
        "beside_per_s": [round(one.per_second, 1) for one in found.beside],
        "alone_p99_ms": [one.p99_ms for one in found.alone],
        "beside_p99_ms": [one.p99_ms for one in found.beside],
    }


def goals(name: str, found: Found) -> list[dict[str, Any]]:
    pairs = list(zip(found.alone, found.beside, strict=True))
    ratios = {
        "throughput alone / beside them": median(alone.per_second / beside.per_second for alone, beside in pairs),
        "p99 beside them / alone": median(beside.p99_ms / alone.p99_ms for alone, beside in pairs),
    }
    errors = sum(alone.errors + beside.errors for alone, beside in pairs)
    return [
        *(goal(f"{name}: {what}", ratio, at_most=MAX_SLOWDOWN) for what, ratio in ratios.items()),
        goal(f"{name}: failed requests of the others", errors, at_most=0),
    ]
