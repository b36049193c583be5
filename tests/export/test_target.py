"""What an export may replace: nothing but a bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export import __main__ as command
from export import renew
from export.build import build_bundle
from export.target import ExportError, replace_bundle
from service.bundle import BundleError, load_bundle
from tests.power_cut import on_the_disk
from training.printing import status_of

pytestmark = pytest.mark.usefixtures("unverified")


@pytest.mark.parametrize("manifest", ['{"name": "a web page", "icons": []}', "[]", "no JSON"])
def test_a_folder_with_somebody_elses_manifest_is_not_replaced(
    finished_run: Path, tmp_path: Path, manifest: str
) -> None:
    """Whatever held a manifest.json was deleted with all that lay beside it."""
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "index.html").write_text("precious")
    with pytest.raises(ExportError, match="exists and is not a bundle"):
        build_bundle(finished_run, tmp_path)
    assert (tmp_path / "index.html").read_text() == "precious"


def test_what_lies_beside_a_bundle_is_named_and_kept(finished_run: Path, tmp_path: Path) -> None:
    build_bundle(finished_run, tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("precious")
    (tmp_path / "bundle" / "pictures").mkdir()
    with pytest.raises(ExportError, match=r"would be deleted: move notes\.txt, pictures away"):
        build_bundle(finished_run, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "precious"


def test_a_graph_that_the_manifest_does_not_name_is_kept_too(finished_run: Path, tmp_path: Path) -> None:
    """Any .onnx was taken as the bundle's own, and deleted."""
    build_bundle(finished_run, tmp_path / "bundle")
    (tmp_path / "bundle" / "mine.onnx").write_text("precious")
    with pytest.raises(ExportError, match=r"would be deleted: move mine\.onnx away"):
        build_bundle(finished_run, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "mine.onnx").read_text() == "precious"


def test_a_bundle_of_another_format_is_replaced(finished_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text(json.dumps({"format_version": 0, "graphs": {}}))
    build_bundle(finished_run, target)
    load_bundle(target)


def test_a_link_is_kept_and_what_it_points_at_is_replaced(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tmp_path / "elsewhere" / "first")
    build_bundle(finished_run, tmp_path / "current")  # to a place that is not there yet
    build_bundle(finished_run, tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    load_bundle(tmp_path / "elsewhere" / "first")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["first"]


def test_a_link_to_itself_is_a_message_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback after the whole verification."""
    monkeypatch.setattr("export.build.load_run", None)  # would be called
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert command.main(["run", str(tmp_path / "one")]) == 1
    said = f"error: {tmp_path / 'one'} is a link that leads back to itself: choose another folder\n"
    assert capsys.readouterr().err == said
    assert renew.main([str(tmp_path / "one")]) == 1
    assert capsys.readouterr().err == said


def size_of(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB"


def test_the_working_folder_is_a_target_too(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder cannot be renamed by the name of `.`, which is then that of the deleted one: its size was 0.0 MB."""
    build_bundle(finished_run, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path / "bundle")
    assert command.main([str(finished_run), "."]) == 0
    load_bundle(tmp_path / "bundle")
    assert size_of(tmp_path / "bundle") != "0.0 MB"
    assert size_of(tmp_path / "bundle") in capsys.readouterr().out


def test_another_export_to_the_same_folder_may_be_under_way(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It had moved away what this one had written, whose size was a traceback."""

    def moved_on(target: Path, folder: Path, previous: Path) -> None:
        replace_bundle(target, folder, previous)
        target.rename(tmp_path / "by the other")

    monkeypatch.setattr("export.build.replace_bundle", moved_on)
    assert command.main([str(finished_run), str(tmp_path / "bundle")]) == 0
    assert size_of(tmp_path / "by the other") in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_a_message(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert command.main([str(finished_run), str(tmp_path / "bundle")]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"error: {tmp_path / 'bundle'} cannot be written (No space left on device): make room there, correct its "
        "permissions, or choose another folder\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message was that of the system about a temporary folder."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", ".export-")

    monkeypatch.setattr("export.target.tempfile.TemporaryDirectory", denied)
    with pytest.raises(ExportError, match=rf"^{tmp_path} cannot be written to \(Permission denied\): correct its"):
        build_bundle(finished_run, tmp_path / "bundle")


def test_ctrl_c_is_no_traceback(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.build.build_bundle", interrupted)
    assert status_of(lambda: command.main([str(finished_run), str(tmp_path / "bundle")])) == 130
    assert capsys.readouterr().err == "ended by Ctrl-C\n"


HALTS = """
import runpy, sys, time
import export.build
from service.bundle.fields import Parity
def halt(folder):
    print("writing", flush=True)
    time.sleep(60)
export.build.load_bundle = halt
export.build.verify = lambda *_: Parity(
    pictures=0, codes_compared=0, codes_different=0, largest_pixel_difference=0
)
sys.argv = ["export", *sys.argv[1:]]
runpy.run_module("export", run_name="__main__")
"""


def test_an_export_that_is_told_to_end_leaves_nothing(finished_run: Path, tmp_path: Path) -> None:
    """Its temporary folder, as large as the bundle, stayed beside the target."""
    arguments = [sys.executable, "-c", HALTS, str(finished_run), str(tmp_path / "bundle")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert [path.name.startswith(".export-") for path in tmp_path.iterdir()] == [True]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143  # and not 0, after the sleep
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_the_service_would_refuse_is_a_message(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path) -> None:
        raise BundleError("codes.height: Input should be less than or equal to 1024")

    monkeypatch.setattr("export.build.load_bundle", refused)
    assert command.main([str(finished_run), str(tmp_path / "bundle")]) == 1
    assert capsys.readouterr().err.startswith("error: codes.height")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut its files were empty, and the older bundle was gone."""
    target, new, previous = tmp_path / "bundle", tmp_path / "new", tmp_path / "previous"
    for folder in (target, new):
        folder.mkdir()
        for name in ("decoder.onnx", "manifest.json"):
            (folder / name).write_text(folder.name)
    done = on_the_disk(monkeypatch)
    replace_bundle(target, new, previous)
    assert sorted(done[:2]) == ["decoder.onnx: new", "manifest.json: new"]
    assert done[2:] == ["new: a folder", "bundle -> previous", "new -> bundle"]


def test_a_disk_that_cannot_sync_a_folder_takes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()

    def invalid(_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("os.fsync", invalid)
    replace_bundle(tmp_path / "bundle", tmp_path / "new", tmp_path / "previous")
    assert (tmp_path / "bundle").is_dir()
