"""Answers as the socket sees them: whole ones in one packet, streams not held back. And what the router still does."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from service.errors import problem_type
from service.http.head_bounds import LARGEST_HEAD, MOST_HEADERS
from service.http.joining import JoiningTransport
from service.http.pipelining import MOST_PIPELINED
from service.settings import Settings
from tests.conftest import PICTURES
from tests.service.bad_inputs import npy
from tests.service.conftest import Generating
from tests.service.serving import post, serving, until

DIGIT = (PICTURES / "digit_7.png").read_bytes()


class Recorder:
    """A transport that remembers each system call that it would make."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []

    def writelines(self, chunks: list[bytes]) -> None:
        assert not self.is_closing(), "uvloop raises"
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


@pytest.mark.asyncio
async def test_what_is_written_for_a_client_that_has_left_is_dropped() -> None:
    """Each event stream that its client reset left an exception of the event loop in the log."""
    recorder = Recorder()
    transport = JoiningTransport(recorder, asyncio.get_running_loop())  # type: ignore[arg-type]
    transport.write(b"event")
    recorder.close()
    transport.flush()
    transport.write(b"last event")
    transport.close()
    assert b"".join(recorder.calls).replace(b"(closed)", b"") == b""


def test_an_answer_arrives_whole_and_the_connection_stays(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        for _ in range(20):
            connection.sendall(post("/encode", DIGIT, "Content-Type: image/png"))
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert f"content-length: {len(body)}".encode() in head
            assert body.endswith(b"}")


def test_the_head_of_a_stream_does_not_wait_for_its_end(address: tuple[str, int]) -> None:
    """With previews of many samples the rows take some 100 ms, however late a busy machine lets the client read."""
    many = b'{"n": 64, "preview": true}'
    asked = post("/generate", many, "Content-Type: application/json", "Accept: text/event-stream")
    with socket.create_connection(address) as connection:
        connection.sendall(asked)
        first = connection.recv(1 << 20)
        assert first.startswith(b"HTTP/1.1 200") and b"\r\ncache-control: no-store\r\n" in first
        assert b"event: done" not in first
        received = first
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
        assert received.count(b"event: row") == 7
        assert b"event: done" in received


def head(size: int, path: str = "/healthz") -> bytes:
    """A request whose URL and headers are this many bytes, four for each header included."""
    padding = size - len(path) - len("Host") - len("x") - len("Padding") - 2 * 4
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nPadding: {'p' * padding}\r\n\r\n".encode()


def everything(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def assert_refused(received: bytes) -> None:
    lines, _, body = received.partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert {b"connection: close", b"content-type: application/problem+json"} <= set(lines.split(b"\r\n"))
    problem = json.loads(body)
    assert (problem["status"], problem["type"]) == (431, problem_type("head-too-large"))
    assert "At most 65536 bytes of URL and headers" in problem["detail"]
    assert problem["error"] == problem["detail"]  # its request may be one of /v2: tritonclient failed without


@pytest.mark.parametrize("size", [LARGEST_HEAD - 1, LARGEST_HEAD])
def test_a_head_up_to_the_limit_is_answered(address: tuple[str, int], size: int) -> None:
    with socket.create_connection(address) as connection:
        for _ in range(2):  # the next one is counted anew
            connection.sendall(head(size))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_as_many_headers_as_the_limit_are_answered(address: tuple[str, int]) -> None:
    """Each takes some hundred bytes of memory: without a bound a head of 64 KiB took 1.5 MB."""
    with socket.create_connection(address) as connection:
        for _ in range(2):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * (MOST_HEADERS - 1) + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        head(LARGEST_HEAD + 1),
        head(4 * LARGEST_HEAD),
        b"GET /" + b"u" * LARGEST_HEAD + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * LARGEST_HEAD,
        b"GET / HTTP/1.1\r\nPadding: " + b"p" * (1 << 23),
        b"GET / HTTP/1.1\r\nPadding: " + b"p" * (LARGEST_HEAD + (1 << 14)),
        b"GET / HTTP/1.1\r\n" + b"n" * (1 << 23),
        b"GET /" + b"u" * (1 << 23),
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * MOST_HEADERS + b"\r\n",
    ],
    ids=[
        "one above",
        "long header",
        "long URL",
        "many headers",
        "endless value",
        "a value of one read",
        "endless name",
        "endless URL",
        "one header more",
    ],
)
def test_a_head_above_the_limit_gets_431_complete_or_not(address: tuple[str, int], sent: bytes) -> None:
    """Regression: whatever came before the empty line was kept."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head(100))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        before = counted(address, "head-too-large")
        connection.sendall(sent)
        assert_refused(everything(connection))
    assert counted(address, "head-too-large") == before + 1


@pytest.fixture
def hasty(generating: Generating) -> Iterator[tuple[str, int]]:
    with serving(*generating.folders, VQSERVE_HEAD_TIMEOUT_S="0.4") as (_, url):
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


def counted(address: tuple[str, int], reason: str) -> float:
    """Of a page that was made for this call: another counts one more request for /metrics than the first did."""
    first = page = metrics_of(address)
    while page == first:
        page = metrics_of(address)
    lines = page.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vqserve_refused") and reason in line)


def metrics_of(address: tuple[str, int]) -> str:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return everything(connection).decode().partition("\r\n\r\n")[2]


@pytest.fixture(scope="module")
def brief(generating: Generating) -> Iterator[tuple[str, int]]:
    with serving(*generating.folders, VQSERVE_KEEP_ALIVE_S="1.5") as (_, url):
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


def test_an_idle_connection_lives_as_long_as_the_setting_says(brief: tuple[str, int]) -> None:
    """It was uvicorn's 5 s, less than what proxies and clients keep theirs, whose next request was lost."""
    assert Settings().keep_alive_s > 60
    with socket.create_connection(brief, timeout=20) as connection:
        for _ in range(2):
            connection.sendall(head(100))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert everything(connection) == b""
        assert 1 < time.monotonic() - began < 4.5


@pytest.mark.parametrize("first", [b"", head(100)], ids=["a new connection", "one that has been answered"])
def test_a_head_that_takes_too_long_gets_408(hasty: tuple[str, int], first: bytes) -> None:
    """Regression: a byte now and then kept a connection, and what it had sent, for ever."""
    with socket.create_connection(hasty, timeout=10) as connection:
        if first:
            connection.sendall(first)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        for byte in head(100)[:20]:
            with suppress(ConnectionError):
                connection.sendall(bytes([byte]))
            time.sleep(0.03)
        lines, _, body = everything(connection).partition(b"\r\n\r\n")
        assert time.monotonic() - began < 5
    assert lines.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(body)["type"] == problem_type("head-too-slow")
    assert counted(hasty, "head-too-slow") == 1


def test_a_head_that_comes_in_time_may_have_a_slow_body_and_a_silent_connection_ends(hasty: tuple[str, int]) -> None:
    request = post("/encode", DIGIT, "Content-Type: image/png")
    with socket.create_connection(hasty, timeout=10) as silent, socket.create_connection(hasty) as slow:
        start = request.index(b"\r\n\r\n") + 10
        slow.sendall(request[:start])
        time.sleep(0.8)
        slow.sendall(request[start:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert everything(silent) == b""
    assert counted(hasty, "head-too-slow") == 0


def test_a_head_that_trickles_in_is_answered_and_its_body_does_not_count(address: tuple[str, int]) -> None:
    body = npy(np.zeros((256, 28, 28, 1), np.uint8))
    assert len(body) > 3 * LARGEST_HEAD
    request = post("/encode", body, "Content-Type: application/x-npy", f"Padding: {'p' * 60_000}")
    with socket.create_connection(address, timeout=10) as connection:
        for start in range(0, len(request), 20_000):
            connection.sendall(request[start : start + 20_000])
            time.sleep(0.001)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("trailers", [b"a: b\r\n" * LARGEST_HEAD, b"a: " + b"b" * (1 << 20)])
def test_trailers_without_end_end_the_connection(address: tuple[str, int], trailers: bytes) -> None:
    start = b"POST /encode HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    with socket.create_connection(address, timeout=10) as connection, suppress(ConnectionError):
        connection.sendall(start + trailers)
        assert everything(connection) == b""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head(100))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")


@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_a_wish_for_another_protocol_is_ignored_and_the_body_read(address: tuple[str, int], pieces: int) -> None:
    """`curl --http2` and Java's client ask for h2c: their bodies were taken for the next request."""
    sent = post("/encode", DIGIT, "Content-Type: image/png", *UPGRADE)
    chunked = b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n"
    sent += chunked + "\r\n".join(UPGRADE).encode() + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(DIGIT), DIGIT)
    sent += f"GET /healthz HTTP/1.1\r\nHost: x\r\n{UPGRADE[0]}\r\n{UPGRADE[1]}\r\n\r\n".encode() + head(100)
    with socket.create_connection(address, timeout=10) as connection:
        size = -(-len(sent) // pieces)
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
            time.sleep(0.002)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 4 or not received.endswith(b"}"):
            received += connection.recv(65536)
    assert received.count(b'"codes"') == 2 and received.count(b'{"status":"ok"}') == 2


def test_many_wishes_in_one_packet_are_ignored_one_after_the_other(address: tuple[str, int]) -> None:
    wish = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(wish * 1500)
        assert everything(connection).count(b"HTTP/1.1 200") == 1 + MOST_PIPELINED


def test_a_body_is_no_request_whatever_the_head_asks_for(address: tuple[str, int]) -> None:
    hidden = head(100)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(post("/encode", hidden, "Content-Type: image/png", "Connection: upgrade", "Upgrade: foo"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 422")
        connection.sendall(head(100))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_upgrade_with_a_body_of_nothing_is_complete(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(
            post("/healthz", b"", *UPGRADE).replace(b"POST", b"GET").replace(b"Length: 0", b"Length: 00")
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "target",
    ["CONNECT a:1", "GET http://a:99999/", "GET http://", "GET http://[::1/", "GET /metrics#x", "GET http://a#x"],
)
def test_a_target_that_is_none_gets_400(address: tuple[str, int], target: str) -> None:
    """The connection ended without an answer, and with a traceback in the log; and with a fragment a target got by the
    rule of a proxy for its path."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert everything(connection).startswith(b"HTTP/1.1 400")


def test_empty_lines_do_not_keep_a_connection(hasty: tuple[str, int]) -> None:
    with socket.create_connection(hasty, timeout=10) as connection:
        connection.sendall(head(100))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")
        began = time.monotonic()
        assert everything(connection) == b""
        assert time.monotonic() - began < 3  # idle ones end after 5 s


@pytest.fixture(scope="module")
def keyed(generating: Generating) -> Iterator[str]:
    with serving(*generating.folders, VQSERVE_API_KEYS="someone:a-secret-key", VQSERVE_MAX_BODY_BYTES="9000000") as (
        _,
        url,
    ):
        yield url


@pytest.mark.parametrize(
    ("path", "key", "size", "status"),
    [
        ("/encode", "wrong", 8 << 20, 401),
        ("/encode", "a-secret-key", 16 << 20, 413),
        ("/nope", "a-secret-key", 8 << 20, 404),
    ],
)
def test_a_client_that_sends_on_reads_its_refusal(keyed: str, path: str, key: str, size: int, status: int) -> None:
    """Python's urllib asks for the end of the connection and sends all before it reads: it saw a reset."""
    headers = {"Content-Type": "image/png", "X-API-Key": key}
    for _ in range(3):  # httpx asks for no end
        assert httpx.post(keyed + path, content=bytes(size), headers=headers, timeout=20).json()["status"] == status
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(keyed + path, bytes(size), headers), timeout=20)  # noqa: S310 - our own server
    with refused.value as answer:
        assert answer.status == status
        assert json.loads(answer.read())["status"] == status


def test_a_slow_sender_reads_its_refusal_too_and_who_never_ends_is_cut_off(
    keyed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = keyed.removeprefix("http://").split(":")
    start = b"POST /encode HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(start)
        for _ in range(12):  # longer than the time that a silent one has
            connection.sendall(b"x" * 1000)
            time.sleep(0.2)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        began = time.monotonic()
        assert everything(connection) == b""
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("expects", ["", "Expect: 100-continue"])
def test_a_request_that_ends_after_its_answer_is_the_last(address: tuple[str, int], expects: str) -> None:
    """The connection stayed, and no client was told: where one asks before it sends, Apache made a 500 of it."""
    request = post("/nope", b"x" * 10, *filter(None, [expects]))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request[:-10])
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 404") and b"\r\nconnection: close\r\n" in answer
        with suppress(ConnectionError):
            connection.sendall(request[-10:] + head(100))
        assert everything(connection) == b""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request + head(100))  # it came whole
        answers = b""
        while not answers.endswith(b'{"status":"ok"}'):
            answers += connection.recv(65536)
        assert answers.startswith(b"HTTP/1.1 404") and b"connection: close" not in answers


def test_what_is_under_way_behind_its_head_comes_before_its_answer(address: tuple[str, int]) -> None:
    """Regression: clients send head and body in two packets, and each refusal ended their connection."""
    request = post("/nope", b"x" * 10)
    with socket.create_connection(address, timeout=10) as connection:
        for _ in range(3):
            connection.sendall(request[:-10])
            time.sleep(0.01)
            connection.sendall(request[-10:])
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 404") and b"connection: close" not in answer


def test_a_long_rest_is_not_awaited(address: tuple[str, int]) -> None:
    start = b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(start + b"x" * 1_000_000)
        began = time.monotonic()
        answer = connection.recv(65536)
        assert time.monotonic() - began < 1
        assert answer.startswith(b"HTTP/1.1 404") and b"\r\nconnection: close\r\n" in answer


def test_a_refused_request_whose_body_never_comes_is_not_awaited(generating: Generating) -> None:
    start = b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 10\r\n\r\n"
    settings = {"VQSERVE_HEAD_TIMEOUT_S": "0.4", "VQSERVE_MAX_CONCURRENT_REQUESTS": "1"}
    with serving(*generating.folders, **settings) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        with (
            socket.create_connection((host, int(port))) as inside,
            socket.create_connection((host, int(port))) as refused,
        ):
            inside.sendall(start)
            refused.settimeout(5)
            time.sleep(0.2)
            refused.sendall(start)
            assert everything(refused) == b""


@pytest.mark.parametrize(
    "sent",
    [b"nothing\r\n\r\n", b"POST /encode HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnothing\r\n"],
    ids=["a head that is none", "a body that is none"],
)
def test_what_is_no_http_gets_a_problem(address: tuple[str, int], sent: bytes) -> None:
    before, left = counted(address, "malformed-request"), counted(address, "client-closed")
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        lines, _, body = everything(connection).partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"connection: close" in lines
    assert json.loads(body)["type"] == problem_type("malformed-request")
    until(lambda: counted(address, "malformed-request") == before + 1)
    assert counted(address, "client-closed") == left


def test_a_body_that_is_none_is_logged_and_counted_as_it_was_answered(
    generating: Generating, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log and metrics had a client that had left, 499, and no line the id that the client was told."""
    start, ids = post("/encode", b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b""), list[str]()
    with serving(generating.folders[0], VQSERVE_ACCESS_LOG="true") as (_, url):
        host, port = url.removeprefix("http://").split(":")
        for parts in ([start + b"zz\r\n"], [start + b"5\r\nabcde\r\n", b"zz\r\n"]):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(0.2)
                answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 400 ")
            ids.append(json.loads(answer.partition(b"\r\n\r\n")[2])["instance"].rpartition(":")[2])
        both = 'vqserve_requests_total{route="/encode",status="400"} 2.0'
        until(lambda: both in httpx.get(f"{url}/metrics").text)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    logged = {line["request_id"]: (line["path"], line["status"]) for line in lines if "request_id" in line}
    assert [logged.get(one) for one in ids] == [("/encode", 400)] * 2


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nnothing\r\n",
        b"Padding: p\r\nno header\r\n\r\n",
        b"Padding: " + b"p" * (1 << 20),
    ],
    ids=["a body that is none", "a header that is none", "a head that is too large"],
)
def test_what_the_protocol_refuses_has_the_id_that_it_came_with(address: tuple[str, int], rest: bytes) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"POST /encode HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\n" + rest)
        lines, _, body = everything(connection).partition(b"\r\n\r\n")
    assert b"x-request-id: mine" in lines.split(b"\r\n")
    assert json.loads(body)["instance"] == "urn:vqserve:request:mine"


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
