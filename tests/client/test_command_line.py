"""The `vqserve` command, offline and online, with files, folders and pipes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.client.conftest import DIGITS, KEY, expected, serving
from tests.conftest import Tiny
from tests.tiny_bundle import CODEBOOK_SIZE, oracle_codes
from vqserve.command_line import main


def test_a_folder_goes_there_and_back(where: list[str], tiny: Tiny, tmp_path: Path) -> None:
    digits = tmp_path / "digits"
    digits.mkdir()
    for path in DIGITS:
        (digits / path.name).write_bytes(path.read_bytes())
    (digits / "notes.txt").write_text("not a picture")
    assert main(["encode", *where, str(digits), "-o", str(tmp_path / "codes")]) == 0
    assert main(["decode", *where, str(tmp_path / "codes"), "-o", str(tmp_path / "pictures")]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [path.name for path in DIGITS]
    for path in DIGITS:
        assert np.array_equal(np.asarray(Image.open(tmp_path / "pictures" / path.name)), expected(path, tiny))


def test_pictures_together_make_one_smaller_container(where: list[str], tmp_path: Path) -> None:
    names = [str(path) for path in DIGITS]
    assert main(["encode", *where, *names, "-o", f"{tmp_path}/one/"]) == 0
    assert main(["encode", *where, *names, "--together", "-o", str(tmp_path / "all.vqc")]) == 0
    alone = sum(path.stat().st_size for path in (tmp_path / "one").iterdir())
    assert (tmp_path / "all.vqc").stat().st_size < alone
    assert main(["decode", *where, str(tmp_path / "all.vqc"), "-o", str(tmp_path / "back")]) == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [f"all-{index:03d}.png" for index in range(3)]


def test_pipes(tiny: Tiny) -> None:
    command = [sys.executable, "-m", "vqserve"]
    where = ["--bundle", str(tiny.grey)]
    picture = DIGITS[0].read_bytes()
    container = subprocess.run([*command, "encode", *where, "-"], input=picture, capture_output=True, check=True)
    decoded = subprocess.run([*command, "decode", *where, "-"], input=container.stdout, capture_output=True, check=True)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(decoded.stdout))), expected(DIGITS[0], tiny))
    assert container.stderr == decoded.stderr == b""


def test_codes_as_json(where: list[str], tiny: Tiny, tmp_path: Path) -> None:
    assert main(["encode", *where, str(DIGITS[0]), "--codes", "-o", str(tmp_path / "codes.json")]) == 0
    codes = np.array(json.loads((tmp_path / "codes.json").read_text())["codes"])
    pixels = np.asarray(Image.open(DIGITS[0]))[None, ..., None]
    assert np.array_equal(codes, oracle_codes(pixels, tiny.grey_weights)[0])


def test_codes_as_json_are_what_decode_takes(where: list[str], server_url: str, tmp_path: Path) -> None:
    """They were the codes alone: with another model of the same codes, or of a padded picture, decoded as something
    else."""
    assert main(["encode", *where, str(DIGITS[0]), "--codes", "-o", str(tmp_path / "codes.json")]) == 0
    written = json.loads((tmp_path / "codes.json").read_text())
    assert (written["model"], written["width"], written["height"]) == ("tiny", 28, 28)
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    content = (tmp_path / "codes.json").read_bytes()
    assert httpx.post(f"{server_url}/decode", content=content, headers=headers).status_code == 200


def test_standard_input_has_a_name_for_its_results(where: list[str], tmp_path: Path) -> None:
    """They were called `-.vqc`, which no command takes for a file."""
    options = [*where[:2], *where[2:]]
    command = [sys.executable, "-m", "vqserve", "encode", *options, "-", str(DIGITS[0]), "-o", str(tmp_path)]
    subprocess.run(command, input=DIGITS[1].read_bytes(), check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digit_0.vqc", "stdin.vqc"]


def test_folders_in_a_folder_are_said_to_be_left_out(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of sorted pictures the command did those beside the folders, and said nothing."""
    (tmp_path / "in" / "cats").mkdir(parents=True)
    (tmp_path / "in" / "dogs.png").mkdir()
    shutil.copy(DIGITS[0], tmp_path / "in")
    assert main(["encode", *where, str(tmp_path / "in"), "-o", f"{tmp_path}/out/"]) == 0
    assert f"{tmp_path}/in: the files of the folders in it are left out (cats and 1 more)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["digit_0.vqc"]


def test_info_of_the_models_has_no_line_for_each_code(
    where: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It had a thousand lines a model, nearly all of them colours of its codes."""
    monkeypatch.setattr("vqserve.command_line._MOST_LISTED", CODEBOOK_SIZE - 1)
    assert main(["info", *where]) == 0
    printed = capsys.readouterr().out
    assert "codebook_size" in printed and "version" in printed
    assert "code_histogram" not in printed


def test_a_bundle_is_one_model(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own was used, whatever --model named."""
    assert main(["encode", "--bundle", str(tiny.grey), "--model", "photos", str(DIGITS[0])]) == 1
    assert "leave it out" in capsys.readouterr().err


def test_offline_and_online_write_the_same_bytes(tiny: Tiny, server_url: str, tmp_path: Path) -> None:
    names = [str(path) for path in DIGITS]
    assert main(["encode", "--bundle", str(tiny.grey), *names, "-o", f"{tmp_path}/a/"]) == 0
    assert main(["encode", "--url", server_url, "--key", KEY, *names, "-o", f"{tmp_path}/b/"]) == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_of_many_files_those_that_can_be_done_are(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first bad one ended it, and nobody knew how many were left."""
    (tmp_path / "in").mkdir()
    for path in DIGITS:
        shutil.copy(path, tmp_path / "in")
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    (tmp_path / "in" / DIGITS[1].name).write_bytes(DIGITS[1].read_bytes()[:150])
    folders = [str(tmp_path / "in"), "-o", f"{tmp_path}/out/"]
    assert main(["encode", *where, *folders]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [name for name in ("a.png", DIGITS[1].name) if any(f"in/{name}: " in line for line in lines)] == [
        "a.png",
        DIGITS[1].name,
    ]
    assert lines[-1].endswith(f"2 of {len(DIGITS) + 1} files were refused")
    done = {path.name for path in (tmp_path / "out").iterdir()}
    assert done == {f"{path.stem}.vqc" for path in DIGITS if path != DIGITS[1]}


def test_what_ails_all_files_ends_the_command(
    server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", "--url", server_url, "--key", "wrong", *map(str, DIGITS), "-o", f"{tmp_path}/out/"]) == 1
    said = "401 No or wrong API key: Pass a valid key with --key or in VQSERVE_KEY."
    assert capsys.readouterr().err == f"vqserve: {DIGITS[0]}: {said}\n"


def test_info_reads_a_header_without_a_model(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", *where, *(map(str, DIGITS)), "--together", "-o", str(tmp_path / "all.vqc")]) == 0
    assert main(["info", str(tmp_path / "all.vqc")]) == 0
    header = json.loads(capsys.readouterr().out)
    assert (header["pictures"], header["header_bytes"]) == (3, 11)
    assert main(["info", *where]) == 0
    models = json.loads(capsys.readouterr().out)
    assert models[0]["name"] == "tiny" and models[0]["version"].startswith(header["model"])


def test_info_of_one_model(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """--model was ignored, an unknown one too."""
    with serving(tiny) as url:
        assert main(["info", "--url", url, "--model", "tiny_colour"]) == 0
        assert [model["name"] for model in json.loads(capsys.readouterr().out)] == ["tiny_colour"]
        assert main(["info", "--url", url, "--model", "nobodys"]) == 1
    assert "nobodys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "x.png"], "--bundle FOLDER, --url URL, or the variable VQSERVE_URL"),
        (["encode", "--bundle", "nowhere", "x.png"], "does not exist: make a bundle"),
        (["encode", "--url", "http://127.0.0.1:9", "missing.png"], "No such file"),
        (["encode", "--url", "localhost:9", str(DIGITS[0])], "'localhost:9' is no URL: write http://localhost:9"),
        (
            ["encode", "--url", "http://localhost:80a0", str(DIGITS[0])],
            "'http://localhost:80a0' is no URL: Invalid port",
        ),
        (["encode", "--url", "http://127.0.0.1:9", "--key", "clé", str(DIGITS[0])], "an API key is printable ASCII"),
        (["info", str(DIGITS[0])], "not a container"),
    ],
)
def test_mistakes_have_a_message_and_status_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQSERVE_URL", raising=False)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("vqserve: ") and message in captured.err


def test_of_many_files_the_refused_one_is_named(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.png"
    Image.new("L", (30, 30)).save(wrong)
    for more in ([], ["--codes"]):
        assert main(["encode", *where, *more, str(DIGITS[0]), str(wrong), "-o", str(tmp_path / "out")]) == 1
        assert f"vqserve: {wrong}: " in capsys.readouterr().err


def test_of_many_containers_those_that_can_be_done_are(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A header that could not be read ended `decode` and `info` for all, and a file that is gone ended `encode`."""
    codes = tmp_path / "codes"
    names = [str(DIGITS[0]), str(tmp_path / "gone.png"), str(DIGITS[1])]
    assert main(["encode", *where, *names, "-o", f"{codes}/"]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/gone.png: No such file or directory" in said and "1 of 3 files were refused" in said
    good = [codes / f"{path.stem}.vqc" for path in DIGITS[:2]]
    bad = good[0].with_stem(good[0].stem + "-cut")
    bad.write_bytes(good[0].read_bytes()[:5])
    assert main(["decode", *where, str(codes), "-o", f"{tmp_path}/out/"]) == 1
    said = capsys.readouterr().err
    assert f"vqserve: {bad}: " in said and "1 of 3 files were refused" in said
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(path.stem for path in good)
    assert main(["info", str(codes)]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["file"] for line in captured.out.splitlines()] == sorted(map(str, good))
    assert f"vqserve: {bad}: " in captured.err


def test_of_pictures_together_the_refused_one_is_named(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    names = [str(DIGITS[0]), str(tmp_path / "bad.png")]
    assert main(["encode", *where, "--together", *names, "-o", str(tmp_path / "x.vqc")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"vqserve: {names[0]} to {names[1]}: ") and f": {names[1]}: Send a" in said
    assert not (tmp_path / "x.vqc").exists()


def test_together_and_codes_exclude_each_other(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The second was ignored."""
    with pytest.raises(SystemExit) as ended:
        main(["encode", *where, "--together", "--codes", str(DIGITS[0])])
    assert ended.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_the_advice_on_sizes_names_the_option(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.png"
    Image.new("L", (30, 30)).save(wrong)
    assert main(["encode", *where, str(wrong)]) == 1
    said = capsys.readouterr().err
    assert "Add --fit resize or --fit pad." in said and "?fit" not in said


def test_the_advice_on_what_fit_makes_names_the_option(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (1, 30)).save(tmp_path / "narrow.png")
    with serving(tiny, max_pixels=100) as url:
        given = ["encode", "--url", url, "--model", "tiny_colour", "--fit", "pad", str(tmp_path / "narrow.png")]
        assert main(given) == 1
    assert "1x30 becomes 4x32 with --fit pad, which is more than 100 pixels" in capsys.readouterr().err


def test_what_cannot_be_decoded_says_why(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", *where, str(DIGITS[0]), "-o", str(tmp_path / "x.vqc")]) == 0
    data = bytearray((tmp_path / "x.vqc").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x.vqc").write_bytes(data)
    assert main(["decode", *where, str(tmp_path / "x.vqc")]) == 1
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["decode", *where, str(tmp_path / "empty")]) == 1
    assert "holds no file that ends in .vqc" in capsys.readouterr().err


def test_the_online_command_needs_neither_the_service_nor_torch() -> None:
    """A machine that only calls the service installs httpx, numpy and pillow."""
    program = (
        "import sys, vqserve.command_line, vqserve; "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'starlette', 'service'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
