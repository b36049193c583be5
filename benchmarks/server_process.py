"""A server in processes of its own, and what they use. In: a command. Out: `Server`, until the block ends.

CPU seconds, memory, descriptors and threads are those of the whole process tree, read from /proc: a server with a
front end and workers pays for all of them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

START_S = 90.0  # Ray needs half a minute on two cores
STOP_S = 15.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Fields of /proc/PID/stat after the command's name, which may hold spaces: proc(5) counts from 1, this from "state".
_PARENT, _SESSION, _USER, _SYSTEM, _DEAD_USER, _DEAD_SYSTEM, _THREADS, _BORN, _RSS = 1, 3, 11, 12, 13, 14, 17, 19, 21


class ServerDidNotStart(RuntimeError):
    """The message holds the end of the server's own output."""


@dataclass(frozen=True)
class Usage:
    """Of all processes of a tree together. `cpu_s` includes children that have ended and were waited for."""

    cpu_s: float
    rss_bytes: int  # a page that several share counts for each
    pss_bytes: int  # it counts once, in parts
    threads: int
    descriptors: int


@dataclass(frozen=True)
class Server:
    host: str
    port: int
    pid: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def pids(self) -> list[int]:
        return process_tree(self.pid)

    def usage(self) -> Usage:
        return usage_of(self.pids())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def our_server(bundle: Path, **settings: object) -> Iterator[Server]:
    """`python -m service` with one onnxruntime thread a session; `settings` become VQSERVE_* variables."""
    port = free_port()
    given = {"bundles": bundle, "port": port, "device": "cpu", "threads": 1, **settings}
    environment = {f"VQSERVE_{name.upper()}": str(value) for name, value in given.items()}
    with running([sys.executable, "-m", "service"], port, "/readyz", environment) as server:
        yield server


@contextmanager
def running(command: Sequence[str], port: int, ready_path: str, environment: Mapping[str, str]) -> Iterator[Server]:
    """Start `command`, wait until `ready_path` answers below 500, and end the whole tree afterwards.

    Raises:
        ServerDidNotStart: it ended, or it did not answer within `START_S`.
    """
    with tempfile.NamedTemporaryFile(prefix="server-", suffix=".log") as log:
        process = subprocess.Popen(  # noqa: S603 - the commands are ours
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = Server("127.0.0.1", port, process.pid, Path(log.name))
        try:
            _wait_until_ready(process, server, ready_path)
            yield server
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], server: Server, ready_path: str) -> None:
    end = time.monotonic() + START_S
    while not answers(server.url + ready_path):
        ended = process.poll() is not None
        if ended or time.monotonic() > end:
            reason = f"ended with {process.returncode}" if ended else f"did not answer within {START_S:g} s"
            raise ServerDidNotStart(f"{reason}:\n{tail(server.log)}")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether there is an HTTP server that does not say 5xx. It is here: no proxy is asked for it."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code < 500
    except httpx.TransportError:
        return False


def tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server, and after `STOP_S` SIGKILL to whatever of its tree is left."""
    born = {pid: stat[_BORN] for pid in process_tree(process.pid) if (stat := _stat(pid)) is not None}
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in {*born, *process_tree(process.pid)}:
        stat = _stat(pid)
        if stat is not None and stat[_BORN] == born.get(pid, stat[_BORN]):  # not another that was given its number
            _kill(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def process_tree(root: int) -> list[int]:
    """`root`, its descendants, and whoever else is in its session: a process whose parent has ended stays in it."""
    stats = {pid: stat for pid in _all_pids() if (stat := _stat(pid)) is not None}
    tree = {pid for pid, stat in stats.items() if pid == root or int(stat[_SESSION]) == root}
    while grown := {pid for pid, stat in stats.items() if int(stat[_PARENT]) in tree} - tree:
        tree |= grown
    return sorted(tree)


def usage_of(pids: Sequence[int]) -> Usage:
    stats = [stat for pid in pids if (stat := _stat(pid)) is not None]
    ticks = sum(int(stat[field]) for stat in stats for field in (_USER, _SYSTEM, _DEAD_USER, _DEAD_SYSTEM))
    return Usage(
        cpu_s=ticks / _TICKS_PER_S,
        rss_bytes=sum(int(stat[_RSS]) for stat in stats) * _PAGE_BYTES,
        pss_bytes=sum(_pss_bytes(pid) for pid in pids),
        threads=sum(int(stat[_THREADS]) for stat in stats),
        descriptors=sum(_descriptors(pid) for pid in pids),
    )


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """None when the process has ended in the meantime."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _descriptors(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return 0
