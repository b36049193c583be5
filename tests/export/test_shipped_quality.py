"""The bundles that ship are as good, on pictures that training has not seen, as they have to be to ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize(
    ("name", "psnr_db", "perplexity", "bits_per_pixel"),
    [("mnist", 27.0, 60, 0.2), ("photos", 28.0, 350, 0.42), ("photos-f8", 25.5, 350, 0.14)],
)
def test_a_shipped_model_meets_its_goals(name: str, psnr_db: float, perplexity: float, bits_per_pixel: float) -> None:
    manifest = json.loads((MODELS / name / "manifest.json").read_text())
    quality, picture, codes = manifest["quality"], manifest["picture"], manifest["codes"]
    assert quality["split"] == "test"
    assert quality["psnr_db"] >= psnr_db
    assert quality["perplexity"] >= perplexity
    pixels = picture["height"] * picture["width"] / (codes["height"] * codes["width"])  # that a code spans
    assert quality["bits_per_code"] / pixels <= bits_per_pixel


def test_the_bundle_of_photographs_is_small() -> None:
    assert sum(path.stat().st_size for path in (MODELS / "photos").iterdir()) <= 12e6
