"""What a client is made with: time limits, URLs, and what it sends of Python's values."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.client.scripted import DONE, MODELS, scripted
from tests.conftest import PICTURES
from vqserve import AsyncClient, Client, ProblemError, VqserveError, connection
from vqserve.command_line import main
from vqserve.problems import problem_of

DIGIT = PICTURES / "digit_7.png"


def ask_for_models(url: str, transport: httpx.MockTransport, asynchronous: bool, **given: Any) -> None:
    async def ask() -> None:
        async with AsyncClient(url, transport=transport, **given) as client:
            await client.models()

    if asynchronous:
        asyncio.run(ask())
        return
    with Client(url, transport=transport, **given) as client:
        client.models()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_wait_for_a_free_connection_has_no_limit(asynchronous: bool) -> None:
    """Of many calls at once, those that had no connection yet after `timeout_s` ended with PoolTimeout."""
    transport, seen = scripted(httpx.Response(200, json=MODELS))
    ask_for_models("http://x", transport, asynchronous, timeout_s=2.5)
    assert seen[0].extensions["timeout"] == {"connect": 2.5, "read": 2.5, "write": 2.5, "pool": None}


def test_no_more_calls_are_under_way_than_there_are_places() -> None:
    """Calls and streams; the others wait for them."""
    inside, most = 0, 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return (
            httpx.Response(200, json=MODELS)
            if request.method == "GET"
            else httpx.Response(200, text=f"event: done\ndata: {json.dumps(DONE)}\n\n")
        )

    async def ask() -> None:
        async with AsyncClient("http://x", transport=httpx.MockTransport(answer)) as client:

            async def stream() -> list[Any]:
                return [one async for one in client.stream()]

            calls = [client.models() if index % 2 else stream() for index in range(3 * connection.MOST_AT_ONCE)]
            assert len(await asyncio.gather(*calls)) == 3 * connection.MOST_AT_ONCE

    asyncio.run(ask())
    assert most == connection.MOST_AT_ONCE


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
    some = np.where(mask, known, None)
    some[0, 0] = known[0, 0]  # np.int64, which `tolist` leaves: it was `not JSON serializable`
    answers = [httpx.Response(200, json=DONE) for _ in range(4)]
    transport, seen = scripted(*answers, httpx.Response(200, content=b"\xf6Qc"))
    with Client("http://x", transport=transport) as client:
        client.generate(seed=np.int64(3), n=np.int32(1), temperature=np.float32(0.5), known=known)
        client.generate(known={"codes": known, "mask": mask})
        client.generate(known=[list(known[0]), [None, None]])
        client.generate(known=some, top_p=np.longdouble(0.5))
        client.compress(DIGIT, label=np.int64(3), effort=np.longdouble(0.5))
    assert json.loads(seen[0].content) == {"seed": 3, "n": 1, "temperature": 0.5, "known": [[1, 2], [3, 4]]}
    assert json.loads(seen[1].content)["known"] == {"codes": [[1, 2], [3, 4]], "mask": [[True, False], [False, True]]}
    assert json.loads(seen[2].content)["known"] == [[1, 2], [None, None]]
    assert json.loads(seen[3].content) == {"known": [[1, None], [None, 4]], "top_p": 0.5}
    assert dict(seen[4].url.params) == {"label": "3", "effort": "0.5"}


@pytest.mark.parametrize("body", [b'{"type": "urn:', b"[1]", b"\xff"])
def test_a_broken_problem_document_counts_by_its_status(body: bytes) -> None:
    """It was a bare JSONDecodeError, or an AttributeError."""
    headers = {"Content-Type": "application/problem+json", "X-Request-ID": "an-id"}
    error = problem_of(httpx.Response(502, content=body, headers=headers))
    assert (error.status, error.type, error.title) == (502, "about:blank", "Bad Gateway")
    assert error.request_id == "an-id"


def test_an_address_in_brackets_is_a_host() -> None:
    assert connection.base_url("http://[::1]:8000") == "http://[::1]:8000"


@pytest.mark.parametrize("port", ["-1", "0", "80000", "9" * 20])
def test_what_is_no_port_is_refused(port: str) -> None:
    """80000 led to port 14464, and with asyncio to an ExceptionGroup."""
    for client in (Client, AsyncClient):
        with pytest.raises(VqserveError, match=r"its port is not in 1\.\.65535"):
            client(f"http://me:secret@localhost:{port}")


def test_an_empty_query_is_refused_as_any() -> None:
    """Each call went to the URL itself."""
    for url in ("http://localhost:8000/?", "https://host/path?", "http://localhost?"):
        with pytest.raises(VqserveError, match="is no URL of a service"):
            Client(url)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://me:secret@localhost:1080"),
        ("HTTP_PROXY", "foo:secret"),
        ("HTTPS_PROXY", "ftp://me:secret@localhost"),
        ("SSL_CERT_FILE", "/nope/secret"),
        ("NO_PROXY", "[::1]"),
        ("NO_PROXY", "localhost,fe80::/10"),
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
    if name == "NO_PROXY":  # a host in brackets is one of a URL
        assert "NO_PROXY a list of hosts, an IPv6 address in it without brackets and /length" in line


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://codes.example.org/encode?model=mnist", "https://codes.example.org/encode"),
        ("/login?token=secret", "/login"),
        ("https://me:secret@codes.example.org/", "https://codes.example.org/"),
    ],
)
def test_a_redirect_says_where_it_leads(location: str, shown: str) -> None:
    """It was `302 Found: `, and the page of the proxy."""
    error = problem_of(httpx.Response(302, text="<html>", headers={"Location": location}))
    advice = "and redirects are not followed: pass the service's own URL"
    assert str(error) == f"302 Found: it leads to {shown}, {advice}"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("location", ["http://xn--é/", "http://xn--a/", "http://localhost:80a0/"])
def test_a_redirect_to_what_is_no_url_is_a_refusal(location: str, asynchronous: bool) -> None:
    """It was a network that fails, after four attempts, or a UnicodeError."""
    transport, seen = scripted(httpx.Response(301, headers=[(b"Location", location.encode())]))
    with pytest.raises(ProblemError, match=f"301 Moved Permanently: it leads to {location}, and redirects"):
        ask_for_models("http://x", transport, asynchronous)
    assert len(seen) == 1


def test_the_page_of_another_server_is_one_line() -> None:
    """A message had as many lines as the page, and one without a page ended in a colon."""
    page = "<html>\r\n<h1>401 Authorization Required</h1>\n</html>\n"
    said = "401 Unauthorized: <html> <h1>401 Authorization Required</h1> </html>"
    assert str(problem_of(httpx.Response(401, text=page))) == said
    assert str(problem_of(httpx.Response(404))) == "404 Not Found"


@pytest.mark.parametrize(
    "url",
    [
        " http://localhost:8000",
        "ftp://localhost",
        "http+unix://socket",
        "http://",
        "http:///encode",
        "http://localhost:8000?model=mnist",
        "http://localhost:8000/#encode",
    ],
)
def test_what_is_no_url_of_a_service_is_refused(url: str) -> None:
    """It was taken, and each call was a network that fails, or another route."""
    with pytest.raises(VqserveError, match="is no URL of a service: write it as http://localhost:8000"):
        Client(url)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e20])
def test_what_is_no_time_to_wait_is_refused(seconds: float) -> None:
    """0 was `Operation now in progress`, after four attempts; the others failed at the first call."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"timeout_s is .*: pass seconds above 0 and at most 86400"):
            kind("http://x", timeout_s=seconds)


def test_a_problem_goes_to_another_process() -> None:
    """It could not be unpickled, which ended a pool of processes."""
    headers = {"X-Request-ID": "an-id", "Retry-After": "3"}
    error = problem_of(httpx.Response(404, text="nothing here", headers=headers))
    there = copy.copy(error)  # as pickle does
    assert str(there) == str(error) == "404 Not Found: nothing here"
    assert vars(there) == vars(error) and (there.request_id, there.retry_after_s) == ("an-id", 3.0)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_does_not_go_to_another_process(kind: type[Client] | type[AsyncClient]) -> None:
    """It was `cannot pickle '_thread.RLock' object`."""
    with pytest.raises(TypeError, match="make one there, as in the initializer of a pool"):
        copy.copy(kind("http://x"))  # as pickle does


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_password_of_a_url_is_in_no_log(asynchronous: bool, caplog: pytest.LogCaptureFixture) -> None:
    """httpx logged it with each request, and an API key beside it was not sent."""
    caplog.set_level(logging.INFO)
    transport, seen = scripted(httpx.Response(200, json=MODELS))
    ask_for_models("https://me:p%40ss@codes.example.org/vq", transport, asynchronous, key="a-key")
    (request,) = seen
    assert request.headers["authorization"] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    assert request.headers["x-api-key"] == "a-key"
    assert "https://codes.example.org/vq/models" in caplog.text and "ss@" not in caplog.text
