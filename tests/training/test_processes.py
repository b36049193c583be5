"""What several processes of a training do together, and what keeps two trainings apart."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from tests.training.conftest import DIGITS, ROOT, TINY, tiny_config, wait_for
from training.__main__ import main
from training.compare import compare
from training.config import ConfigError
from training.fit import fit
from training.runs import hold_folder
from training.runs.callbacks import StopAtNaN, StopAtSIGTERM, TrainingDiverged

STEPS = ("prior=null", "trainer.autoencoder.steps=100000", "trainer.autoencoder.validate_every=5")
CPU = cast(Any, SimpleNamespace(device=torch.device("cpu"), state_dict=lambda: {"weight": torch.zeros(1)}))


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The other of two processes, which is told `told` of a sum over both; `asked` counts the sums."""
    process = SimpleNamespace(told=0.0, asked=0)

    def all_reduce(tensor: Tensor) -> None:
        process.asked += 1
        tensor.add_(process.told)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return process


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_start", "on_train_epoch_end"])
@pytest.mark.parametrize("told", [0.0, 1.0])
def test_a_nan_in_one_process_stops_all(tmp_path: Path, other: SimpleNamespace, hook: str, told: float) -> None:
    """It raised there, and the others waited for its gradients."""
    stop, trainer, other.told = StopAtNaN(tmp_path / "last.ckpt", look_every=1), SimpleNamespace(global_step=1), told
    arguments = ({"loss": torch.tensor(1.0)}, None, 0) if hook == "on_train_batch_end" else ()
    with pytest.raises(TrainingDiverged) if told else nullcontext():
        getattr(stop, hook)(trainer, CPU, *arguments)
    assert other.asked == 1


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end", "on_train_end"])
@pytest.mark.parametrize("who", ["this process", "the other", "nobody"])
def test_a_sigterm_of_one_process_ends_all_at_the_next_look(hook: str, who: str, other: SimpleNamespace) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop, trainer = StopAtSIGTERM(look_every=5), cast(Any, SimpleNamespace(world_size=2, global_step=20))
    stop.on_train_start(trainer, CPU)
    try:
        other.told = float(who == "the other")
        if who == "this process":
            signal.raise_signal(signal.SIGTERM)
        arguments = () if hook == "on_train_end" else (None, None, 0)
        with nullcontext() if who == "nobody" else pytest.raises(SIGTERMException):
            getattr(stop, hook)(trainer, CPU, *arguments)
        assert other.asked == 1
        assert (signal.getsignal(signal.SIGTERM) == before) == (hook == "on_train_end")
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("processes", "step", "looks"), [(1, 21, True), (2, 21, False), (2, 25, True)])
def test_one_process_looks_at_every_step_and_several_every_few(processes: int, step: int, looks: bool) -> None:
    stop, trainer = StopAtSIGTERM(look_every=5), cast(Any, SimpleNamespace(world_size=processes, global_step=step))
    stop._told = True
    with pytest.raises(SIGTERMException) if looks else nullcontext():
        stop.on_train_batch_end(trainer, CPU, None, None, 0)


@pytest.mark.parametrize("told", ["both", "the second"])
def test_two_processes_that_are_told_to_end_do_so(tmp_path: Path, told: str) -> None:
    """Each broadcast the news from its signal handler, in the midst of a sum over both, and waited for the other."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "training", "fit", "--config", str(TINY), "--data", str(DIGITS), "--out", str(run)]
    with subprocess.Popen(
        [*command, *STEPS, "trainer.devices=2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        try:
            wait_for(run / "checkpoints" / "autoencoder.ckpt", training)
            if told == "both":
                os.killpg(training.pid, signal.SIGTERM)
            else:
                children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text()
                os.kill(int(children), signal.SIGTERM)
            _, said = training.communicate(timeout=120)  # the end of stderr, which both processes write to
        finally:
            if training.poll() is None:
                os.killpg(training.pid, signal.SIGKILL)
    assert training.returncode == 128 + signal.SIGTERM, said[-2000:]
    assert said.count("--resume goes on") == 1 and "Traceback" not in said
    assert "sync_dist" not in said and "broadcast_buffers" not in said  # a paragraph for each number, with wrong advice


@pytest.mark.parametrize(("rank", "level"), [(None, logging.INFO), ("0", logging.INFO), ("1", logging.ERROR)])
def test_one_process_of_several_tells_of_the_pictures(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, level: int
) -> None:
    """Each file that was skipped was told once for each GPU."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(logging, "basicConfig", told.update)
    monkeypatch.setattr("training.fit.fit", lambda *_, **__: {})
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert main(["fit", "--config", str(TINY)]) == 0
    assert told["level"] == level


# two trainings

HOLD = """
import sys
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
with open(sys.argv[1], "w") as lock:
    flock(lock, LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    """Two `fit --resume` at once wrote one another's checkpoints."""
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"another process trains in .*run: end it, or choose another --out"):
            fit(tiny_config(), tmp_path / "run", resume=True)
        with pytest.raises(ConfigError, match=r"another process trains in .*run: end it"):
            compare(tiny_config(), tmp_path / "run", "")  # two trained the classifier into the same files
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        holder.communicate()
    for _ in range(2):
        hold_folder(tmp_path / "run")  # this process may, again and again
    ask = HOLD.replace("LOCK_EX)", "LOCK_SH | LOCK_NB)")
    refused = subprocess.run([sys.executable, "-c", ask, str(lock)], input="", capture_output=True, text=True)
    assert "BlockingIOError" in refused.stderr
