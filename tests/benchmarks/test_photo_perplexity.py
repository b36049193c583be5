"""Perplexity from histograms of codes, and pictures that are no whole number of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photo_perplexity import TILE, histogram, perplexity
from benchmarks.picture_codecs import Vqserve
from service.pictures.images import to_picture
from tests.tiny_bundle import write_tiny_bundle


def test_the_perplexity_is_that_of_all_counts_together() -> None:
    one, other = np.array([4, 0, 0]), np.array([0, 4, 0])
    assert perplexity([one]) == pytest.approx(1)
    assert perplexity([one, other]) == pytest.approx(2)
    assert perplexity([np.array([1, 1, 1])]) == pytest.approx(3)


def test_a_picture_is_counted_in_whole_tiles(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "colour", "colour", any_size=True)
    vqserve = Vqserve(tmp_path / "colour")
    pixels = np.random.default_rng(0).integers(0, 256, (TILE + 50, 2 * TILE + 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    counts = histogram(vqserve, tmp_path / "wide.png")
    spec = vqserve.bundle.manifest
    assert counts.shape == (spec.codes.codebook_size,)
    assert counts.sum() == 2 * (TILE // spec.picture.multiple_of) ** 2
    cut = vqserve.encode(pixels[None, :TILE, : 2 * TILE])
    assert np.array_equal(counts, np.bincount(cut.ravel(), minlength=len(counts)))


def test_a_picture_is_the_one_that_the_service_sees(tmp_path: Path) -> None:
    """What a model was trained on: upright, and with white behind what is transparent."""
    write_tiny_bundle(tmp_path / "colour", "colour", any_size=True)
    vqserve = Vqserve(tmp_path / "colour")
    pixels = np.random.default_rng(0).integers(0, 256, (TILE, 2 * TILE, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    with Image.open(tmp_path / "turned.png") as opened:
        seen = to_picture(opened, vqserve.bundle.manifest.picture, "exact").pixels
    counts = histogram(vqserve, tmp_path / "turned.png")
    assert np.array_equal(counts, np.bincount(vqserve.encode(seen[None]).ravel(), minlength=len(counts)))
