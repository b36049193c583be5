"""Answers that nobody reads: those of slow readers stay, those of clients that have stopped do not."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from typing import cast

import numpy as np
import pytest

from service.http.unread import PROGRESS, UnreadAnswers, unread_bytes
from tests.service.bad_inputs import npy
from tests.service.conftest import Generating
from tests.service.serving import serving, until


class Reader:
    """A transport whose client reads when the test says so."""

    def __init__(self, size: int) -> None:
        self.size, self.aborted, self.asked = size, False, 0

    def get_write_buffer_size(self) -> int:
        self.asked += 1
        return self.size

    def get_extra_info(self, name: str) -> None:
        """It has no socket."""

    def abort(self) -> None:
        self.aborted = True


def watched(unread: UnreadAnswers, size: int) -> Reader:
    reader = Reader(size)
    unread.watch(cast(asyncio.Transport, reader))
    return reader


@pytest.mark.asyncio
async def test_who_reads_on_is_left_alone_and_who_does_not_is_not() -> None:
    unread = UnreadAnswers(0.4)
    slow, still, quick, gone = (watched(unread, 10 * PROGRESS) for _ in range(4))
    quick.size = 0
    unread.forget(cast(asyncio.Transport, gone))
    for _ in range(8):
        await asyncio.sleep(0.1)
        slow.size -= PROGRESS
    assert not slow.aborted and still.aborted
    assert not quick.aborted and not gone.aborted
    await asyncio.sleep(1)
    assert slow.aborted  # it has stopped


@pytest.mark.asyncio
async def test_an_answer_costs_the_same_however_many_wait() -> None:
    """Each asked all the others how much they have: of 5,000, 33 bytes from a stranger held the event loop for 2 ms."""
    unread = UnreadAnswers(60, most_bytes=100)
    waiting = [watched(unread, 1) for _ in range(99)]
    asked = sum(one.asked for one in waiting)
    watched(unread, 1)
    assert sum(one.asked for one in waiting) == asked
    waiting[0].size, waiting[1].size = 0, 50
    last = watched(unread, 1)  # now one has to go, if what has been read since does not make the room
    assert [one.aborted for one in (*waiting, last)] == [False, True, *[False] * 98]


@pytest.mark.asyncio
async def test_the_time_of_a_later_answer_begins_anew() -> None:
    """It was cut off at the look of the first one, a moment after it had begun."""
    unread = UnreadAnswers(0.2)
    reader = watched(unread, PROGRESS)
    reader.size = 0
    await asyncio.sleep(0.15)
    reader.size = 10 * PROGRESS
    unread.watch(cast(asyncio.Transport, reader))
    await asyncio.sleep(0.1)
    assert not reader.aborted
    await asyncio.sleep(0.2)
    assert reader.aborted


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked")
def test_what_the_kernel_holds_is_unread_too() -> None:
    """It holds megabytes and takes more in large steps: a client that read all the time was cut off."""

    class Sending(Reader):
        def get_extra_info(self, name: str) -> socket.socket:  # type: ignore[override]
            return sender

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.getsockname())
        sender, _ = server.accept()
        with sender:
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sender.send(bytes(1 << 16))
            transport = cast(asyncio.Transport, Sending(1000))
            before = unread_bytes(transport)
            assert before > 1000 + PROGRESS
            client.settimeout(5)
            received = sum(len(client.recv(1 << 16)) for _ in range(40))
            until(lambda: unread_bytes(transport) < before)
            assert received > 0
            assert (
                unread_bytes(cast(asyncio.Transport, Sending(0))) == 0
            )  # what the kernel will send needs no memory here


@pytest.mark.asyncio
async def test_together_they_are_bounded_at_once() -> None:
    unread = UnreadAnswers(60, most_bytes=100)
    first, largest = watched(unread, 40), watched(unread, 50)
    assert not largest.aborted
    last = watched(unread, 20)
    assert largest.aborted and not first.aborted and not last.aborted
    assert not watched(unread, 40).aborted


@pytest.mark.asyncio
async def test_one_alone_may_be_larger_than_all_together() -> None:
    """It was always cut off, however fast its client read."""
    unread = UnreadAnswers(0.05, most_bytes=10 * PROGRESS)
    large = watched(unread, 20 * PROGRESS)
    assert not large.aborted
    assert not watched(unread, 1).aborted and large.aborted
    still = watched(UnreadAnswers(0.05, most_bytes=1), 20 * PROGRESS)
    await asyncio.sleep(0.1)
    assert still.aborted  # in time it is bounded as every other


def test_a_client_that_reads_nothing_loses_its_connection(generating: Generating) -> None:
    """Its answer stayed in memory for as long as it kept the connection."""
    codes = npy(np.zeros((256, 7, 7), np.int32))
    lines = ("POST /decode HTTP/1.1", "Host: x", "Content-Type: application/x-npy", "Accept: application/x-npy")
    request = "\r\n".join((*lines, f"Content-Length: {len(codes)}", "", "")).encode() + codes
    with serving(*generating.folders, VQSERVE_HEAD_TIMEOUT_S="0.4") as (_, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(10)
            connection.connect((host, int(port)))
            for _ in range(40):  # answers of 200 kB: more than the sockets' buffers hold
                connection.sendall(request)
            with pytest.raises(ConnectionError):
                while True:
                    connection.sendall(request)
