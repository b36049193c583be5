"""A closed loop: `connections` clients that each ask again as soon as they are answered, by wrk (Debian package `wrk`).

In: an address, one request, connections, seconds. Out: `Closed` with requests per second and latencies in milliseconds.
A closed loop hides queueing, because slow answers slow the clients down: see benchmarks/open_loop.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")
_SLOWEST_S = 30  # wrk counts a slower answer as an error


@dataclass(frozen=True)
class Request:
    """One POST. `headers` without Host and Content-Length, which the clients add."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Closed:
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    status_errors: int  # answers of 400 and above
    socket_errors: int

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def errors(self) -> int:
        return self.status_errors + self.socket_errors


def closed_loop(url: str, request: Request, connections: int, seconds: float) -> Closed:
    """Run wrk with one thread: it has no work to share, and the server needs the other cores."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    with tempfile.NamedTemporaryFile(suffix=".body") as body:
        body.write(request.body)
        body.flush()
        lines = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        command = [program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={_SLOWEST_S}s"]
        done = subprocess.run(  # noqa: S603 - wrk, with numbers and our own address
            [*command, "-s", str(SCRIPT), url + request.path],
            env={**os.environ, "BENCH_BODY": body.name, "BENCH_HEADERS": lines},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"wrk failed: {done.stderr or done.stdout}")
    return parse(done.stdout)


def parse(output: str) -> Closed:
    """The JSON line that wrk.lua writes at the end."""
    found = json.loads(output.strip().splitlines()[-1])
    return Closed(
        requests=found["requests"],
        seconds=found["microseconds"] / 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        status_errors=found["status_errors"],
        socket_errors=found["socket_errors"],
    )
