"""The real service in a process of its own, for tests that need a socket, signals or several workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.inference.batching import Batcher


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def busy(batcher: Batcher) -> bool:
    """Whether a run of either lane is under way in its thread."""
    return any(lane.busy_since is not None for lane in batcher._lanes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(*bundles: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m service` in a process of its own, and its address."""
    port = free_port()
    environment = {**os.environ, "VQSERVE_DEVICE": "cpu", "VQSERVE_THREADS": "1", **variables}
    options = [option for bundle in bundles for option in ("--bundle", str(bundle))]
    command = [sys.executable, "-m", "service", *options, "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or answers(f"{address}/readyz"), 60)
        assert process.poll() is None, "the service did not start"
        yield process, address
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        sys.stderr.write(errors.decode())


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def listeners(address: str) -> int:
    """Sockets that listen on its port: one of each worker that serves."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "0A" for row in rows)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request as it goes over a socket."""
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
