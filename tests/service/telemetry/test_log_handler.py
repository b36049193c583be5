"""A log that nobody reads: lines are left out and counted, and the service goes on."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.telemetry import log_handler
from service.telemetry.log_handler import StandardError
from service.telemetry.logs import JsonFormatter
from tests.conftest import Tiny
from tests.service.process.test_workers import workers_of
from tests.service.serving import answers, free_port, until

SMALL = 4 * 4096  # bytes that a pipe holds: poll says that there is room where a page is free


def small_pipe() -> tuple[int, int]:
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, SMALL)
    return reads, writes


def small_socket() -> tuple[int, int]:
    """As journald gives a service."""
    reads, writes = socket.socketpair()
    writes.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    return reads.detach(), writes.detach()


class Log:
    """A handler, and the other end of what it writes into."""

    def __init__(self, reads: int, writes: int) -> None:
        os.set_blocking(reads, False)
        self.reads, self.stream = reads, open(writes, "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self.handler = StandardError(self.stream)
        self.handler.setFormatter(JsonFormatter())

    def say(self, text: str) -> None:
        self.handler.emit(logging.LogRecord("service", logging.INFO, "", 0, text, (), None))

    def read(self) -> bytes:
        found = b""
        with suppress(BlockingIOError):
            while data := os.read(self.reads, 1 << 16):
                found += data
        return found

    def close(self) -> None:
        self.handler.close()
        self.stream.close()
        os.close(self.reads)


@pytest.fixture
def log_into() -> Iterator[Callable[[tuple[int, int]], Log]]:
    logs: list[Log] = []

    def into(ends: tuple[int, int]) -> Log:
        logs.append(Log(*ends))
        return logs[-1]

    yield into
    for log in logs:
        log.close()


def messages(log: bytes) -> list[str]:
    return [json.loads(line)["message"] for line in log.splitlines()]


@pytest.mark.parametrize(
    ("ends", "own"),
    [(small_pipe, True), (small_pipe, False), (os.openpty, True), (small_socket, False)],
    ids=["pipe", "another user's pipe", "terminal", "socket"],
)
def test_lines_that_nobody_reads_are_left_out_and_counted(
    log_into: Callable[..., Log], monkeypatch: pytest.MonkeyPatch, ends: Callable[[], tuple[int, int]], own: bool
) -> None:
    """The first line for which there was no room was waited for without end."""
    if not own:
        monkeypatch.setattr(log_handler, "_opened_again", lambda descriptor: None)
    log = log_into(ends())
    started = time.monotonic()
    for n in range(2000):
        log.say(f"{n} {'x' * 100}")
    assert time.monotonic() - started < 5
    read = log.read()
    log.say("read again")
    log.say("the last")
    *first, told, again, last = messages(read + log.read())
    assert [line.split()[0] for line in first] == [str(n) for n in range(len(first))]
    assert told == f"{2000 - len(first)} lines of the log are missing: nobody read them"
    assert (again, last) == ("read again", "the last")


def test_the_line_that_tells_it_is_a_line_like_all_others(log_into: Callable[..., Log]) -> None:
    log = log_into(small_pipe())
    for _ in range(200):
        log.say("x" * 100)
    log.read()
    log.say("read again")
    told, again = map(json.loads, log.read().splitlines())
    assert (told["level"], again["level"]) == ("warning", "info")
    assert set(told) == set(again)


@pytest.mark.parametrize("own", [True, False], ids=["own", "another user's"])
def test_a_line_that_is_longer_than_the_pipe_comes_whole(
    log_into: Callable[..., Log], monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Poll says that there is room, for a part of it. The rest would be waited for, or be no JSON."""
    if not own:
        monkeypatch.setattr(log_handler, "_opened_again", lambda descriptor: None)
    log, read, said = log_into(small_pipe()), b"", 0
    log.say("x" * 5 * SMALL)
    while b"\n" not in read:
        read += log.read()
        log.say("short")
        said += 1
    log.say("the last")
    long, *told, last = messages(read + log.read())
    assert (long, last) == ("x" * 5 * SMALL, "the last")
    assert said > 2 and f"{said - told.count('short')} lines of the log are missing: nobody read them" in told


def test_a_reader_that_is_only_busy_misses_nothing(
    log_into: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has to wait for its share of a CPU."""
    monkeypatch.setattr(log_handler, "_PATIENCE_MS", 30_000)  # this machine may be busy too
    log, read = log_into(small_pipe()), list[bytes]()

    def reads() -> None:
        while b"the last" not in b"".join(read[-2:]):
            time.sleep(0.005)
            read.append(log.read())

    reader = threading.Thread(target=reads)
    reader.start()
    for n in range(300):
        log.say(f"{n} {'x' * 100}")
    log.say("the last")
    reader.join(30)
    assert [line.split()[0] for line in messages(b"".join(read))] == [*map(str, range(300)), "the"]


def test_who_shares_the_pipe_still_waits_for_its_reader(log_into: Callable[..., Log]) -> None:
    """O_NONBLOCK is of all who have the same open file: what else they write would fail."""
    log = log_into(small_pipe())
    for _ in range(200):
        log.say("x" * 100)
    assert os.get_blocking(log.stream.fileno())


def test_of_a_named_pipe_the_reader_may_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line was a traceback, into the same pipe."""
    os.mkfifo(tmp_path / "log")
    reads = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    log = Log(reads, os.open(tmp_path / "log", os.O_WRONLY))
    os.close(reads)
    log.say("lost")
    log.reads = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    log.say("read")
    assert messages(log.read()) == ["1 lines of the log are missing: nobody read them", "read"]
    assert capsys.readouterr().err == ""
    log.close()


def test_lines_without_room_on_the_disk_are_counted_and_none_is_torn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What there was room for stayed half a line, which the next one was written behind; how many were lost no line
    said. A limit of a file's size is here what a full disk is elsewhere."""
    log = Log(os.open(tmp_path / "log", os.O_RDONLY | os.O_CREAT), os.open(tmp_path / "log", os.O_WRONLY))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        for n in range(20):
            log.say(f"{n} {'x' * 200}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "log").stat().st_size == 2000
    log.say("there is room")
    log.say("the last")
    *first, told, again, last = messages(log.read())
    assert [line.split()[0] for line in first] == [str(n) for n in range(len(first))]
    assert told == f"{20 - len(first)} lines of the log are missing: File too large"
    assert (again, last, capsys.readouterr().err) == ("there is room", "the last", "")
    log.close()


def test_what_comes_after_its_end_is_still_written(log_into: Callable[..., Log]) -> None:
    """`logging` closes its handlers before the last threads have ended, and when it is configured again."""
    log = log_into(small_pipe())
    log.handler.close()
    for _ in range(200):
        log.say("x" * 100)
    assert len(messages(log.read())) > 10


def test_a_stream_without_a_descriptor_is_written_to() -> None:
    stream = io.StringIO()
    StandardError(stream).emit(logging.LogRecord("service", logging.INFO, "", 0, "said", (), None))
    assert stream.getvalue() == "said\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_whose_log_nobody_reads_answers_and_ends(tiny: Tiny, workers: str) -> None:
    """It stood still at the line for which the pipe had no room, and neither SIGTERM nor Ctrl-C ended it. Workers
    outlived their supervisor."""
    reads, writes = small_pipe()
    command = [sys.executable, "-m", "service", "--bundle", str(tiny.grey), "--port", str(free_port())]
    variables = {"VQSERVE_WORKERS": workers, "VQSERVE_ACCESS_LOG": "true", "VQSERVE_DEVICE": "cpu"}
    process = subprocess.Popen(command, env={**os.environ, **variables, "VQSERVE_DRAIN_S": "0"}, stderr=writes)
    os.close(writes)
    try:
        address = f"http://127.0.0.1:{command[-1]}"
        until(lambda: answers(f"{address}/readyz"), 60)
        for _ in range(20):
            assert httpx.get(f"{address}/{'x' * 2000}").status_code == 404  # with its path in the log
        assert answers(f"{address}/healthz")
        children = workers_of(process.pid)
        process.terminate()
        assert process.wait(20) == (-signal.SIGTERM if workers == "1" else 0)
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    finally:
        process.kill()
        os.close(reads)  # ends the wait of whatever waits for its reader
        process.wait()
