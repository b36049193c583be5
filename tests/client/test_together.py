"""`vqserve encode --together`: groups that are refused, and groups that are more than the service takes."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.client.conftest import serving
from tests.conftest import PICTURES, Tiny
from vqserve import Client
from vqserve.command_line import main

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]
PIXELS = 28 * 28


@pytest.fixture(scope="module")
def narrow(tiny: Tiny) -> Iterator[list[str]]:
    """A service that takes the pixels of two digits in a request."""
    with serving(tiny, max_pixels=PIXELS, max_pixels_per_request=2 * PIXELS) as url:
        yield ["--url", url]


@pytest.fixture
def five(tmp_path: Path) -> Path:
    folder = tmp_path / "five"
    folder.mkdir()
    for index in range(5):
        shutil.copy(DIGITS[index % 3], folder / f"{index}.png")
    return folder


def pictures_of(narrow: list[str], folder: Path) -> dict[str, int]:
    with Client(narrow[1]) as client:
        return {path.name: len(client.decompress(path.read_bytes())) for path in sorted(folder.glob("*.vqc"))}


def test_a_group_that_is_too_large_becomes_several_containers(
    narrow: list[str], five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was refused with 413, and there was no way to send it."""
    assert main(["encode", *narrow, "--together", str(five), "-o", f"{tmp_path}/all.vqc"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    said = "too large for one request, trying"
    assert first == f"vqserve: {five}/0.png to {five}/4.png: {said} {tmp_path}/all-1.vqc and {tmp_path}/all-2.vqc"
    assert second == f"vqserve: {five}/2.png to {five}/4.png: {said} {tmp_path}/all-2-1.vqc and {tmp_path}/all-2-2.vqc"
    assert pictures_of(narrow, tmp_path) == {"all-1.vqc": 2, "all-2-1.vqc": 1, "all-2-2.vqc": 2}


def test_a_bundle_halves_what_one_container_could_not_give_back(
    tiny: Tiny, five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was written, and `decode` refused it."""
    monkeypatch.setattr("vqserve.offline.LARGEST_CONTAINER", 3 * 49)
    where = ["--bundle", str(tiny.grey)]
    assert main(["encode", *where, "--together", str(five), "-o", f"{tmp_path}/all.vqc"]) == 0
    assert "too large for one container, trying" in capsys.readouterr().err
    written = sorted(tmp_path.glob("all-*.vqc"))
    assert [path.name for path in written] == ["all-1.vqc", "all-2.vqc"]
    assert main(["decode", *where, *map(str, written), "-o", f"{tmp_path}/out/"]) == 0
    assert main(["encode", *where, "--together", str(five), "-o", "-"]) == 1
    assert "too large for one container, and two containers do not fit standard output" in capsys.readouterr().err


def test_a_bundle_counts_the_pictures_of_a_container(
    tiny: Tiny, five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, target = ["--bundle", str(tiny.grey)], tmp_path / "all.vqc"
    for most, status in ((5, 0), (4, 1)):
        monkeypatch.setattr("vqserve.offline.MOST_PICTURES", most)
        assert main(["encode", *where, "--together", str(five), "-o", str(target)]) == status
    assert "one container holds at most 4 pictures: leave --together out" in capsys.readouterr().err
    assert target.is_file()


def test_a_picture_that_is_too_large_alone_is_named(
    narrow: list[str], five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(PICTURES / "ladybird_crop.jpg", five / "5.jpg")
    assert main(["encode", *narrow, "--together", str(five), "-o", f"{tmp_path}/all.vqc"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert next(line for line in lines if "413" in line).startswith(f"vqserve: {five}/5.jpg: 413 ")
    assert lines[-1] == "vqserve: 1 of 6 files were refused"
    assert sum(pictures_of(narrow, tmp_path).values()) == 5


def test_halves_do_not_fit_standard_output_and_replace_nothing(
    narrow: list[str], five: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", *narrow, "--together", str(five), "-o", "-"]) == 1
    assert "two containers do not fit standard output" in capsys.readouterr().err
    (five / "pictures-1.vqc").write_bytes(b"mine")
    assert main(["encode", *narrow, "--together", str(five)]) == 1
    assert "pictures-1.vqc is there already" in capsys.readouterr().err
    assert (five / "pictures-1.vqc").read_bytes() == b"mine"
    assert main(["encode", *narrow, "--together", str(five), "--force"]) == 0


def test_standard_input_is_not_read_for_each_half(
    narrow: list[str], five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was gone for the second time, and "-: it is empty" was the answer."""
    names = sorted(map(str, five.iterdir()))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path(names[0]).read_bytes())))
    assert main(["encode", *narrow, "--together", "-", *names[1:], "-o", f"{tmp_path}/all.vqc"]) == 1
    assert "too large for one request, and standard input can be read only once" in capsys.readouterr().err


def test_a_missing_picture_is_named(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the first and the last of its group were."""
    names = [str(DIGITS[0]), f"{tmp_path}/gone.png", str(DIGITS[1])]
    assert main(["encode", "--bundle", str(tiny.grey), "--together", *names, "-o", f"{tmp_path}/x.vqc"]) == 1
    said = f"vqserve: {names[0]} to {names[2]}: {tmp_path}/gone.png: No such file or directory\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("bad_one", ["bad.png", "other.png"])
def test_a_bad_picture_ends_its_group_alone(
    tiny: Tiny, bad_one: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vqserve.together.TOGETHER", 2)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("L", (12, 12)).save(tmp_path / "other.png")
    names = [str(DIGITS[0]), f"{tmp_path}/{bad_one}", str(DIGITS[1]), str(DIGITS[2])]
    with serving(tiny) as url:
        for number, where in enumerate((["--bundle", str(tiny.grey)], ["--url", url])):
            out = tmp_path / str(number)
            assert main(["encode", *where, "--together", *names, "-o", f"{out}/"]) == 1
            bad, last = capsys.readouterr().err.splitlines()
            assert bad.startswith(f"vqserve: {names[0]} to {names[1]}: ") and f"{names[1]}: " in bad.partition(": ")[2]
            assert last == "vqserve: 2 of 4 files were refused"
            assert [path.name for path in out.iterdir()] == ["pictures-001.vqc"]


def test_the_names_of_halves_are_nobodys_choice(
    narrow: list[str], five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --output, the file that had the name of a half was replaced."""
    (tmp_path / "all-1.vqc").write_bytes(b"mine")
    assert main(["encode", *narrow, "--together", str(five), "-o", f"{tmp_path}/all.vqc"]) == 1
    assert "all-1.vqc is there already" in capsys.readouterr().err
    assert (tmp_path / "all-1.vqc").read_bytes() == b"mine"
    assert main(["encode", *narrow, "--together", str(five), "-o", f"{tmp_path}/all.vqc", "--force"]) == 0
    assert (tmp_path / "all-1.vqc").read_bytes() != b"mine"


def test_pictures_of_two_sizes_have_advice(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It did not say what to do."""
    names = [f"{tmp_path}/{side}.png" for side in (32, 64)]
    for name, side in zip(names, (32, 64), strict=True):
        Image.new("RGB", (side, side)).save(name)
    with serving(tiny) as url:
        for where in (["--url", url, "--model", "tiny_colour"], ["--bundle", str(tiny.colour)]):
            assert main(["encode", *where, "--together", *names, "-o", f"{tmp_path}/x.vqc"]) == 1
            said = capsys.readouterr().err.strip().removesuffix(".")
            advice = "but one container holds one size: leave --together out, or make all alike"
            assert said.endswith(f": {names[1]}: it is 64x64, the first one 32x32, {advice}")
