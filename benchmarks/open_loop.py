"""An open loop: requests leave at a fixed rate whether or not earlier ones were answered, as strangers' requests do.

In: an address, one request, a rate. Out: one `Answer` a request, its latency counted from the moment it was due, so
that waiting in a queue shows. Arrivals are a Poisson process with a fixed seed. Near a due moment the loop spins
instead of sleeping: timers are a millisecond coarse, the answers are faster. It therefore needs a core of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import numpy as np

from benchmarks.wrk import Request

SPIN_S = 0.002
IDLE_S = 3.0  # an idle connection that is older may be closed by the server just now, which would be no failure of it
MAX_CONNECTIONS = 2_000  # a request that finds them all busy waits here, and its latency counts the wait
FAILED, UNANSWERED = 0, -1  # instead of a status: the connection broke; no answer within the limit
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"


@dataclass(frozen=True, slots=True)
class Answer:
    due_s: float  # since the start
    latency_s: float  # from due to the last byte
    status: int


@dataclass(frozen=True)
class Offered:
    """All answers of a run and how late the generator itself sent the slowest percent: its own share of p99."""

    answers: Sequence[Answer]
    seconds: float
    late_p99_s: float

    def latencies(self, *statuses: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([answer.latency_s for answer in self.answers if answer.status in statuses], np.float64)

    def count(self, *statuses: int) -> int:
        return sum(answer.status in statuses for answer in self.answers)

    def statuses(self) -> dict[str, int]:
        values, counts = np.unique([answer.status for answer in self.answers], return_counts=True)
        names = {FAILED: "connection failed", UNANSWERED: "unanswered"}
        return {names.get(int(value), str(value)): int(n) for value, n in zip(values, counts, strict=True)}


def open_loop(
    host: str, port: int, request: Request, per_second: float, seconds: float, limit_s: float = 60.0
) -> Offered:
    """Offer `per_second` for `seconds`, then wait at most `limit_s` for what is still open."""
    # asyncio's own loop: uvloop's close() may hang when connections were aborted in its last turn
    return asyncio.run(_Generator(host, port, encode(request, host, port), limit_s).offer(per_second, seconds))


def encode(request: Request, host: str, port: int) -> bytes:
    """The bytes of the request on the wire."""
    headers = {"Host": f"{host}:{port}", **request.headers, "Content-Length": str(len(request.body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {request.path} HTTP/1.1\r\n{lines}\r\n".encode() + request.body


def arrivals(per_second: float, seconds: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Due times in [0, seconds), exponential gaps of mean 1 / `per_second`."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / per_second, int(per_second * seconds * 1.2) + 100)
    due = np.cumsum(gaps)
    return due[due < seconds]


def percentile_ms(latencies_s: np.ndarray[Any, np.dtype[np.float64]], percent: float) -> float | None:
    """None of no answers at all."""
    return round(float(np.percentile(latencies_s, percent)) * 1e3, 3) if len(latencies_s) else None


class _Generator:
    def __init__(self, host: str, port: int, request: bytes, limit_s: float) -> None:
        self._address = (host, port)
        self._request = request
        self._limit_s = limit_s
        self._idle: deque[_Connection] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[int] = deque()
        self._opened = 0
        self._alive: set[_Connection] = set()
        self._open: dict[int, float] = {}  # request number -> due
        self._answers: list[Answer] = []
        self._started = 0.0

    async def offer(self, per_second: float, seconds: float) -> Offered:
        due = arrivals(per_second, seconds)
        late: list[float] = []
        self._started = perf_counter() + 0.05
        for number, due_s in enumerate(due.tolist()):
            while (ahead := due_s - (perf_counter() - self._started)) > 0:
                await asyncio.sleep(ahead - SPIN_S if ahead > SPIN_S else 0)
            late.append(-ahead)
            self._open[number] = due_s
            self._send(number)
        end = perf_counter() + self._limit_s
        while self._open and perf_counter() < end:
            await asyncio.sleep(0.01)
        for due_s in self._open.values():
            self._answers.append(Answer(due_s, perf_counter() - self._started - due_s, UNANSWERED))
        self._open.clear()
        self._waiting.clear()
        for connection in list(self._alive):
            connection.abort()
        await asyncio.sleep(0)
        return Offered(self._answers, seconds, float(np.percentile(late, 99)) if late else 0.0)

    def _send(self, number: int) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh:
                connection.send(number, self._request)
                return
            connection.close()
        if self._opened >= MAX_CONNECTIONS:
            self._waiting.append(number)
            return
        self._opened += 1
        task = asyncio.get_running_loop().create_task(self._send_on_a_new_one(number))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _send_on_a_new_one(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self.finished, self.lost), *self._address)
        except OSError:
            self._record(number, FAILED)
            self._opened -= 1
            self._send_one_that_waits()
            return
        self._alive.add(connection)
        connection.send(number, self._request)

    def finished(self, connection: _Connection, number: int, status: int) -> None:
        self._record(number, status)
        if not connection.closed:
            self._idle.append(connection)
            self._send_one_that_waits()

    def lost(self, connection: _Connection) -> None:
        self._alive.discard(connection)
        self._opened -= 1
        self._send_one_that_waits()

    def _send_one_that_waits(self) -> None:
        if self._waiting:
            self._send(self._waiting.popleft())

    def _record(self, number: int, status: int) -> None:
        due_s = self._open.pop(number, None)
        if due_s is not None:
            self._answers.append(Answer(due_s, perf_counter() - self._started - due_s, status))


class _Connection(asyncio.Protocol):
    """One request at a time. Understands answers with a Content-Length, which all of /encode's are."""

    def __init__(
        self, on_answer: Callable[[_Connection, int, int], None], on_end: Callable[[_Connection], None]
    ) -> None:
        self._on_answer = on_answer
        self._on_end = on_end
        self._number: int | None = None
        self._received = b""
        self._answered = 0.0
        self.closed = False

    @property
    def fresh(self) -> bool:
        return not self.closed and perf_counter() - self._answered < IDLE_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it

    def send(self, number: int, request: bytes) -> None:
        self._number = number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        found = answer_of(self._received)
        if found is None or self._number is None:
            return
        status, closes = found
        number, self._number, self._received = self._number, None, b""
        self._answered = perf_counter()
        if closes:
            self.close()
        self._on_answer(self, number, status)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._number is not None:
            number, self._number = self._number, None
            self._on_answer(self, number, FAILED)
        self._on_end(self)

    def close(self) -> None:
        self.closed = True
        self._transport.close()

    def abort(self) -> None:
        self.closed, self._number = True, None
        self._transport.abort()


def answer_of(received: bytes) -> tuple[int, bool] | None:
    """(status, whether the server closes the connection), or None while the answer is incomplete."""
    end = received.find(_HEAD_END)
    if end < 0:
        return None
    head = received[: end + 2].lower()
    start = head.find(_LENGTH)
    if start < 0:
        raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
    length = int(head[start + len(_LENGTH) : head.index(b"\r\n", start + 2)])
    if len(received) < end + len(_HEAD_END) + length:
        return None
    return int(head[9:12]), b"\r\nconnection: close\r\n" in head
