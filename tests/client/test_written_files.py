"""What `vqserve` writes: not over its inputs, whole or not at all, and what standard streams that are closed change."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import PICTURES, Tiny
from vqserve import outputs
from vqserve.command_line import main
from vqserve.problems import VqserveError

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]
COMMAND = f"{sys.executable} -m vqserve"


@pytest.fixture
def where(tiny: Tiny) -> list[str]:
    return ["--bundle", str(tiny.grey)]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    for path in DIGITS:
        shutil.copy(path, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_input_is_not_replaced(where: list[str], demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original became a container."""
    before = contents(demo)
    one, link = demo / "digit_0.png", demo.parent / "link.png"
    link.symlink_to(one)
    for given, target in (
        ([one], one),
        ([one], demo / ".." / "demo" / "digit_0.png"),
        ([link], one),
        ([one], link),
        ([one, demo / "digit_1.png", "--together"], demo / "digit_1.png"),
    ):
        assert main(["encode", *where, *map(str, given), "-o", str(target)]) == 1
        advice = "name another place with --output, or pass --force"
        assert capsys.readouterr().err == f"vqserve: {target} is one of the inputs: {advice}\n"
        assert contents(demo) == before
    assert main(["encode", *where, str(one), "-o", str(one), "--force"]) == 0
    assert one.read_bytes().startswith(b"\xf6Q")


def test_the_folder_of_the_inputs_names_none_of_its_files(
    where: list[str], demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoded pictures took the places of their originals."""
    assert main(["encode", *where, str(demo), "-o", str(demo)]) == 0
    before = contents(demo)
    container = (demo / "digit_0.vqc").read_bytes()
    assert main(["decode", *where, str(demo), "-o", str(demo)]) == 1
    assert f"{demo}/digit_0.png is there already" in capsys.readouterr().err
    (demo / "stdin.png").write_bytes(b"mine")
    piped = [*COMMAND.split(), "decode", *where, "-", "-o", str(demo)]
    ran = subprocess.run(piped, input=container, capture_output=True, check=False)
    assert ran.returncode == 1 and b"stdin.png is there already" in ran.stderr
    assert contents(demo) == {**before, "stdin.png": b"mine"}
    assert main(["decode", *where, str(demo), "-o", str(demo), "--force"]) == 0
    assert contents(demo)["digit_0.png"] != before["digit_0.png"]


def test_a_file_that_is_named_is_replaced(where: list[str], tmp_path: Path) -> None:
    target, link = tmp_path / "x.vqc", tmp_path / "link.vqc"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    for name in (target, link):
        assert main(["encode", *where, str(DIGITS[0]), "-o", str(name)]) == 0
    assert target.read_bytes().startswith(b"\xf6Q") and link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert main(["encode", *where, str(DIGITS[0]), "-o", os.devnull]) == 0
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_result_is_whole_or_not_there(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one took the place of the file that was there."""
    target = tmp_path / "x.vqc"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("vqserve.outputs.Path.replace", full)
    expected = VqserveError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        outputs.write(target, b"new")
    assert contents(tmp_path) == {"x.vqc": b"old"}
    if isinstance(error, OSError):
        advice = "see to it, or name another place with --output"
        assert str(raised.value) == f"{target} cannot be written: No space left on device: {advice}"


def test_a_protected_file_is_so_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All could read what will replace it, until it was whole."""
    target, modes, write = tmp_path / "private.png", list[tuple[int, int]](), shutil.copymode
    target.write_bytes(b"before")
    target.chmod(0o600)

    def noting(given: Path, part: Path) -> None:
        write(given, part)
        modes.append((part.stat().st_mode & 0o777, part.stat().st_size))

    monkeypatch.setattr(outputs.shutil, "copymode", noting)
    outputs._write_whole(target, b"after")
    assert (modes, target.read_bytes(), target.stat().st_mode & 0o777) == ([(0o600, 0)], b"after", 0o600)


def test_a_full_disk_says_which_file(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", *where, str(DIGITS[0]), "-o", "/dev/full"]) == 1
    assert "/dev/full cannot be written: No space left on device" in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"")
    assert main(["encode", *where, str(DIGITS[0]), "-o", f"{tmp_path}/file/x.vqc"]) == 1
    assert f"{tmp_path}/file/x.vqc cannot be written: " in capsys.readouterr().err
    with Path("/dev/full").open("wb") as full:
        to_full = [*COMMAND.split(), "encode", *where, str(DIGITS[0]), "-o", "-"]
        ran = subprocess.run(to_full, stdout=full, stderr=subprocess.PIPE, check=False)
    said = f"vqserve: {DIGITS[0]}: standard output cannot be written: No space left on device\n"
    assert (ran.returncode, ran.stderr.decode()) == (1, said)


def test_pipes_with_names_are_read_once(where: list[str], tmp_path: Path) -> None:
    """`decode` read the header first, and then waited for a second writer."""
    container, pipe = tmp_path / "x.vqc", tmp_path / "pipe.vqc"
    assert main(["encode", *where, str(DIGITS[0]), "-o", str(container)]) == 0
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(container.read_bytes(),), daemon=True)
    writer.start()
    command = [*COMMAND.split(), "decode", *where, str(pipe), "-o", f"{tmp_path}/x.png"]
    subprocess.run(command, timeout=60, check=True)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("encode {where} - -o {out}/x.vqc <&-", "-: standard input is closed: name a file, or send one into it"),
        ("encode {where} {digit} -o - >&-", "standard output is closed: leave it open, or name a file"),
        ("info {where} >&-", "standard output is closed: leave it open, or name a file"),
    ],
)
def test_closed_streams_have_a_message(arguments: str, said: str, where: list[str], tmp_path: Path) -> None:
    """They were an AttributeError of None, and `info` said nothing with status 0."""
    filled = arguments.format(where=" ".join(where), digit=DIGITS[0], out=tmp_path)
    ran = subprocess.run(["sh", "-c", f"{COMMAND} {filled}"], stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1 and said in ran.stderr and "Traceback" not in ran.stderr


def test_closed_streams_that_nobody_needs_change_nothing(where: list[str], tmp_path: Path) -> None:
    line = f"{COMMAND} encode {' '.join(where)} {DIGITS[0]} {DIGITS[1]} -o {tmp_path}/out/ <&- >&- 2>&-"
    subprocess.run(["sh", "-c", line], check=True)
    assert len(list((tmp_path / "out").iterdir())) == 2
    line = f"{COMMAND} encode {' '.join(where)} {tmp_path}/gone.png -o - 2>&-"  # its message went to standard output
    ran = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, check=False)
    assert (ran.returncode, ran.stdout) == (1, b"")


@pytest.mark.parametrize("command", ["decode", "generate"])
def test_png_is_written_under_its_own_name(
    command: str, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", *where, str(DIGITS[0]), "-o", f"{tmp_path}/in.vqc"]) == 0
    inputs = [f"{tmp_path}/in.vqc"] if command == "decode" else []
    assert main([command, *where, *inputs, "-o", f"{tmp_path}/x.JPG"]) == 1
    assert capsys.readouterr().err == f"vqserve: {command} writes PNG: name it {tmp_path}/x.png\n"
    assert not (tmp_path / "x.JPG").exists()
    if command == "decode":
        assert main([command, *where, *inputs, "-o", f"{tmp_path}/x.jpg/"]) == 0  # a folder may have that name


def test_other_files_of_a_folder_are_counted(
    where: list[str], demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.txt", "b.TXT", "c.tiff", "README", ".hidden", "old.vqc"):
        (demo / name).write_bytes(b"x")
    os.mkfifo(demo / "pipe.png")  # whose end may never come
    for name, original in zip(("j.jfif", "k.jpe"), DIGITS, strict=False):
        Image.open(original).save(demo / name, "JPEG")
    (demo / "._digit_0.png").write_bytes(b"what macOS writes beside a file")
    assert main(["encode", *where, str(demo), "-o", f"{tmp_path}/out/"]) == 0
    kinds = "1 with .tiff, 2 with .txt, 1 with no suffix"
    said = f"vqserve: {demo}: 4 other files are left out ({kinds}); name those that should be taken\n"
    assert capsys.readouterr().err == said
    assert {"j.vqc", "k.vqc"} < set(contents(tmp_path / "out"))


@pytest.mark.parametrize("option", ["INPUT", "--output", "--bundle"])
def test_an_empty_name_is_no_folder(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`"$UNSET"` worked on the current folder."""
    given = {"INPUT": ["x.png", ""], "--output": ["x.png", "-o", ""], "--bundle": ["--bundle", "", "x.png"]}[option]
    with pytest.raises(SystemExit) as ended:
        main(["encode", *given])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"{option}: the name is empty: write . for the current folder" in said


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "größe.vqc"), ("ascii", r"gr\u00f6\u00dfe.vqc")])
def test_names_are_written_as_they_are(
    encoding: str, shown: str, where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["größe.vqc", os.fsdecode(b"\xff.vqc")]  # no encoding has the second one
    printed: Any = io.TextIOWrapper(io.BytesIO(), encoding)
    for name in names:
        assert main(["encode", *where, str(DIGITS[0]), "-o", name]) == 0
    monkeypatch.setattr(sys, "stdout", printed)
    assert main(["info", *names]) == 0
    lines = printed.buffer.getvalue().decode(encoding).splitlines()
    assert f'"file": "{shown}"' in lines[0] and [json.loads(line)["file"] for line in lines] == names


@pytest.mark.parametrize("suffix", ["", "/", "/x.vqc"])
def test_an_output_that_cannot_be_looked_at_is_named(
    suffix: str, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a bare `[Errno 36]`, or 13 for a folder of somebody else."""
    output = f"{tmp_path}/{'a' * 300}{suffix}"
    assert main(["encode", *where, str(DIGITS[0]), "-o", output]) == 1
    target = f"{output}digit_0.vqc" if suffix == "/" else output
    advice = "see to it, or name another place with --output"
    assert capsys.readouterr().err == f"vqserve: {target} cannot be written: File name too long: {advice}\n"


def test_a_link_to_itself_holds_nothing(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was a traceback."""
    link = tmp_path / "x.vqc"
    link.symlink_to(link)
    assert main(["encode", *where, str(DIGITS[0]), "-o", f"{link}/"]) == 1
    assert f"{link}/digit_0.vqc cannot be written: File exists: see to it" in capsys.readouterr().err
    assert main(["encode", *where, str(DIGITS[0]), "-o", str(link)]) == 0
    assert link.is_file() and not link.is_symlink()
