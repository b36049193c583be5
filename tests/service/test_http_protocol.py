"""Answers as the socket sees them: whole ones in one packet, streams not held back. And what the router still does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from service.http_protocol import JoiningTransport
from tests.conftest import PICTURES
from tests.service.conftest import Generating
from tests.service.serving import serving

DIGIT = (PICTURES / "digit_7.png").read_bytes()


class Recorder:
    """A transport that remembers each system call that it would make."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []

    def writelines(self, chunks: list[bytes]) -> None:
        self.calls.append(b"".join(chunks))

    def close(self) -> None:
        self.calls.append(b"(closed)")

    def is_closing(self) -> bool:
        return b"(closed)" in self.calls


@pytest.mark.asyncio
async def test_what_is_written_together_goes_together_and_nothing_waits_for_longer_than_a_turn() -> None:
    recorder = Recorder()
    transport = JoiningTransport(recorder, asyncio.get_running_loop())  # type: ignore[arg-type]
    transport.write(b"head ")
    transport.write(b"body")
    transport.flush()
    assert recorder.calls == [b"head body"]
    transport.write(b"event")
    assert recorder.calls == [b"head body"]
    await asyncio.sleep(0)
    assert recorder.calls == [b"head body", b"event"]
    transport.write(b"last")
    transport.close()
    assert recorder.calls[2:] == [b"last", b"(closed)"]
    await asyncio.sleep(0)
    assert recorder.calls[4:] == []
    assert transport.is_closing()


@pytest.fixture(scope="module")
def address(generating: Generating) -> Iterator[tuple[str, int]]:
    with serving(*generating.folders) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_an_answer_arrives_whole_and_the_connection_stays(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        for _ in range(20):
            connection.sendall(post("/encode", DIGIT, "Content-Type: image/png"))
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert f"content-length: {len(body)}".encode() in head
            assert body.endswith(b"}")


def test_pipelined_requests_are_answered_in_order(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        ids = [f"id-{number}" for number in range(5)]
        sent = [post("/encode", DIGIT, "Content-Type: image/png", f"X-Request-ID: {one}") for one in ids]
        connection.sendall(b"".join(sent))
        received = b""
        while received.count(b"codebook_size") < len(ids):
            received += connection.recv(65536)
        assert [line.split(b": ")[1].decode() for line in received.split(b"\r\n") if b"x-request-id" in line] == ids


def test_the_head_of_a_stream_does_not_wait_for_its_end(address: tuple[str, int]) -> None:
    asked = post("/generate", b"{}", "Content-Type: application/json", "Accept: text/event-stream")
    with socket.create_connection(address) as connection:
        connection.sendall(asked)
        first = connection.recv(65536)
        assert first.startswith(b"HTTP/1.1 200")
        assert b"event: done" not in first
        received = first
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
        assert received.count(b"event: row") == 7
        assert b"event: done" in received


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/encode/", 404),
        ("GET", "/encode", 405),
        ("HEAD", "/healthz", 200),
        ("OPTIONS", "/encode", 405),
        ("GET", "/models/digits", 200),
        ("GET", "/models/none", 404),
        ("GET", "/", 200),
    ],
)
def test_what_has_no_direct_handler_still_reaches_the_router(
    generator: TestClient, method: str, path: str, status: int
) -> None:
    response = generator.request(method, path)
    assert response.status_code == status
    assert response.headers["x-content-type-options"] == "nosniff"
