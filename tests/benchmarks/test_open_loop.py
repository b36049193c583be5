"""The generator keeps its rate whatever the server does, and counts the wait of a request from when it was due."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.open_loop import FAILED, UNANSWERED, answer_of, arrivals, encode, open_loop
from benchmarks.wrk import Request

ASK = Request("/x", b"body", {"Content-Type": "image/png"})
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def answering(answer: bytes, pause_s: float = 0.0) -> Iterator[int]:
    """A server that answers every request with these bytes after a pause. Yields its port."""
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(ASK.body)
                await asyncio.sleep(pause_s)
                writer.write(answer)
                if not answer:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]

    async def close() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    due = arrivals(1000, 20)
    assert abs(len(due) - 20_000) < 4 * np.sqrt(20_000)
    gaps = np.diff(due)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05
    assert (due[:-1] <= due[1:]).all()
    assert due[-1] < 20


def test_every_request_is_answered_once() -> None:
    with answering(OK) as port:
        offered = open_loop("127.0.0.1", port, ASK, per_second=200, seconds=0.5)
    assert offered.statuses() == {"200": len(arrivals(200, 0.5))}


def test_a_slow_server_does_not_slow_the_arrivals_down() -> None:
    with answering(OK, pause_s=0.3) as port:
        offered = open_loop("127.0.0.1", port, ASK, per_second=100, seconds=0.4)
    assert offered.count(200) == len(arrivals(100, 0.4))
    assert offered.latencies(200).min() >= 0.3
    assert max(answer.due_s for answer in offered.answers) < 0.4


@pytest.mark.parametrize(
    ("answer", "pause_s", "limit_s", "status"), [(b"", 0.0, 60.0, FAILED), (OK, 600.0, 0.2, UNANSWERED)]
)
def test_broken_and_silent_connections_are_counted(answer: bytes, pause_s: float, limit_s: float, status: int) -> None:
    with answering(answer, pause_s) as port:
        offered = open_loop("127.0.0.1", port, ASK, per_second=50, seconds=0.2, limit_s=limit_s)
    assert offered.count(status) == len(offered.answers) > 0


def test_what_is_sent_is_one_request() -> None:
    head, body = encode(ASK, "h", 1).split(b"\r\n\r\n")
    assert head.split(b"\r\n") == [b"POST /x HTTP/1.1", b"Host: h:1", b"Content-Type: image/png", b"Content-Length: 4"]
    assert body == b"body"


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (OK, (200, False)),
        (OK[:-1], None),
        (b"HTTP/1.1 200 OK\r\nContent-Len", None),
        (b"HTTP/1.1 429 Too Many\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", (429, True)),
    ],
)
def test_answers_are_read_to_their_end(received: bytes, expected: tuple[int, bool] | None) -> None:
    assert answer_of(received) == expected
