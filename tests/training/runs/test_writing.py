"""A file of a run is whole or absent, and one that cannot be written is named."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.power_cut import on_the_disk
from tests.training.conftest import noise
from training.report.sheets import write_png
from training.runs import save_weights, write_json
from training.runs.callbacks import AtomicCheckpointIO
from training.runs.writing import WriteError, written_whole


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a disk with no more room does to a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.safetensors": partial(save_weights, nn.Linear(300, 300)),
    "a.ckpt": partial(AtomicCheckpointIO().save_checkpoint, {"state_dict": {"weight": torch.zeros(300, 300)}}),
    "a.png": partial(write_png, noise((200, 200, 3))),
    "a.json": lambda path: write_json(path, {"numbers": list(range(50_000))}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_for_which_there_is_no_room_is_named_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """Weights ended in a traceback, no message named its file, and the part that was written took the last room."""
    path = tmp_path / name
    path.write_bytes(b"earlier")
    with largest_file(100_000), pytest.raises(WriteError, match=rf"{path} cannot be written \(.*File too large.*make"):
        WRITERS[name](path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(name, b"earlier")]
    WRITERS[name](path)
    assert [file.name for file in tmp_path.iterdir()] == [name] and path.stat().st_size > 100_000


@pytest.mark.parametrize("name", WRITERS)
def test_who_may_read_a_file_is_up_to_the_umask(tmp_path: Path, name: str) -> None:
    """Weights were the owner's alone, and to another user, who would export the run, they "did not exist"."""
    before = os.umask(0o027)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    """The message of the system about a hidden file, which could not be removed either, took its place."""
    with pytest.raises(WriteError, match=r"a\.json cannot be written \(File name too long\): make room"):
        write_json(tmp_path / f"{'a' * 250}.json", {})


def test_an_interrupted_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a", "run it again") as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the checkpoint was an empty file, and the one before it was gone."""
    done = on_the_disk(monkeypatch)
    with written_whole(tmp_path / "a", "run it again") as beside:
        beside.write_text("whole")
    assert done == [f"{beside.name}: whole", f"{beside.name} -> a"]
