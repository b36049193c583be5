"""`python -m export` before PyTorch is there, and colours of a codebook that is large."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from export import renew
from export.__main__ import main
from export.build import CODES_AT_ONCE, codebook_colours
from tests.training.conftest import ROOT
from training.models.autoencoders import VQVAE
from training.models.networks import Decoder, Encoder
from training.models.quantizers import EMAQuantizer
from training.printing import status_of


class Interrupted(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("command", "folders"), [(main, ["run", "bundle"]), (renew.main, ["bundle"])])
def test_ctrl_c_during_the_imports_is_no_traceback(
    command: Callable[[list[str]], int],
    folders: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "export.target", Interrupted("export.target"))
    assert status_of(lambda: command(folders)) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "ended by Ctrl-C\n"


@pytest.mark.parametrize(("command", "folders"), [(main, ["", "bundle"]), (main, ["run", ""]), (renew.main, [""])])
def test_a_variable_of_the_shell_that_is_not_set_is_no_folder(
    command: Callable[[list[str]], int], folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The current folder was."""
    with pytest.raises(SystemExit):
        command(folders)
    assert "it is empty: name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["export.__main__", "export.renew"])
def test_the_command_line_is_there_before_pytorch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_an_empty_place_of_the_pictures_is_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was taken as not given."""
    assert main([str(finished_run), str(tmp_path / "bundle"), "--data", ""]) == 1
    assert "data.source, or --data, is empty: name a folder" in capsys.readouterr().err


def test_the_colours_of_a_large_codebook_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 65,536 codes at once took 2 GB."""
    torch.manual_seed(0)
    size = 2 * CODES_AT_ONCE + 5
    quantizer = EMAQuantizer(size, 2)
    quantizer.codebook.normal_()
    vqvae = VQVAE(Encoder(3, 2, channels=4, residual_blocks=0), quantizer, Decoder(3, 2, channels=4)).eval()
    decode, batches = vqvae.decode, []

    def counted(codes: torch.Tensor) -> torch.Tensor:
        batches.append(len(codes))
        return decode(codes)

    monkeypatch.setattr(vqvae, "decode", counted)
    colours = codebook_colours(vqvae)
    assert batches == [CODES_AT_ONCE, CODES_AT_ONCE, 5] and len(colours) == size
    for code in (0, CODES_AT_ONCE - 1, CODES_AT_ONCE, size - 1):
        mean = (decode(torch.full((1, 3, 3), code)).mean(dim=(0, 2, 3)) * 255).tolist()
        found = [int(colours[code][start : start + 2], 16) for start in (1, 3, 5)]
        assert found == pytest.approx(mean, abs=0.51)
