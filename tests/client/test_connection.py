"""What a client is made with: time limits, URLs, and what it sends of Python's values."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.client.conftest import serving
from tests.client.test_client import DONE, scripted
from tests.conftest import PICTURES, Tiny
from vqserve import AsyncClient, Client, UnexpectedAnswerError, VqserveError, connection, operations
from vqserve.command_line import main
from vqserve.problems import problem_of

DIGIT = PICTURES / "digit_7.png"


def test_the_wait_for_a_free_connection_has_no_limit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many calls at once, those that had no connection yet after `timeout_s` ended with PoolTimeout."""
    real = httpx.AsyncClient
    narrow = httpx.Limits(max_connections=1)
    monkeypatch.setattr(httpx, "AsyncClient", lambda **given: real(**given, limits=narrow))

    async def hold(url: str) -> list[Any]:
        async with AsyncClient(url, timeout_s=1.5) as client:
            held = await client._http.send(client._http.build_request("GET", "/models"), stream=True)
            waiting = asyncio.gather(*(client.models() for _ in range(3)))
            await asyncio.sleep(2)
            await held.aclose()
            return list(await waiting)

    with serving(tiny) as url:
        assert len(asyncio.run(hold(url))) == 3
    with Client("http://x", timeout_s=2.5) as client:
        assert client._http.timeout == httpx.Timeout(2.5, pool=None)


@pytest.mark.parametrize("url", ["http://foo..bar:8000", f"http://{'a' * 64}.de", "http://.foo"])
def test_a_host_that_is_no_name_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It was a UnicodeError at the first call."""
    with pytest.raises(VqserveError, match="its host has an empty part, or one of more than 63"):
        Client(url)
    assert main(["info", "--url", url]) == 1
    assert "is no URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://me:secret@127.0.0.1:9", "no answer from http://127.0.0.1:9: "),
        ("me:secret@localhost:8000", "'localhost:8000' is no URL: write http://localhost:8000"),
        ("http://me:secret@localhost:80a0", "'http://localhost:80a0' is no URL: Invalid port: '80a0'"),
        ("http://me:sec/ret@localhost:9", "the URL of 'http://localhost:9' has signs in its user or password"),
        ("http://me:secret@foo..bar", "'http://foo..bar' is no URL"),
    ],
)
def test_no_message_has_the_password(
    url: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqserve.synchronous.time.sleep", lambda _: None)
    for arguments in (["--url", url], []):
        monkeypatch.setenv("VQSERVE_URL", url)
        assert main(["info", *arguments]) == 1
        err = capsys.readouterr().err
        assert said in err and "sec" not in err and "me:" not in err


def test_the_name_of_a_file_is_not_sent(tmp_path: Path) -> None:
    """A name that is no UTF-8 was a UnicodeEncodeError."""
    path = tmp_path / "caf\udce9.png"
    path.write_bytes(DIGIT.read_bytes())
    transport, seen = scripted(httpx.Response(200, content=b"\xf6Qc"), httpx.Response(200, content=b"\xf6Qc"))
    with Client("http://x", transport=transport) as client:
        client.compress(path)
        client.compress(DIGIT)
    for request in seen:
        assert b'filename="picture"' in request.content and b"digit_7" not in request.content


def test_numbers_and_arrays_of_numpy_are_sent_as_json() -> None:
    known = np.array([[1, 2], [3, 4]])
    mask = np.array([[True, False], [False, True]])
    answers = [httpx.Response(200, json=DONE) for _ in range(3)]
    transport, seen = scripted(*answers, httpx.Response(200, content=b"\xf6Qc"))
    with Client("http://x", transport=transport) as client:
        client.generate(seed=np.int64(3), n=np.int32(1), temperature=np.float32(0.5), known=known)
        client.generate(known={"codes": known, "mask": mask})
        client.generate(known=[list(known[0]), [None, None]])
        client.compress(DIGIT, label=np.int64(3), effort=np.float32(0.5))
    assert json.loads(seen[0].content) == {"seed": 3, "n": 1, "temperature": 0.5, "known": [[1, 2], [3, 4]]}
    assert json.loads(seen[1].content)["known"] == {"codes": [[1, 2], [3, 4]], "mask": [[True, False], [False, True]]}
    assert json.loads(seen[2].content)["known"] == [[1, 2], [None, None]]
    assert dict(seen[3].url.params) == {"label": "3", "effort": "0.5"}


@pytest.mark.parametrize("body", [b'{"type": "urn:', b"[1]", b"\xff"])
def test_a_broken_problem_document_counts_by_its_status(body: bytes) -> None:
    """It was a bare JSONDecodeError, or an AttributeError."""
    headers = {"Content-Type": "application/problem+json", "X-Request-ID": "an-id"}
    error = problem_of(httpx.Response(502, content=body, headers=headers))
    assert (error.status, error.type, error.title) == (502, "about:blank", "Bad Gateway")
    assert error.request_id == "an-id"


@pytest.mark.parametrize(("event", "data"), [("row", '{"row": 0, "it'), ("row", "{}"), ("done", "[]"), ("error", "{")])
def test_a_broken_event_is_an_unexpected_answer(event: str, data: str) -> None:
    """It was a bare JSONDecodeError, KeyError or TypeError."""
    events = operations.Events()
    with pytest.raises(UnexpectedAnswerError, match=f"unknown event '{event}'"):
        [value for line in (f"event: {event}", f"data: {data}", "") for value in events.feed(line)]


def test_an_address_in_brackets_is_a_host() -> None:
    assert connection.base_url("http://[::1]:8000") == "http://[::1]:8000"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://me:secret@localhost:1080"),
        ("HTTP_PROXY", "foo:secret"),
        ("HTTPS_PROXY", "ftp://me:secret@localhost"),
        ("SSL_CERT_FILE", "/nope/secret"),
    ],
)
def test_variables_that_cannot_be_used_are_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were tracebacks, with the proxy's password."""
    monkeypatch.setenv(name, value)
    said = f"one of the variables {connection.VARIABLES} "
    for kind in (Client, AsyncClient):
        with pytest.raises(VqserveError, match=said):
            kind("http://127.0.0.1:9")
    assert main(["info", "--url", "http://127.0.0.1:9"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vqserve: {said}") and name in line and "secret" not in line
