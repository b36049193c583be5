"""A run that is interrupted goes on as if nothing had happened, and one that must end says so."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export.__main__ import main as export
from export.build import build_bundle
from tests.training.conftest import DIGITS, ROOT, TINY, VQ_ONLY, assert_same_weights, tiny_config, wait_for
from training.__main__ import main
from training.config import ConfigError
from training.data import DataError, Stream, load_data
from training.fit import fit, fit_autoencoder
from training.runs import (
    AUTOENCODER_FILE,
    PRIOR_FILE,
    begin_progress,
)
from training.runs.callbacks import Stopwatch, TrainingDiverged
from training.runs.stages import require_trainer


@pytest.mark.parametrize("batches_before", [40, 50 + 20], ids=["in the autoencoder", "in the prior"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches_before: int
) -> None:
    folder, batch, count = tmp_path / "run", Stream.batch, 0

    def interrupted(stream: Stream, step: int) -> object:
        nonlocal count
        count += 1
        if count > batches_before:
            raise OSError("the machine went away")
        return batch(stream, step)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "batch", interrupted)
        with pytest.raises(OSError, match="went away"):
            fit(tiny_config(), folder)
    assert not (folder / "metrics.json").exists()
    fit(tiny_config(), folder, resume=True)
    assert_same_weights(tiny_run, folder, AUTOENCODER_FILE, PRIOR_FILE)


def test_a_run_does_not_go_on_with_other_pictures(tmp_path: Path) -> None:
    """The prior was trained on pictures that its autoencoder had never seen, and metrics.json told of those alone."""
    random = np.random.default_rng(0)
    config = tiny_config(*VQ_ONLY, f"data.source={tmp_path / 'd.npz'}")
    np.savez(tmp_path / "d.npz", images=random.integers(0, 256, (60, 8, 8), np.uint8))
    fit(config, tmp_path / "run")
    np.savez(tmp_path / "d.npz", images=random.integers(0, 256, (70, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match="begun with other pictures"):
        fit(config, tmp_path / "run", resume=True)
    with pytest.raises(DataError, match=r"d\.npz holds other pictures"):
        build_bundle(tmp_path / "run", tmp_path / "bundle")


def test_pictures_of_another_shape_are_other_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their bytes are the same. A VQ-VAE went on with them without a word, and the export of one that was finished was
    onnxruntime's traceback."""
    pictures = np.random.default_rng(0).integers(0, 256, (60, 8, 12), np.uint8)
    for name, height in (("old", 8), ("turned", 12)):
        np.savez(tmp_path / f"{name}.npz", images=pictures.reshape(60, height, -1))
    run, turned = tmp_path / "run", str(tmp_path / "turned.npz")
    fit(tiny_config(*VQ_ONLY, f"data.source={tmp_path / 'old.npz'}"), run)
    with pytest.raises(ConfigError, match="begun with other pictures"):
        fit(tiny_config(*VQ_ONLY, f"data.source={turned}"), run, resume=True)
    assert export([str(run), str(tmp_path / "bundle"), "--data", turned]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {turned} holds other pictures than {run} was trained on")


def test_a_run_goes_on_where_its_pictures_have_moved(tmp_path: Path) -> None:
    """It was refused as one of another configuration, though its digest tells that they are the same."""
    pictures = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "old.npz", images=pictures)
    fit(tiny_config(*VQ_ONLY, f"data.source={tmp_path / 'old.npz'}"), tmp_path / "run")
    (tmp_path / "run" / AUTOENCODER_FILE).unlink()
    moved = (tmp_path / "old.npz").rename(tmp_path / "new.npz")
    fit(tiny_config(*VQ_ONLY, f"data.source={moved}"), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / AUTOENCODER_FILE).exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["source"] == str(moved)  # for the export
    np.savez(moved, images=pictures[::-1])
    with pytest.raises(ConfigError, match="begun with other pictures"):
        fit(tiny_config(*VQ_ONLY, f"data.source={moved}"), tmp_path / "run", resume=True)


def test_a_resumed_run_knows_how_long_it_has_trained(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    first = json.loads((tiny_run / "metrics.json").read_text())["seconds"]
    assert first.keys() == {"autoencoder", "prior"} and all(seconds > 0.1 for seconds in first.values())
    assert fit(tiny_config(), tmp_path / "run", resume=True)["seconds"] == first  # nothing was left to train
    before, after = Stopwatch(), Stopwatch()
    after.load_state_dict(before.state_dict() | {"seconds": 100.0})
    assert 100 < after.seconds < 110


def test_processes_but_the_first_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.fit.fit", lambda config, folder, *, resume: {})
    assert main(["fit", "--config", str(TINY)]) == 0
    assert capsys.readouterr().out == ""


def test_a_finished_autoencoder_is_loaded_in_the_memory_layout_of_its_training(tmp_path: Path) -> None:
    """One of 24,500 codes was another one when a run was resumed between autoencoder and prior."""
    config = tiny_config(*VQ_ONLY)
    data = load_data(config.data)
    begin_progress(tmp_path, data)
    trained, loaded = (fit_autoencoder(config, data, tmp_path) for _ in range(2))
    strides = [[tensor.stride() for tensor in model.state_dict().values()] for model in (trained, loaded)]
    assert strides[0] == strides[1]
    assert trained.encoder.mix.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_progress_line_ends_at_the_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stopped at the last multiple of `log_every`, as if steps had been left out."""
    fit(tiny_config("prior=null", "trainer.log_every=20"), tmp_path)
    assert "50/50" in capsys.readouterr().err


def test_lightning_prints_no_tips() -> None:
    lightning = logging.getLogger("lightning.pytorch")
    lightning.setLevel(logging.INFO)
    require_trainer(tiny_config())
    assert not lightning.isEnabledFor(logging.INFO)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_does_not_look_finished(tmp_path: Path, told: signal.Signals) -> None:
    """Lightning ends on SIGTERM with status 0, as if the run had come to its end, and on Ctrl-C with 1."""
    run = tmp_path / "run"
    steps = ("prior=null", "trainer.autoencoder.steps=100000", "trainer.autoencoder.validate_every=20")
    command = [sys.executable, "-m", "training", "fit", "--config", str(TINY), "--data", str(DIGITS), "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *steps],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    ) as training:
        try:
            wait_for(run / "checkpoints" / "autoencoder.ckpt", training)
            training.send_signal(told)
            _, said = training.communicate(timeout=120)
        finally:
            training.kill()
    assert training.returncode == 128 + told, said[-2000:]
    assert "--resume goes on" in said and "Traceback" not in said


@pytest.mark.parametrize("bad_step", [20, 49], ids=["between validations", "in the last step"])
def test_a_nan_stops_the_run_and_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_step: int
) -> None:
    batch = Stream.batch

    def poisoned(stream: Stream, step: int) -> object:
        images, labels = batch(stream, step)
        return images.float() * (math.nan if step == bad_step else 1), labels

    monkeypatch.setattr(Stream, "batch", poisoned)
    good = "no checkpoint yet" if bad_step < 25 else r"checkpoint is .*\.ckpt"
    with pytest.raises(TrainingDiverged, match=good) as stop:
        fit(tiny_config("prior=null"), tmp_path)
    assert "--resume" not in str(stop.value)  # a resumed run is the uninterrupted one, to its NaN
    assert not (tmp_path / AUTOENCODER_FILE).exists()
    if bad_step > 25:
        state = torch.load(tmp_path / "checkpoints" / "autoencoder.ckpt", weights_only=True)["state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_run_that_diverges_at_once_is_told_so(tmp_path: Path) -> None:
    """The codebook's start drew from infinite distances: torch's error came before any look at the loss."""
    stage = ["trainer.autoencoder.learning_rate=300", "trainer.autoencoder.warmup_steps=1"]
    with pytest.raises(TrainingDiverged, match="Lower the stage's learning_rate"):
        fit(tiny_config("prior=null", "autoencoder.quantizer.start_step=1", *stage), tmp_path)
