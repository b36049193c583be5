"""Sheets of pictures, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from training import report
from training.data import load_data
from training.models.autoencoders import VQVAE
from training.models.prior import PixelCNN
from training.report.sheets import interleave, sheet, write_png
from training.runs import load_run


def test_a_sheet_has_its_pictures_row_by_row_on_grey() -> None:
    """Four pictures of 2 x 3 pixels in rows of three, two grey pixels around each."""
    values = torch.tensor([0, 40, 80, 120])
    drawn = sheet((values / 255)[:, None, None, None].expand(4, 1, 2, 3), columns=3)
    assert drawn.shape == (10, 17, 1) and drawn.dtype == np.uint8
    expected = np.full((10, 17), 128)
    for value, top, left in ((0, 2, 2), (40, 2, 7), (80, 2, 12), (120, 6, 2)):
        expected[top : top + 2, left : left + 3] = value
    assert np.array_equal(drawn[..., 0], expected)


def test_pixels_are_clamped_and_rounded_to_the_nearest_level() -> None:
    pixels = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2.0]).reshape(5, 1, 1, 1)
    assert sheet(pixels, columns=5)[2, 2::3, 0].tolist() == [0, 0, 1, 255, 255]


def test_each_row_of_originals_is_above_its_reconstructions() -> None:
    originals, made = torch.arange(6.0).reshape(6, 1, 1, 1), torch.arange(10.0, 16.0).reshape(6, 1, 1, 1)
    assert interleave(originals, made, columns=3).flatten().tolist() == [0, 1, 2, 10, 11, 12, 3, 4, 5, 13, 14, 15]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_file_has_the_pixels_and_colours_of_its_sheet(tmp_path: Path, channels: int, mode: str) -> None:
    drawn = sheet(torch.rand(2, channels, 3, 4, generator=torch.Generator().manual_seed(0)), columns=2)
    write_png(drawn, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.mode == mode
        assert np.array_equal(np.asarray(picture).reshape(drawn.shape), drawn)


def test_samples_of_too_many_codes_are_not_drawn(caplog: pytest.LogCaptureFixture) -> None:
    """A sheet of a large grid took longer than the training, and was drawn whatever `sample_every` said."""
    prior, model = cast(PixelCNN, SimpleNamespace()), cast(VQVAE, SimpleNamespace())
    assert report.sheet_of_samples(prior, model, (128, 128)) is not None and caplog.messages == []
    assert report.sheet_of_samples(prior, model, (16, 1025)) is None
    assert caplog.messages == ["no sheets of samples: one has 16400 codes, more than 16384"]


def test_a_run_whose_samples_have_too_many_codes_has_no_sheet_of_them(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_CODES_DRAWN", 48)
    run, sheets = load_run(tiny_run), []
    monkeypatch.setattr(report, "write_png", lambda pixels, path: sheets.append(path.name))
    report._write_sheets(run.config, load_data(run.config.data), run.autoencoder, run.prior, tmp_path)
    assert sheets == ["reconstructions.png"]
