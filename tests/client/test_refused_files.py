"""One file among many that is refused, against what ails them all, with a service that is scripted or real."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from service.errors import DeadlinePassed, InternalError, NoPrior, NotReady, PictureTooLarge, Problem, problem_body
from tests.client.conftest import KEY
from tests.conftest import PICTURES, Tiny
from vqserve import Client, Retries
from vqserve.command_line import main

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]
Answer = httpx.Response | Exception
Script = Callable[..., list[httpx.Request]]


def refusal(problem: Problem) -> httpx.Response:
    headers = {"Content-Type": "application/problem+json"}
    return httpx.Response(problem.status, json=problem_body(problem, "an-id"), headers=headers)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The command's service answers `answers[n]` to request n, and a container to those without one."""

    def play(answers: dict[int, Answer]) -> list[httpx.Request]:
        seen: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            answer = answers.get(len(seen), httpx.Response(200, content=b"\xf6Qcontainer"))
            if isinstance(answer, Exception):
                raise answer
            return answer

        made = partial(Client, transport=httpx.MockTransport(handle), retries=Retries(attempts=1))
        monkeypatch.setattr("vqserve.backends.Client", made)
        return seen

    return play


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the command waits between calls, for a clock that nothing else moves."""
    slept: list[float] = []
    monkeypatch.setattr("vqserve.backends.time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return slept


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(DeadlinePassed("It took too long.")), "504 The deadline of the request has passed: It took too long."),
        (refusal(PictureTooLarge("9x9 is more.")), "413 The picture has too many pixels: 9x9 is more."),
        (httpx.Response(504, text="upstream"), "504 Gateway Timeout: upstream"),
        (httpx.Response(413, text="nginx"), "413 Request Entity Too Large: nginx"),
        (httpx.ReadTimeout("timed out"), "no answer in time: give it more with --timeout"),
        (httpx.WriteTimeout("timed out"), "no answer in time: give it more with --timeout"),
    ],
)
def test_the_other_files_are_done(
    answer: Answer, said: str, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A deadline that passed for one picture ended the whole folder, and so did a service that stopped reading one that
    no buffer held."""
    seen = script({2: answer})
    assert main(["encode", "--url", "http://x", *map(str, DIGITS), "-o", f"{tmp_path}/out/"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"vqserve: {DIGITS[1]}: {said}", "vqserve: 1 of 3 files were refused"]
    assert len(seen) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["digit_0.vqc", "digit_7.vqc"]


@pytest.mark.parametrize(
    "answer", [httpx.ConnectError("refused"), refusal(NotReady("It starts.")), httpx.Response(429)]
)
def test_a_restart_does_not_end_a_list_of_files(
    answer: Answer, script: Script, pauses: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ended two seconds after the service had gone, and refused to go on from there."""
    seen = script({2: answer, 3: httpx.ConnectError("refused"), 4: answer, 7: answer})
    assert main(["encode", "--url", "http://x", *map(str, DIGITS), "-o", f"{tmp_path}/out/"]) == 0
    (line,) = capsys.readouterr().err.splitlines()  # one for each time that it is gone
    assert line.endswith("): trying again for up to 60 s") and len(seen) == 6 and pauses == [1, 1, 1]
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [path.stem for path in DIGITS]


def test_a_service_that_does_not_come_back_ends_the_command(
    script: Script, pauses: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It did not say at which file."""
    lost = httpx.ConnectError("refused")
    given = ["encode", "--url", "http://x", *map(str, DIGITS), "--timeout", "5", "-o", f"{tmp_path}/out/", "--force"]
    seen = script({1: lost})
    assert main(given) == 1 and len(seen) == 1  # it may be the wrong URL
    no_answer = "vqserve: no answer from http://x: refused"
    said = capsys.readouterr().err.splitlines()
    assert said == [f"vqserve: {DIGITS[0]}: not done, and none after it", no_answer]
    script(dict.fromkeys(range(2, 100), lost))
    assert main(given) == 1 and pauses == [1, 1, 1, 1]
    said = [
        "vqserve: the service is gone or too busy (refused): trying again for up to 5 s",
        f"vqserve: {DIGITS[1]}: not done, and none after it",
        no_answer,
    ]
    assert capsys.readouterr().err.splitlines() == said


def test_a_long_retry_after_ends_the_command(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for an hour, nor asks all the time until then."""
    seen = script({2: httpx.Response(503, headers={"Retry-After": "3600"})})
    assert main(["encode", "--url", "http://x", *map(str, DIGITS), "-o", f"{tmp_path}/out/"]) == 1
    assert capsys.readouterr().err == f"vqserve: {DIGITS[1]}: 503 Service Unavailable\n" and len(seen) == 2


def test_a_file_larger_than_the_memory_is_of_the_file(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback."""
    script({})
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == DIGITS[0]:
            raise MemoryError
        return real(path)

    monkeypatch.setattr("vqserve.files.Path.read_bytes", read)
    assert main(["encode", "--url", "http://x", *map(str, DIGITS), "-o", f"{tmp_path}/out/"]) == 1
    said = [f"vqserve: {DIGITS[0]}: it is larger than the memory", "vqserve: 1 of 3 files were refused"]
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize(
    "answer",
    [
        refusal(NoPrior("It has none.")),
        refusal(NotReady("It starts.")),
        refusal(InternalError("It broke.")),
        httpx.Response(422, text="a proxy's page"),
    ],
)
def test_what_ails_all_files_is_sent_once(
    answer: Answer, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = script({number: answer for number in (1, 2, 3)})
    assert main(["encode", "--url", "http://x", *map(str, DIGITS), "-o", f"{tmp_path}/out/"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vqserve: {DIGITS[0]}: ") and len(seen) == 1


def test_a_wrong_option_ends_the_command(
    tiny: Tiny, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file was sent with it, and each refused."""
    for where in (["--url", server_url, "--key", KEY], ["--bundle", str(tiny.grey)]):
        assert main(["encode", *where, "--effort", "9", *map(str, DIGITS), "-o", f"{tmp_path}/out/"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"vqserve: {DIGITS[0]}: ")


def test_a_container_of_no_bytes_is_of_the_file(
    server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--url", server_url, "--key", KEY]
    assert main(["encode", *where, str(DIGITS[0]), "-o", f"{tmp_path}/in/"]) == 0
    (tmp_path / "in" / "a.vqc").touch()
    assert main(["decode", *where, f"{tmp_path}/in", "-o", f"{tmp_path}/out/"]) == 1
    said = capsys.readouterr().err
    assert "a.vqc: it is empty" in said and "1 of 2 files were refused" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["digit_0.png"]


def test_the_time_to_wait_is_an_option(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = script({})
    for options, expected in ((["--timeout", "2.5"], 2.5), ([], 60.0)):
        assert main(["encode", "--url", "http://x", *options, str(DIGITS[0]), "-o", os.devnull]) == 0
        assert seen[-1].extensions["timeout"]["read"] == expected
    for wrong in ("0", "-1", "nan", "1e20", "soon"):
        with pytest.raises(SystemExit) as ended:
            main(["encode", "--url", "http://x", "--timeout", wrong, str(DIGITS[0])])
        assert ended.value.code == 2 and "argument --timeout: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--guidance"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "warm"])
def test_what_is_no_number_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN was a traceback: JSON has none."""
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--url", "http://x", f"{option}={value}"])
    assert ended.value.code == 2 and f"argument {option}: '{value}' is no" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["encode", "--url", "http://x", f"--effort={value}", "x.png"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ReadTimeout("timed out"), "no answer in time: give it more with --timeout"),
        (httpx.WriteTimeout("timed out"), "no answer in time: give it more with --timeout"),
        (
            httpx.ConnectTimeout("timed out"),
            "no connection in time: see that the URL is right, or give it more with --timeout",
        ),
    ],
)
def test_all_commands_say_the_same_of_a_wait_that_ends(
    error: httpx.TimeoutException, words: str, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    """`info` and `generate` had httpx's words, and no advice."""
    script({1: error, 2: error, 3: error})
    for given in (["info"], ["generate", "-o", os.devnull], ["encode", str(DIGITS[0]), "-o", os.devnull]):
        assert main([given[0], "--url", "http://me:secret@x", *given[1:]]) == 1
        said = capsys.readouterr().err
        assert said.endswith(f": {words}\n") and "secret" not in said
        assert given[0] == "encode" or said.startswith("vqserve: http://x: ")


def test_what_cannot_be_looked_at_is_of_the_file(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a bare `[Errno 36]`, before any file was done."""
    where = ["--url", server_url, "--key", KEY]
    long = f"{tmp_path}/{'a' * 300}"
    assert main(["encode", *where, long, str(DIGITS[0]), "-o", f"{tmp_path}/out/"]) == 1
    said = [f"vqserve: {long}: File name too long", "vqserve: 1 of 2 files were refused"]
    assert capsys.readouterr().err.splitlines() == said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["digit_0.vqc"]

    def protected(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("vqserve.files.Path.iterdir", protected)
    assert main(["encode", *where, str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"vqserve: {tmp_path} cannot be read: Permission denied\n"
