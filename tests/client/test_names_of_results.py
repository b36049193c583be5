"""Results that would have one name, or that of an original, are refused before any work, offline and online."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.client.conftest import DIGITS, expected
from tests.conftest import Tiny
from vqserve import outputs
from vqserve.command_line import main


def test_two_pictures_of_one_name_are_refused_before_any_work(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second container used to replace the first, with exit status 0."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(DIGITS[0].read_bytes())
    Image.open(DIGITS[1]).save(tmp_path / "a/x.bmp")
    one, other, bitmap = (str(tmp_path / name) for name in ("a/x.png", "b/x.png", "a/x.bmp"))
    out = str(tmp_path / "out")
    for given, first, second in (
        ([str(tmp_path / "a")], bitmap, one),
        ([one, other, "-o", out], one, other),
        ([one, other, "-o", out, "--codes"], one, other),
        ([one, f"{tmp_path}/b/../a/x.bmp"], one, f"{tmp_path}/b/../a/x.bmp"),
    ):
        assert main(["encode", *where, *given]) == 1
        assert f"vqserve: {first} and {second} would both become " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["x.bmp", "x.png", "x.png"]
    assert main(["encode", *where, one, other]) == 0  # each beside its own picture
    assert main(["encode", *where, one, other, "--together", "-o", str(tmp_path / "all.vqc")]) == 0


def test_two_containers_of_one_name_are_refused_before_any_work(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container of several pictures gives names with numbers, which another container may have as its own."""
    digits, several = [str(path) for path in DIGITS], str(tmp_path / "x.vqc")
    assert main(["encode", *where, *digits, "--together", "-o", several]) == 0
    names = [str(tmp_path / name) for name in ("x-001.vqc", "x-003.vqc", "other/x-001.vqc")]
    for name in names:
        assert main(["encode", *where, digits[0], "-o", name]) == 0
    taken, free, same_name = names
    out = tmp_path / "out"
    for first, second in ((several, taken), (taken, same_name)):
        assert main(["decode", *where, first, second, "-o", str(out)]) == 1
        assert f"vqserve: {first} and {second} would both become {out}/x-001.png" in capsys.readouterr().err
        assert not out.exists()
    assert main(["decode", *where, several, free, "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"x-{index:03d}.png" for index in range(4)]


def test_a_decoded_picture_does_not_take_the_place_of_its_original(
    where: list[str], tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, container = tmp_path / "digit.png", tmp_path / "digit.vqc"
    original.write_bytes(DIGITS[0].read_bytes())
    assert main(["encode", *where, str(original)]) == 0
    assert main(["decode", *where, str(container)]) == 1
    assert f"{original} is there already: name another place with --output, or pass --force" in capsys.readouterr().err
    assert original.read_bytes() == DIGITS[0].read_bytes()
    assert main(["decode", *where, str(container), "--force"]) == 0
    assert np.array_equal(np.asarray(Image.open(original)), expected(DIGITS[0], tiny))


def test_several_results_for_standard_output_are_refused_before_any_work(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = str(tmp_path / "all.vqc")
    assert main(["encode", *where, *map(str, DIGITS), "--together", "-o", several]) == 0
    nowhere = ["--url", "http://127.0.0.1:9"]
    drawn = ["generate", "--n", "2"]  # was refused when all were drawn
    for arguments in (["encode", *map(str, DIGITS)], ["decode", several], drawn):
        assert main([arguments[0], *nowhere, *arguments[1:], "-o", "-"]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and "several results do not fit standard output" in captured.err


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_container_of_standard_input_takes_no_other_ones_place(
    where: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    force: list[str],
) -> None:
    """With --force it replaced the picture that the same command had just written, and nobody was told."""
    container, out = tmp_path / "stdin.vqc", tmp_path / "out"
    assert main(["encode", *where, str(DIGITS[0]), "-o", str(container)]) == 0
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(container.read_bytes())))
    assert main(["decode", *where, str(container), "-", "-o", str(out), *force]) == 1
    assert f"{container} and - would both become {out}/stdin.png" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["stdin.png"]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_two_results_that_differ_in_case_are_not_one(
    where: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    force: list[str],
) -> None:
    """On a disk that takes them for one name, the second replaced the first, with status 0."""
    for name, digit in zip(("x.png", "X.png", "y.png"), DIGITS, strict=False):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(digit.read_bytes())
    out, write_whole = tmp_path / "out", outputs._write_whole

    def in_one_case(target: Path, data: bytes) -> None:
        write_whole(target, data)
        if target.name == "X.vqc":
            target.with_name("x.vqc").hardlink_to(target)

    monkeypatch.setattr("vqserve.outputs._write_whole", in_one_case)
    assert main(["encode", *where, f"{tmp_path}/in", "-o", str(out), *force]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"vqserve: {tmp_path}/in/x.png: {out}/x.vqc is there by now: rename the input if another one differs from it "
        "in case only",
        "vqserve: 1 of 3 files were refused",
    ]
    assert (out / "x.vqc").samefile(out / "X.vqc") and (out / "y.vqc").exists()
    monkeypatch.undo()
    assert main(["encode", *where, f"{tmp_path}/in", "-o", str(out), "--force"]) == 0  # what was there is replaced


def test_one_name_that_is_too_long_is_one_refused_file(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of the others was done either."""
    long = tmp_path / "in" / f"{'a' * 251}.png"
    long.parent.mkdir()
    for path in (long, long.with_name("b.png")):
        path.write_bytes(DIGITS[0].read_bytes())
    out = tmp_path / "out"
    assert main(["encode", *where, str(long.parent), "-o", str(out), "--codes"]) == 1
    advice = "see to it, or name another place with --output"
    assert capsys.readouterr().err.splitlines() == [
        f"vqserve: {long}: {out}/{'a' * 251}.json cannot be written: File name too long: {advice}",
        "vqserve: 1 of 2 files were refused",
    ]
    assert [path.name for path in out.iterdir()] == ["b.json"]


def test_a_working_folder_that_was_deleted_is_told(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was `[Errno 2] No such file or directory` alone."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["encode", *where, str(DIGITS[0]), "-o", "x.vqc"]) == 1
    advice = "see to it, or name another place with --output"
    assert capsys.readouterr().err == f"vqserve: x.vqc cannot be written: No such file or directory: {advice}\n"
