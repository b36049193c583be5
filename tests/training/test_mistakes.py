"""A mistake is a message that says what to change, and it costs nothing that was there before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.conftest import TINY, copied, tiny_config
from training.__main__ import main
from training.config import ConfigError, load_config
from training.data import DataError
from training.fit import fit, require_keys_read
from training.models.exactness import ExactnessError
from training.runs import (
    AUTOENCODER_FILE,
    PRIOR_FILE,
    hold_folder,
    load_run,
    read_json,
    write_json,
)
from training.runs.writing import WriteError

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed_up(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="already holds a run"):
        fit(tiny_config(), tiny_run)
    with pytest.raises(ConfigError, match=r"with another configuration, in trainer\.seed: going on needs"):
        fit(tiny_config("trainer.seed=2"), tiny_run, resume=True)


def test_a_mistake_in_the_data_leaves_no_run_behind(tmp_path: Path) -> None:
    """The corrected configuration was refused, because the folder held the first one."""
    with pytest.raises(DataError, match=r"is no path here .*: correct it, or say with --data where"):
        fit(tiny_config("data.source=nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.accelerator=cuda", "trainer: .*CUDA"),
        ("trainer.devices=-1", "trainer: "),
        ("trainer.accelerator=tpu", "trainer: "),
        ("autoencoder.system=cvae", "no labels"),
    ],
)
def test_a_mistake_in_model_or_trainer_leaves_no_run_behind(tmp_path: Path, override: str, said: str) -> None:
    if torch.cuda.is_available() and "cuda" in override:
        pytest.skip("needs a machine without CUDA")
    np.savez(tmp_path / "d.npz", images=np.zeros((50, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match=said):
        fit(tiny_config(f"data.source={tmp_path}/d.npz", override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["quantizer.kind=fsq", "quantizer.codebook_size=1024"],
            r"kind fsq does not read autoencoder\.quantizer\.codebook_size",
        ),
        (["quantizer.kind=fsq", "dimension=8"], r"kind fsq does not read autoencoder\.dimension: leave it out"),
        (
            ["quantizer.context_rate_weight=0.5", "quantizer.levels=[4]"],
            r"kind ema does not read .*\.levels, .*\.context_rate_weight: leave",
        ),
    ],
)
def test_a_key_of_another_kind_of_quantizer_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    """It was ignored, and the run another one than was asked for."""
    (tmp_path / "c.yaml").touch()
    config = load_config(tmp_path / "c.yaml", [f"autoencoder.{word}" for word in words])
    with pytest.raises(ConfigError, match=said):
        require_keys_read(config.autoencoder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").touch()
    require_keys_read(config.autoencoder, tmp_path / "run")  # one that has begun may go on
    for shipped in CONFIGS.glob("*.yaml"):
        require_keys_read(load_config(shipped).autoencoder, tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail] can't allocate memory: 9 bytes"), MemoryError()])
def test_too_little_memory_is_told_and_the_corrected_command_may_use_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It was a traceback, and the folder was that of a run with the wrong settings."""

    def too_large(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched, pytest.raises(ConfigError, match=r"lower trainer\.autoencoder\.batch_size"):
        patched.setattr("training.runs.jobs.AutoencoderJob.training_step", too_large)
        fit(tiny_config("trainer.autoencoder.batch_size=256"), tmp_path / "run")
    fit(tiny_config(), tmp_path / "run")
    assert load_run(tmp_path / "run").config.trainer.autoencoder.batch_size != 256


def test_another_error_of_torch_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("training.runs.jobs.AutoencoderJob.training_step", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(tiny_config(), tmp_path / "run")


def test_a_prior_whose_sums_become_inexact_is_not_trained_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the export said so, after all its steps."""
    monkeypatch.setattr("training.models.exactness.EXACT_LIMIT", 1 << 10)
    with pytest.raises(ExactnessError, match=r"float32 is exact below 1024: train the prior with"):
        fit(tiny_config(), tmp_path / "run")
    assert (tmp_path / "run" / AUTOENCODER_FILE).exists() and not (tmp_path / "run" / PRIOR_FILE).exists()


def test_a_mistake_in_the_trainer_is_told_before_the_pictures_are_read(tmp_path: Path) -> None:
    """Of a large folder that takes minutes."""
    with pytest.raises(ConfigError, match="trainer: "):
        fit(tiny_config("data.source=nowhere", "trainer.accelerator=tpu"), tmp_path / "run")


def test_a_run_in_its_own_data_is_refused(tmp_path: Path) -> None:
    """Its sheets became pictures of the data, so that it could neither be resumed nor exported."""
    for index in range(4):
        Image.new("L", (28, 28), index).save(tmp_path / f"{index}.png")
    with pytest.raises(ConfigError, match="choose an --out outside of it"):
        fit(tiny_config(f"data.source={tmp_path}"), tmp_path / "runs" / "tiny")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("job", ["fit", "compare"])
@pytest.mark.parametrize("name", ["file", "file/run", os.fsdecode(b"caf\xe9")])
def test_a_run_folder_that_cannot_be_one_is_told_before_the_pictures_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str, name: str
) -> None:
    """All of them were read first, and of a name that is not UTF-8 TensorBoard made a traceback."""
    (tmp_path / "file").touch()
    assert main([job, "--config", str(TINY), "--data", "nowhere", "--out", str(tmp_path / name)]) == 2
    said = f"{tmp_path / 'file'} is a file" if "file" in name else r"caf\udce9' is not UTF-8"
    assert f"{said}: choose another --out\n" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run cannot be written to \(Not a directory\): correct its permissions, or"):
        hold_folder(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match=r"file cannot be written to \(File exists\)"):  # `compare` did not say it
        hold_folder(tmp_path / "file")


def test_a_run_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message was that of the system about a hidden file, `.lock`."""

    def denied(path: Path, *_: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", denied)
    with pytest.raises(ConfigError, match=r"run cannot be written to \(Permission denied\): correct its permissions"):
        hold_folder(tmp_path / "run")


@pytest.mark.parametrize("error", [None, MemoryError()])
def test_more_devices_than_there_is_memory_for_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """Beyond 64 bits it was a traceback, and below them an empty message."""
    if error is not None:
        monkeypatch.setattr("training.runs.stages.Trainer", Mock(side_effect=error))
    with pytest.raises(ConfigError, match=r"trainer\.devices is 10{20}: there is no memory for so many"):
        fit(tiny_config(f"trainer.devices={10**20}", "trainer.accelerator=cpu"), tmp_path / "run")


def test_processes_that_cannot_share_a_batch_leave_no_run_behind(tmp_path: Path) -> None:
    for stage in ("autoencoder", "prior"):
        overrides = ["trainer.devices=2", f"trainer.{stage}.batch_size=15"]
        with pytest.raises(ConfigError, match=f"trainer.{stage}.batch_size 15 is not a multiple of the 2 processes"):
            fit(tiny_config(*overrides), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "progress.json", "metrics.json"])
def test_a_damaged_file_of_a_run_is_named(tiny_run: Path, tmp_path: Path, name: str) -> None:
    run = copied(tiny_run, tmp_path / "run")
    (run / name).write_bytes((run / name).read_bytes()[:20])
    with pytest.raises(ConfigError, match=rf"{name} is damaged: "):
        load_run(run) if name == "metrics.json" else fit(tiny_config(), run, resume=True)


def test_a_file_of_a_run_that_lacks_its_keys_is_named(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path / "run")
    (run / "progress.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"progress\.json is damaged: digest: Field required; seconds: Field required"
    ):
        fit(tiny_config(), run, resume=True)
    (run / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"metrics\.json is damaged: data: Field required"):
        load_run(run)


def test_a_run_that_is_not_finished_is_told(tiny_run: Path, tmp_path: Path) -> None:
    """It was asked whether the folder was that of a run at all."""
    run = copied(tiny_run, tmp_path / "run")
    (run / "metrics.json").unlink()
    with pytest.raises(ConfigError, match=r"run is not finished: go on with `python -m training fit --resume`"):
        load_run(run)
    with pytest.raises(ConfigError, match=r"config\.json does not exist: is .*nowhere the folder of a finished"):
        load_run(tmp_path / "nowhere")


def test_damaged_weights_are_named(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path / "run")
    (run / PRIOR_FILE).write_bytes((run / PRIOR_FILE).read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"prior\.safetensors is damaged .*: delete it"):
        load_run(run)
    shutil.copy(run / AUTOENCODER_FILE, run / PRIOR_FILE)
    with pytest.raises(ConfigError, match=r"prior\.safetensors has the weights of another model: delete it"):
        load_run(run)


def test_a_file_of_a_run_that_may_not_be_read_is_told(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights "did not exist"."""

    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    def hidden(path: Path) -> None:
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr("training.runs.load_file", hidden)  # as safetensors does
    with pytest.raises(ConfigError, match=r"autoencoder\.safetensors cannot be read: correct its permissions"):
        load_run(tiny_run)
    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(
        ConfigError, match=r"config\.json cannot be read \(Permission denied\): correct its permissions"
    ):
        load_run(tiny_run)


def test_a_damaged_checkpoint_is_named(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / PRIOR_FILE).unlink()
    (run / "checkpoints" / "prior.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"prior\.ckpt is damaged or of another run: delete it"):
        fit(tiny_config(), run, resume=True)


def test_a_file_of_a_run_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk left half of it, and the run could not be read any more."""
    write_json(tmp_path / "config.json", {"seed": 1})
    write_text = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        write_text(path, text[:5], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WriteError, match=r"config\.json cannot be written \(No space left on device\): make room"):
        write_json(tmp_path / "config.json", {"seed": 2})
    assert read_json(tmp_path / "config.json") == {"seed": 1}
