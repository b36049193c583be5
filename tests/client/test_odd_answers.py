"""What is said of answers that the service does not give, and of words that no URL holds."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from tests.client.conftest import KEY
from tests.client.scripted import MODELS, scripted
from tests.client.test_connection import ask_for_models
from tests.conftest import PICTURES
from vqserve import Client, ProblemError, VqserveError
from vqserve.command_line import main
from vqserve.events import Events
from vqserve.problems import problem_of
from vqserve.retries import Retries

PROBLEM = {"Content-Type": "application/problem+json"}


def test_null_in_a_problem_is_as_if_it_were_left_out() -> None:
    """It was `409 None: None`."""
    document: dict[str, Any] = {"type": None, "title": None, "status": 409, "detail": None}
    error = problem_of(httpx.Response(409, json=document, headers=PROBLEM))
    assert (error.type, error.title) == ("about:blank", "Conflict") and error.detail.startswith('{"type":null')
    read = Events()
    with pytest.raises(ProblemError) as raised:
        for line in ("event: error", f"data: {json.dumps({**document, 'title': 'Gone', 'instance': 'x'})}", ""):
            list(read.feed(line))
    assert str(raised.value) == "409 Gone" and raised.value.type == "about:blank"


@pytest.mark.parametrize("charset", ["undefined", "base64", "idna", "nonsense"])
def test_a_charset_that_is_none_for_text(charset: str) -> None:
    """It was an AssertionError, or a UnicodeError."""
    page = httpx.Response(
        404, content=b"\xffnothing" + b"." * 80, headers={"Content-Type": f"text/html; charset={charset}"}
    )
    assert "nothing..." in str(problem_of(page))
    latin = httpx.Response(403, content=b"acc\xe8s", headers={"Content-Type": "text/html; charset=iso-8859-1"})
    assert str(problem_of(latin)) == "403 Forbidden: accès"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_refusal_is_left_as_compressed_as_it_came(asynchronous: bool) -> None:
    """Of 1 MB of gzip, 2 GB were read to show 200 characters. A success that a proxy has compressed is read."""
    bomb, compressed = gzip.compress(b"a" * 10_000_000), {"Content-Encoding": "gzip"}
    models = gzip.compress(json.dumps(MODELS).encode())
    redirect = {"Location": "http://y", **compressed}
    refusals = [httpx.Response(404, stream=httpx.ByteStream(bomb), headers=compressed)]
    refusals.append(httpx.Response(302, stream=httpx.ByteStream(bomb), headers=redirect))
    transport, seen = scripted(*refusals, httpx.Response(200, stream=httpx.ByteStream(models), headers=compressed))
    for said in ("404 Not Found", "302 Found: it leads to http://y, .*"):
        with pytest.raises(ProblemError, match=f"^{said}$"):
            ask_for_models("http://x", transport, asynchronous)
    assert [refusal.content for refusal in refusals] == [bomb, bomb]
    ask_for_models("http://x", transport, asynchronous)
    assert {request.headers["accept-encoding"] for request in seen} == {"identity"}


def test_a_problem_of_many_brackets_counts_by_its_status() -> None:
    """It was a RecursionError."""
    error = problem_of(httpx.Response(500, content=b"[" * 200_000, headers=PROBLEM))
    assert (error.status, error.type, len(error.detail)) == (500, "about:blank", 200)


def test_an_event_stream_is_utf_8_whatever_its_header_says() -> None:
    """It was a UnicodeError."""
    headers = {"Content-Type": "text/event-stream; charset=utf-32"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b"<html>\n", headers=headers))
    with Client("http://x", transport=transport) as client, pytest.raises(VqserveError, match="before its last event"):
        list(client.stream())


def test_names_that_are_no_text_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """They were a UnicodeEncodeError: bytes of another encoding, as the command gets them."""
    with pytest.raises(SystemExit) as ended:
        main(["info", "--url", "http://x", "--model", "caf\udce9"])
    assert ended.value.code == 2 and "has signs that no name of a model has" in capsys.readouterr().err
    for url in ("http://localhost/\udce9", "http://\udce9:b@localhost", "http://xn--a"):
        assert main(["info", "--url", url]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert " URL" in line


def test_a_proxy_that_is_set_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal named the service, which nobody had asked, or a proxy that httpx had not asked: it reads NO_PROXY in
    its own way."""
    made = Client
    monkeypatch.setattr("vqserve.backends.Client", lambda *given, **more: made(*given, **more, retries=Retries(1)))
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://me:secret@127.0.0.1:9")
        assert main(["info", "--url", "http://codes.example.org"]) == 1
        said = f"no answer from http://codes.example.org (with {name}=http://127.0.0.1:9): "
        assert said in capsys.readouterr().err
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert main(["info", "--url", "http://127.0.0.1:9"]) == 1
        said = f"no answer from http://127.0.0.1:9 (with {name}=http://127.0.0.1:9, NO_PROXY=127.0.0.1): "
        assert said in capsys.readouterr().err
        monkeypatch.delenv(name)
        monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert main(["info", "--url", "http://127.0.0.1:9"]) == 1
    assert "PROXY" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "refused"), [("http://a.example.org", "503 Service Unavailable: ours"), ("", "No such")]
)
def test_a_refusal_of_another_server_names_the_proxy(
    url: str, refused: str, server_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing said that it may be the proxy's. The service's own has no need of it."""
    page = httpx.Response(503, text="ours", headers={"Retry-After": "99"})
    if url:
        made, (transport, _) = Client, scripted(page, page)
        monkeypatch.setattr("vqserve.backends.Client", lambda *given, **more: made(*given, **more, transport=transport))
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for command in (["info"], ["encode", str(PICTURES / "digit_7.png"), "-o", "-"]):
        assert main([*command, "--url", url or server_url, "--key", KEY, "--model", "other"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        ends = " (with HTTP_PROXY=http://127.0.0.1:9, NO_PROXY=127.0.0.1)"
        assert refused in line and line.endswith(ends) == bool(url)
