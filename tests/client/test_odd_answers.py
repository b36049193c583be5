"""What is said of answers that the service does not give, and of words that no URL holds."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from tests.client.scripted import MODELS, scripted
from tests.client.test_connection import ask_for_models
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


def test_a_proxy_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal named the service, which nobody had asked."""
    made = Client
    monkeypatch.setattr("vqserve.backends.Client", lambda *given, **more: made(*given, **more, retries=Retries(1)))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://me:secret@127.0.0.1:9")
        assert main(["info", "--url", "http://codes.example.org"]) == 1
        said = capsys.readouterr().err
        assert "codes.example.org, by the proxy http://127.0.0.1:9 of HTTP_PROXY or ALL_PROXY: " in said
        assert "secret" not in said
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert main(["info", "--url", "http://127.0.0.1:9"]) == 1
        assert "proxy" not in capsys.readouterr().err
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.delenv(name)
