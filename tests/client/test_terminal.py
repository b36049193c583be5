"""What a terminal shows, and how the command ends when its reader or its user has enough."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.conftest import serving
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import tiny_prior, write_tiny_bundle
from vqserve import Client
from vqserve.command_line import main

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]
COMMAND = [sys.executable, "-m", "vqserve"]
CLEAR = "\r\x1b[K"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "digits"
    write_tiny_bundle(folder, "digits", prior=tiny_prior(10))
    return folder


@pytest.fixture(scope="module")
def url(tiny: Tiny, bundle: Path) -> Iterator[str]:
    with serving(tiny, bundles=(bundle,)) as started:
        yield started


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    for path in DIGITS:
        shutil.copy(path, folder)
    return folder


def on_a_terminal(arguments: list[str], stdout: int | None = None) -> str:
    """What it shows of standard error, and of standard output where that is not taken away."""
    ours, theirs = pty.openpty()
    command = subprocess.Popen([*COMMAND, *arguments], stdout=theirs if stdout is None else stdout, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    command.wait()
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def test_messages_have_a_line_of_their_own(url: str, mixed: Path, tmp_path: Path) -> None:
    """They were glued to the bar: `encode [....] 0/4vqserve: ...`."""
    shown = on_a_terminal(["encode", "--url", url, str(mixed), "-o", f"{tmp_path}/out/"])
    assert f" 0/4{CLEAR}vqserve: {mixed}/a.png: " in shown
    assert f" 4/4\n{CLEAR}vqserve: 1 of 4 files were refused\n" in shown
    shown = on_a_terminal(["encode", "--url", url, "--effort", "9", str(mixed), "-o", f"{tmp_path}/none/"])
    assert f" 0/4{CLEAR}vqserve: {mixed}/a.png: " in shown  # also where the message ends the command


def test_scores_on_a_terminal_come_without_a_bar(url: str, mixed: Path) -> None:
    (mixed / "a.png").unlink()
    shown = on_a_terminal(["score", "--url", url, str(mixed)])
    assert len([json.loads(line) for line in shown.splitlines()]) == 3
    with Path(os.devnull).open("wb") as elsewhere:
        assert " 3/3\n" in on_a_terminal(["score", "--url", url, str(mixed)], elsewhere.fileno())


def test_a_reader_that_has_enough_ends_the_command_quietly(url: str, mixed: Path) -> None:
    """It was `[Errno 32] Broken pipe` with status 1."""
    (mixed / "a.png").unlink()
    for arguments in (["score", "--url", url, str(mixed)], ["info", "--url", url]):
        read, write = os.pipe()
        os.close(read)
        ran = subprocess.run([*COMMAND, *arguments], stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (ran.returncode, ran.stderr) == (141, b"")


def test_an_interrupt_has_a_short_message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt  # what Python makes of the signal, unless it was started with the signal ignored

    monkeypatch.setattr("vqserve.backends.Online.info", interrupted)
    assert main(["info", "--url", "http://127.0.0.1:9"]) == 130
    assert capsys.readouterr().err == "vqserve: stopped\n"


def test_an_interrupt_ends_the_command_by_its_signal() -> None:
    """With a status alone, the shell's loop around it went on with the next command."""
    program = """
import sys
from vqserve import backends, command_line
def interrupted(*_):
    raise KeyboardInterrupt
backends.Online.info = interrupted
sys.exit(command_line.main())
"""
    command = [sys.executable, "-c", program, "info", "--url", "http://127.0.0.1:9"]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, b"vqserve: stopped\n")


def test_a_name_with_a_line_break_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It broke the message, and a terminal obeyed the escapes in it."""
    assert main(["info", "a\n\x1b[2Jé.vqc"]) == 1
    assert capsys.readouterr().err == r"vqserve: a\n\x1b[2Jé.vqc: No such file or directory" + "\n"


def test_scores_by_label(url: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(url) as client:
        (alone,) = client.score(DIGITS[2], label=3)
        (found,) = client.score(DIGITS[2], by_label=True)
        assert client.score(DIGITS[2])[0].bits_by_label is None
    assert found.bits_by_label is not None and len(found.bits_by_label) == 10
    assert found.bits_by_label[3] == pytest.approx(alone.bits)
    lines = []
    for where in (["--url", url], ["--bundle", str(bundle)]):
        assert main(["score", *where, "--label", "3", "--by-label", *map(str, DIGITS)]) == 0
        lines.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        assert main(["score", *where, "--label", "10", *map(str, DIGITS)]) == 1
        (said,) = capsys.readouterr().err.splitlines()  # once, not for each picture
        assert "label" in said
    assert lines[0] == lines[1] and len(lines[0]) == 3
    assert lines[0][2]["bits"] == round(alone.bits, 3) == lines[0][2]["bits_by_label"][3]
