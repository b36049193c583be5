"""A run folder tells the truth about its weights, or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.training.conftest import DIGITS, TINY, copied, tiny_config, write_pictures
from training import compare as comparison
from training.__main__ import main
from training.config import ConfigError, DataConfig
from training.data import DataError, would_read_run
from training.fit import fit
from training.report import evaluate
from training.runs import AUTOENCODER_FILE, METRICS_FILE, PRIOR_FILE


@pytest.mark.parametrize("gone", ["config.json", "progress.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_weights_of_which_nothing_tells_are_not_taken_over(
    tiny_run: Path, tmp_path: Path, gone: str, resume: bool
) -> None:
    """The new config.json claimed settings that the old weights had never seen."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (folder / gone).unlink()
    with pytest.raises(ConfigError, match=r"holds autoencoder\.safetensors, prior\.safetensors, checkpoints without"):
        fit(tiny_config("trainer.seed=2"), folder, resume=resume)
    assert not (folder / gone).exists()


def test_a_new_autoencoder_gets_a_prior_of_its_own(tiny_run: Path, tmp_path: Path) -> None:
    """The prior of the deleted one's codes stayed beside it."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (folder / AUTOENCODER_FILE).unlink()
    (folder / "checkpoints" / "autoencoder.ckpt").unlink()
    stale = {name: torch.zeros_like(tensor) for name, tensor in load_file(tiny_run / PRIOR_FILE).items()}
    save_file(stale, folder / PRIOR_FILE)
    (folder / "checkpoints" / "prior.ckpt").write_bytes(b"stale")
    fit(tiny_config(), folder, resume=True)
    expected, found = (load_file(run / PRIOR_FILE) for run in (tiny_run, folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_is_not_measured_on_pictures_that_it_may_have_seen(tmp_path: Path) -> None:
    """With some added, others are the test split: pictures that the run was trained on counted as unseen."""
    random, folder = np.random.default_rng(0), tmp_path / "data"
    folder.mkdir()
    for index in range(40):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{index}.png")
    config = tiny_config(f"data.source={folder}", "prior=null", "trainer.autoencoder.steps=25")
    fit(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    shutil.copy(folder / "0.png", folder / "more.png")
    with pytest.raises(
        DataError, match=r"data holds other pictures than .*run was trained on: bring them back, or say"
    ):
        evaluate(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
    evaluate(tmp_path / "run", str(folder))  # asked for, all of them, under a name of its own
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("key", ["prior.channels", "prior.head_channels", "autoencoder.channels"])
@pytest.mark.parametrize("value", [10**10, 10**20])
def test_a_model_that_cannot_be_made_is_told_before_the_first_stage(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=r"the model cannot be made: |lower prior\.channels"):
        fit(tiny_config(f"{key}={value}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_codebook_beyond_the_limit_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of fifty million codes took 12 GB first, or the process was killed without a word."""
    monkeypatch.setattr("training.fit.build_autoencoder", None)  # would be called
    with pytest.raises(ConfigError, match="the codebook's size would be 50,000,000, and a bundle holds at most"):
        fit(tiny_config("autoencoder.quantizer.codebook_size=50000000"), tmp_path / "run")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: you tried 2147483648 bytes")])
def test_memory_that_is_too_small_for_the_report_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It was a traceback after all steps, and so was each attempt to go on."""
    config = tiny_config("prior=null", "trainer.autoencoder.steps=25")
    with monkeypatch.context() as patched:
        patched.setattr("training.report.draw_reconstructions", Mock(side_effect=error))
        with pytest.raises(ConfigError, match=r"too small to measure the test pictures and draw .*--resume goes on \("):
            fit(config, tmp_path / "run")
    assert fit(config, tmp_path / "run", resume=True)["test"]["pictures"] > 0


def test_a_folder_that_cannot_be_written_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: Path, text: str, **_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", denied)
    assert main(["fit", "--config", str(TINY), "--data", str(DIGITS), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "progress.json cannot be written (Permission denied): " in said


def test_a_comparison_takes_the_word_that_every_message_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that --resume goes on, and refused the word."""
    monkeypatch.setattr(comparison, "compare", lambda *_: {"classifier": {}, "systems": {}})
    assert main(["compare", "--config", str(TINY), "--resume", "--out", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize("gone", [METRICS_FILE, AUTOENCODER_FILE, PRIOR_FILE])
def test_a_comparison_trains_again_what_has_lost_a_file(tiny_run: Path, tmp_path: Path, gone: str) -> None:
    """Damaged weights are to be deleted, it said, and asked for them at the next call."""
    run = copied(tiny_run, tmp_path / "run")
    assert comparison._is_finished(run, tiny_config())
    (run / gone).unlink()
    assert not comparison._is_finished(run, tiny_config())
    assert comparison._is_finished(run, tiny_config("prior=null")) is (gone == PRIOR_FILE)


@pytest.mark.parametrize(
    ("folders", "run", "expected"),
    [
        (("cats", "dogs"), "runs/mine", True),
        (("cats", "dogs"), ".", True),
        (("cats", "dogs"), ".runs/mine", False),
        (("cats", "dogs"), "../runs", False),
        (("train", "test"), "runs/mine", False),
        (("train", "test"), "train/run", True),
        (("train",), "runs/mine", True),
    ],
)
def test_a_run_in_its_own_data_is_known(tmp_path: Path, folders: tuple[str, ...], run: str, expected: bool) -> None:
    for folder in folders:
        write_pictures(tmp_path / "p" / folder, 2)
    config = DataConfig(source=str(tmp_path / "p"))
    assert would_read_run(config, tmp_path / "p" / run) is expected
