"""Whether `--output` is a file or a folder, and what is not replaced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.conftest import KEY
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import tiny_prior, write_tiny_bundle
from vqserve.command_line import main

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]


@pytest.fixture
def where(server_url: str) -> list[str]:
    return ["--url", server_url, "--key", KEY]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("drawing") / "digits"
    write_tiny_bundle(folder, "digits", prior=tiny_prior(10))
    return ["--bundle", str(folder)]


@pytest.fixture
def one_picture(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "digit_0.png").write_bytes(DIGITS[0].read_bytes())
    return folder


def test_of_a_folder_the_output_is_a_folder(where: list[str], one_picture: Path, tmp_path: Path) -> None:
    """With one picture in it, it was a file; with two, a folder."""
    assert main(["encode", *where, str(one_picture), "-o", f"{tmp_path}/codes"]) == 0
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["digit_0.vqc"]
    assert main(["decode", *where, f"{tmp_path}/codes", "-o", f"{tmp_path}/back"]) == 0
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["digit_0.png"]
    assert main(["encode", *where, str(DIGITS[0]), "-o", f"{tmp_path}/one"]) == 0
    assert (tmp_path / "one").is_file()


def test_a_file_is_no_folder_for_several_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All pictures were drawn before it was seen."""
    (tmp_path / "one").write_bytes(b"mine")
    for given in (["generate", "--n", "2"], ["encode", *map(str, DIGITS)], ["encode", "--together", *map(str, DIGITS)]):
        assert main([*given, "--url", "http://127.0.0.1:9", "-o", f"{tmp_path}/one"]) == 1
        said = f"vqserve: {tmp_path}/one is a file, for what may be several: name a folder with --output\n"
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("inside", ["/", "/sub", "/sub/", "/sub/x.vqc"])
def test_nothing_is_in_a_file(inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All was encoded or drawn before it was seen, and then it was `File exists: see to it`."""
    file = tmp_path / "one"
    file.write_bytes(b"mine")
    nowhere = ["--url", "http://127.0.0.1:9", "-o", f"{file}{inside}"]
    for given in (["generate"], ["encode", *map(str, DIGITS)], ["encode", str(DIGITS[0])]):
        assert main([*given, *nowhere]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        advice = "name another place with --output"
        assert line == f"vqserve: {file}{inside} cannot be written: {file} is no folder: {advice}"


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_standard_input_has_several_names(name: str, where: list[str], tmp_path: Path) -> None:
    """What was encoded of /dev/stdin was to be a file beside it, which cannot be there."""
    command = [sys.executable, "-m", "vqserve"]
    picture = DIGITS[0].read_bytes()
    encoded = subprocess.run([*command, "encode", *where, name], input=picture, capture_output=True, check=True).stdout
    assert encoded.startswith(b"\xf6Q")
    subprocess.run([*command, "decode", *where, name, "-o", f"{tmp_path}/back/"], input=encoded, check=True)
    assert (tmp_path / "back" / "stdin.png").is_file()


@pytest.mark.parametrize("command", ["encode", "encode --together", "decode"])
def test_beside_a_pipe_there_is_no_place(command: str) -> None:
    """It was written only after the work, where it could not be: `/dev/fd/63.vqc cannot be written`."""
    line = f"{sys.executable} -m vqserve {command} --url http://127.0.0.1:9 <(echo x)"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    said = " is in no folder: name a file, a folder or - for its result with --output\n"
    assert ran.returncode == 1 and ran.stderr.startswith("vqserve: /dev/fd/") and ran.stderr.endswith(said)
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_has_several_names(
    name: str, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind `>>`, /dev/stdout took the place of the file."""
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    for given in ([str(DIGITS[0])], [*map(str, DIGITS), "--together"]):
        before = log.read_bytes()
        command = [sys.executable, "-m", "vqserve", "encode", *where, *given, "-o", name]
        with log.open("ab") as appended:
            subprocess.run(command, stdout=appended, check=True)
        assert log.read_bytes().startswith(before + b"\xf6Q")
    assert main(["encode", *where, *map(str, DIGITS), "-o", name]) == 1
    assert "several results do not fit standard output" in capsys.readouterr().err


def test_the_help_says_where_results_go(capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn pictures had an input, and what came from standard input went beside it."""
    for command, default in (("generate", "the current folder"), ("encode", "beside the input, of - standard output")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"(default: {default})" in " ".join(capsys.readouterr().out.split())


def test_a_file_may_be_called_as_standard_input(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./-` was read from standard input."""
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(DIGITS[0].read_bytes())
    assert main(["encode", *where, "./-"]) == 0
    assert main(["decode", *where, "./-.vqc", "-o", "./-", "--force"]) == 0
    assert Path("-").read_bytes().startswith(b"\x89PNG") and Path("-.vqc").is_file()


def test_several_results_for_one_file_are_refused_before_any_work(
    one_picture: Path, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = f"{tmp_path}/all.vqc"
    assert main(["encode", *where, *map(str, DIGITS), "--together", "-o", several]) == 0
    nowhere = ["--url", "http://127.0.0.1:9"]
    for given in (
        ["encode", *map(str, DIGITS), "-o", f"{tmp_path}/x.vqc"],
        ["encode", str(one_picture), "-o", f"{tmp_path}/x.vqc"],
        ["decode", several, "-o", f"{tmp_path}/x.png"],
        ["generate", "--n", "2", "-o", f"{tmp_path}/x.png"],
        ["encode", "--together", *[str(DIGITS[0])] * 257, "-o", f"{tmp_path}/x.vqc"],
    ):
        assert main([given[0], *nowhere, *given[1:]]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        name = given[-1]
        assert line == f"vqserve: {name} is the name of one file, for what may be several: pass a folder, as {name}/"
    assert main(["encode", *where, str(one_picture), "-o", f"{tmp_path}/x.vqc/"]) == 0
    assert main(["encode", *where, *map(str, DIGITS), "-f", "-o", f"{tmp_path}/x.vqc"]) == 0  # it is a folder now
    assert len(list((tmp_path / "x.vqc").iterdir())) == 3


def test_of_pictures_together_a_name_without_a_suffix_is_a_folder(where: list[str], tmp_path: Path) -> None:
    assert main(["encode", *where, *map(str, DIGITS), "--together", "-o", f"{tmp_path}/all"]) == 0
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["pictures.vqc"]


def test_several_pictures_from_standard_input_are_refused_for_one_file(tiny: Tiny, tmp_path: Path) -> None:
    where = ["--bundle", str(tiny.grey)]
    assert main(["encode", *where, *map(str, DIGITS), "--together", "-o", f"{tmp_path}/all.vqc"]) == 0
    command = [sys.executable, "-m", "vqserve", "decode", *where, "-", "-o"]
    container = (tmp_path / "all.vqc").read_bytes()
    refused = subprocess.run([*command, f"{tmp_path}/x.png"], input=container, capture_output=True, check=False)
    assert refused.returncode == 1 and b"is the name of one file" in refused.stderr
    assert not (tmp_path / "x.png").exists()
    subprocess.run([*command, f"{tmp_path}/back"], input=container, check=True)
    assert len(list((tmp_path / "back").iterdir())) == 3


def test_drawn_pictures_do_not_replace_earlier_ones(
    drawing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 7 with label 3 and seed 7 with label 4 have one name, and the second took the place of the first."""
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "seed7-000.png"
    assert main(["generate", *drawing, "--seed", "7", "--label", "3"]) == 0
    three = picture.read_bytes()
    for where in (drawing, ["--url", "http://127.0.0.1:9"]):  # before it asks anyone
        assert main(["generate", *where, "--seed", "7", "--label", "4"]) == 1
        assert "seed7-000.png is there already" in capsys.readouterr().err
    assert picture.read_bytes() == three
    assert main(["generate", *drawing, "--seed", "7", "--label", "4", "--force"]) == 0
    assert picture.read_bytes() != three
    picture.rename(tmp_path / "seed7-001.png")
    for count in ("2", "1000000000000"):  # which were drawn before it was seen
        assert main(["generate", "--url", "http://127.0.0.1:9", "--seed", "7", "--n", count]) == 1
        assert "seed7-001.png is there already" in capsys.readouterr().err
    assert not picture.exists()
    assert main(["generate", *drawing, "--seed", "7", "-o", "one.png"]) == 0 and (tmp_path / "one.png").is_file()
