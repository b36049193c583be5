"""A stage goes on from its checkpoint, or names the file: damaged, of another run, or with code in it."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.runs.test_stages import STEPS, Slope, run
from training.config import ConfigError
from training.runs import stages
from training.runs.stages import checkpoint_of
from training.runs.writing import WriteError

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .1. is smaller than the logging")


def test_a_run_that_ends_while_it_writes_a_checkpoint_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Path.write_bytes, 0

    def cut_off(path: Path, content: memoryview) -> int:
        nonlocal count
        count += 1
        if count == 2:
            write(path, b"half")
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(WriteError, match=r"slope\.ckpt cannot be written \(No space .*make room .*go on with --resume"):
        run(Slope(STEPS), tmp_path)
    resumed = Slope(STEPS)
    run(resumed, tmp_path)
    assert resumed.taken == 3


class Foreign:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a stage that has ended after its first checkpoint."""

    def end(job: Slope) -> None:
        if job.taken == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(Slope(STEPS, at_step=end), tmp_path)
    return tmp_path


@pytest.mark.parametrize("checked", [True, False], ids=["by the check", "by Lightning"])
def test_a_checkpoint_cannot_run_code(begun: Path, monkeypatch: pytest.MonkeyPatch, checked: bool) -> None:
    path, mark = checkpoint_of("slope", begun), begun / "mark"
    torch.save(torch.load(path, weights_only=True) | {"more": Foreign(mark)}, path)
    if not checked:
        monkeypatch.setattr(stages, "require_checkpoint", lambda path, job: None)
    with pytest.raises(ConfigError if checked else pickle.UnpicklingError):
        run(Slope(STEPS), begun)
    assert not mark.exists()


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def _flip_weight(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data/0")))
    content = path.read_bytes()
    names = int.from_bytes(content[entry.header_offset + 26 :][:2], "little")  # the two lengths of a local header
    extra = int.from_bytes(content[entry.header_offset + 28 :][:2], "little")
    _flip(path, entry.header_offset + 30 + names + extra)


def _flip_pickle(path: Path) -> None:
    _flip(path, path.read_bytes().index(b"state_dict"))


def _flip_directory(path: Path) -> None:
    _flip(path, path.read_bytes().rindex(b"PK\x01\x02") + 46)  # the first letter of a name: no UTF-8 any more


def _move_directory(path: Path) -> None:
    """By a byte, so that the first file begins before the archive. That was an error of the disk, of no file."""
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\6\6") + 48] += 1
    path.write_bytes(data)


def _replace_by_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")


def _compress(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def _save(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    torch.save(change(torch.load(path, weights_only=True)), path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "a weight": _flip_weight,
    "the pickle": _flip_pickle,
    "the directory": _flip_directory,
    "where the directory is": _move_directory,
    "another zip": _replace_by_zip,
    "compressed": _compress,
    "a list": partial(_save, change=list),
    "weights alone": partial(_save, change=lambda saved: saved["state_dict"]),
    "no optimizer": partial(_save, change=lambda saved: {k: v for k, v in saved.items() if k != "optimizer_states"}),
    "weights that are none": partial(_save, change=lambda saved: saved | {"state_dict": None}),
    "another model": partial(_save, change=lambda saved: saved | {"state_dict": nn.Linear(1, 1).state_dict()}),
    "another shape": partial(
        _save, change=lambda saved: saved | {"state_dict": saved["state_dict"] | {"model.weight": torch.zeros(3, 1)}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_checkpoint_that_is_damaged_or_of_another_run_is_named(begun: Path, damage: Callable[[Path], Any]) -> None:
    """Only a file that was no zip was told from a whole one: torch compares no checksum."""
    damage(checkpoint_of("slope", begun))
    job = Slope(STEPS)
    with pytest.raises(ConfigError, match=r"slope\.ckpt is damaged or of another run: delete it, and --resume begins"):
        run(job, begun)
    assert job.taken == 0


def test_an_error_of_the_training_itself_blames_no_checkpoint(begun: Path) -> None:
    def fail(_: Slope) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(Slope(STEPS, at_step=fail), begun)


def test_a_sheet_that_is_interrupted_loses_no_steps(tmp_path: Path) -> None:
    """The checkpoint came after it, and a sheet can take minutes."""
    drawn = 0

    def draw() -> Any:
        nonlocal drawn
        drawn += 1
        raise KeyboardInterrupt

    for taken in (2, 2, 1, 0):  # two validations, and the end
        job = Slope(STEPS)
        if taken:
            with pytest.raises(SystemExit, match="130"):
                run(job, tmp_path, sheet=("sheet", draw))
        else:
            run(job, tmp_path, sheet=("sheet", draw))
        assert job.taken == taken
    assert (drawn, checkpoint_of("slope", tmp_path).exists()) == (3, True)


@pytest.mark.parametrize(
    ("step", "said"),
    [(1, "no checkpoint of this stage yet: --resume begins it anew"), (3, "--resume goes on from the")],
)
def test_an_interruption_speaks_of_no_checkpoint_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int, said: str
) -> None:
    def end(job: Slope) -> None:
        if job.taken == step:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        run(Slope(STEPS, at_step=end), tmp_path)
    assert caplog.messages[-1].startswith(f"ended by Ctrl-C: {said}")
