"""Heads and bodies as a proxy in front sees them: trailers, transfer codings, targets, and requests behind others."""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import PICTURES, Tiny
from tests.service.bad_inputs import npy_of_header
from tests.service.conftest import Generating
from tests.service.serving import post, serving

DIGIT = (PICTURES / "digit_7.png").read_bytes()
HOST = b"Host: x\r\n"


def answer(address: tuple[str, int], sent: bytes) -> bytes:
    """All that comes until the server ends the connection."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def chunked(head: bytes, trailers: bytes) -> bytes:
    start = b"POST /encode HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n" + HOST + head
    return start + b"\r\n%x\r\n%b\r\n0\r\n%b\r\n" % (len(DIGIT), DIGIT, trailers)


@pytest.fixture(scope="module")
def keyed(tiny: Tiny) -> Iterator[tuple[str, int]]:
    with serving(tiny.grey, VQSERVE_API_KEYS="tests:a-secret-key") as (_, url):
        yield "127.0.0.1", int(url.rpartition(":")[2])


def test_a_trailer_is_no_header(keyed: tuple[str, int], address: tuple[str, int]) -> None:
    """Regression: a key in a trailer was as good as one in the head, where it came in one packet with that."""
    head = b"Content-Type: image/png\r\n"
    assert answer(keyed, chunked(head + b"X-API-Key: a-secret-key\r\n", b"")).startswith(b"HTTP/1.1 200")
    assert answer(keyed, chunked(head, b"X-API-Key: a-secret-key\r\n")).startswith(b"HTTP/1.1 401")
    received = answer(address, chunked(head + b"X-Request-ID: mine\r\n", b"X-Request-ID: other\r\nAccept: a/b\r\n"))
    assert received.startswith(b"HTTP/1.1 200") and b"x-request-id: mine\r\n" in received


@pytest.mark.parametrize("before", [0, 2])
def test_a_trailer_that_ends_the_connection_ends_it(address: tuple[str, int], before: int) -> None:
    """Regression: the parser read nothing more, and the answer kept the connection: another request had none."""
    sent = chunked(b"Content-Type: image/png\r\n", b"Connection: close\r\n").replace(b"Connection: close\r\n", b"", 1)
    probe = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    received = answer(address, probe * before + sent + probe)
    assert received.count(b"HTTP/1.1 200") == before + 1
    assert b"\r\nconnection: close\r\n" in received.rpartition(b"HTTP/1.1 200")[2]


@pytest.mark.parametrize(
    "rest",
    [b"nothing\r\n", b"0\r\nContent-Length: 3\r\n\r\n", b"0\r\nPadding: " + b"p" * (1 << 20)],
    ids=["a chunk that is none", "a trailer that is none", "trailers that are too large"],
)
def test_what_breaks_after_its_answer_gets_no_second_one(address: tuple[str, int], rest: bytes) -> None:
    """Regression: a proxy took that for the answer to another client's request."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"POST /nope HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(rest)
        assert connection.recv(65536) == b""


def test_blanks_behind_a_value_are_no_part_of_it(keyed: tuple[str, int]) -> None:
    """A key with one got 401."""
    sent = chunked(b"Content-Type: image/png \t\r\nX-API-Key: a-secret-key \r\nX-Request-ID: mine \t\r\n", b"")
    received = answer(keyed, sent)
    assert received.startswith(b"HTTP/1.1 200") and b"x-request-id: mine\r\n" in received


def test_a_transfer_coding_is_refused_as_a_content_coding_is(address: tuple[str, int]) -> None:
    """It was accepted, and the compressed bytes taken for the picture."""
    sent = chunked(b"Content-Type: image/png\r\n", b"").replace(b"Encoding: chunked", b"Encoding: gzip, chunked")
    received = answer(address, sent)
    assert received.startswith(b"HTTP/1.1 415") and b"without compression" in received


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://a", 200), ("http://a?x=1", 200), ("http://a/healthz?x=1", 200), ("http://a/no", 404)],
)
def test_a_target_in_absolute_form(address: tuple[str, int], target: str, status: int) -> None:
    """One without a path was no request of HTTP/1.1."""
    received = answer(address, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert received.startswith(f"HTTP/1.1 {status}".encode())


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [
        *((1, HOST.replace(b"x", host), b"200") for host in (b"", b"a_b.c:8000", b"[::1]:80", b"a%20b", b"x \t")),
        *((1, HOST.replace(b"x", host), b"400") for host in (b"a b", b"a/b", b"x@y", b"[::1", b"a:b", b"\xc3\xa4")),
        *((version, 2 * HOST, b"400") for version in (0, 1)),
        *((0, hosts, b"200") for hosts in (b"", HOST)),
        (1, b"", b"400"),
    ],
)
def test_a_request_of_http_1_1_names_its_host_once(
    address: tuple[str, int], version: int, hosts: bytes, status: bytes
) -> None:
    received = answer(address, b"GET /healthz HTTP/1.%d\r\nConnection: close\r\n%b\r\n" % (version, hosts))
    assert received.startswith(b"HTTP/1.1 " + status)
    assert (b"The head is none of HTTP/1.1" in received) == (status == b"400")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"GET /healthz HTTP/1.1\r\n", b"200"), (b"nothing\r\n", b"400"), (b"GET /healthz HTTP/1.1\r\nPadding: ", b"431")],
)
def test_every_answer_has_its_date_and_no_cache_keeps_it(address: tuple[str, int], sent: bytes, status: bytes) -> None:
    """Those of the protocol itself had none."""
    end = b"p" * (1 << 20) if status == b"431" else HOST + b"Connection: close\r\n\r\n"
    head = answer(address, sent + end).partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 " + status) and head.count(b"\r\ndate: ") == 1
    assert head.count(b"\r\ncache-control: no-store") == 1


def test_http_1_0_has_no_answer_before_the_answer(address: tuple[str, int]) -> None:
    """It was told to go on, which such a client takes for the answer."""
    head = b"POST /encode HTTP/1.%d\r\nContent-Type: image/png\r\nExpect: 100-continue\r\nContent-Length: %d\r\n"
    for version, first in ((0, b"HTTP/1.1 200"), (1, b"HTTP/1.1 100")):
        sent = head % (version, len(DIGIT)) + HOST + b"Connection: close\r\n\r\n" + DIGIT
        assert answer(address, sent).startswith(first)


@pytest.mark.parametrize(
    "behind",
    [
        b"GET http://[::1 HTTP/1.1\r\nX-Request-ID: second\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nX-Request-ID: second\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nX-Request-ID: second\r\n\r\n",
        b"nothing\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Request-ID: second\r\nPadding: " + b"p" * (1 << 20),  # more than one read gives
    ],
    ids=["a host that is none", "CONNECT", "a target that is none", "no request", "a head that is too large"],
)
def test_what_is_broken_takes_no_answer_of_the_request_before_it(address: tuple[str, int], behind: bytes) -> None:
    """Regression: that got a 400 about a body that it did not have, with the id of the second, or nothing at all."""
    asked = post("/generate", b'{"n": 64}', "Content-Type: application/json", "X-Request-ID: first", "Accept: */*")
    received = answer(address, asked + behind)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"x-request-id: first" in head
    assert f"content-length: {len(body)}".encode() in head


@pytest.mark.parametrize("whole", [1, 2, 4])
def test_a_body_that_breaks_takes_no_answer_of_the_requests_before_it(address: tuple[str, int], whole: int) -> None:
    """Regression: the connection ended at once, without the answers to what had come whole."""
    broken = b"POST /encode HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"\r\nnothing\r\n"
    asked = post("/generate", b'{"n": 64}', "Content-Type: application/json")
    received = answer(address, asked * whole + broken)
    assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1 ") == whole


def test_a_wish_for_another_protocol_with_a_broken_body_is_refused(
    generating: Generating, capfd: pytest.CaptureFixture[str]
) -> None:
    """Regression: no answer, and a traceback in the log."""
    with serving(*generating.folders) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        head = b"POST /decode HTTP/1.1\r\nUpgrade: foo\r\nConnection: upgrade\r\nTransfer-Encoding: gzip\r\n"
        received = answer((host, int(port)), head + HOST + b"\r\nabc")
        process.terminate()
        process.wait(30)
    assert received.startswith(b"HTTP/1.1 400")
    assert "exception" not in capfd.readouterr().err


def test_headers_and_metadata_that_warn_leave_the_log_alone(tiny: Tiny, tmp_path: Path) -> None:
    """A header of ten thousand bytes made three hundred thousand of log, tags of one picture seventeen million."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({'1if 1else ' * 900}1,), }}"
    with serving(tiny.grey) as (process, url):
        for _ in range(2):
            sent = {"content": npy_of_header(header), "headers": {"content-type": "application/x-npy"}}
            assert httpx.post(f"{url}/encode", **sent).status_code == 400
            sent = {"content": picture_with_bad_tags(), "headers": {"content-type": "image/jpeg"}}
            assert httpx.post(f"{url}/encode?fit=resize", **sent).status_code == 200
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert b"py.warnings" not in log


def picture_with_bad_tags() -> bytes:
    """A JPEG whose EXIF has tags that point behind its end."""
    tags = b"".join(struct.pack("<HHII", 0x9000 + number, 2, 1 << 20, 1 << 30) for number in range(50))
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 51)
    exif += struct.pack("<HHII", 0x0112, 3, 1, 1) + tags + bytes(4)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()
