"""One of two workers is killed with SIGKILL under load: how long until two answer again, and does anyone wait forever?

Each process gives its requests ids with a prefix of its own, so a new prefix in an answer means that the new worker
serves.
"""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.abuse.common import DIGIT, settle
from benchmarks.open_loop import UNANSWERED, open_loop
from benchmarks.report import goal
from benchmarks.server_process import Server, our_server, usage_of

SIZES = {"seconds": (10.0, 30.0), "kills": (1, 5), "per_second": (100.0, 300.0)}
WHAT = "VQSERVE_WORKERS=2, digits at a fixed rate; a worker is killed with SIGKILL, again after it has come back."
DEADLINE_MS = 5_000
MAX_BACK_S = 5.0
_WAIT_S = 30.0
_PREFIX_PROBES = 60  # new connections until both workers have answered one, almost surely


def run(bundle: Path, seconds: float, kills: int, per_second: float) -> dict[str, Any]:
    back_s: list[float] = []
    with our_server(bundle, workers=2, request_deadline_ms=DEADLINE_MS) as server:
        settle(server, DIGIT)
        killer = threading.Thread(target=kill_repeatedly, args=(server, kills, back_s))
        killer.start()
        load_s = max(seconds, kills * (MAX_BACK_S + 2))
        offered = open_loop(server.host, server.port, DIGIT, per_second, load_s, limit_s=DEADLINE_MS / 1e3 + 5)
        killer.join()
    longest_s = max(answer.latency_s for answer in offered.answers)
    return {
        "what": WHAT,
        "back_s": [round(one, 2) for one in back_s],
        "statuses": offered.statuses(),
        "longest_request_s": round(longest_s, 3),
        "goals": [
            goal("kills that were survived", len(back_s), at_least=kills),
            goal("slowest return of the second worker, s", max(back_s, default=None), at_most=MAX_BACK_S),
            goal("requests without an answer or an end", offered.count(UNANSWERED), at_most=0),
            goal("longest request, s (the deadline is 5 s)", longest_s, at_most=DEADLINE_MS / 1e3),
        ],
    }


def kill_repeatedly(server: Server, kills: int, back_s: list[float]) -> None:
    for _ in range(kills):
        time.sleep(1)
        known = prefixes(server)
        victim = workers(server)[0]
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        while time.monotonic() - started < _WAIT_S:
            if prefix_of(server) not in {*known, None}:
                back_s.append(time.monotonic() - started)
                break
            time.sleep(0.02)


def workers(server: Server) -> list[int]:
    """The processes with the most memory: the server's own process and multiprocessing's helper open no model."""
    return sorted(set(server.pids()) - {server.pid}, key=lambda pid: usage_of([pid]).rss_bytes, reverse=True)[:2]


def prefixes(server: Server) -> set[str]:
    return {found for _ in range(_PREFIX_PROBES) if (found := prefix_of(server)) is not None}


def prefix_of(server: Server) -> str | None:
    """Of the worker that takes a new connection; None when nobody answers."""
    client = http.client.HTTPConnection(server.host, server.port, timeout=2)
    try:
        client.request("GET", "/healthz")
        return str(client.getresponse().headers["x-request-id"]).partition("-")[0]
    except (http.client.HTTPException, OSError):
        return None
    finally:
        client.close()
