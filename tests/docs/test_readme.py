"""The README and the FAQ against models/mnist: what they say is printed is printed, what they show is what it gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs.images import draw
from tests.conftest import PICTURES
from tests.docs.blocks import ADDRESS, BUNDLE, CONSOLE, README, ROOT, blocks_of, checkout, replay, run_script
from tests.service.serving import serving
from vqserve.offline import Offline

PHOTOS = ("photos", "photos-f8")
ROUNDING = 1  # of 255: decoders of two machines may round a half differently


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(BUNDLE) as (_, url):
        yield url.removeprefix("http://")


def test_what_the_readme_shows_is_what_the_service_prints(address: str, tmp_path: Path) -> None:
    checkout(tmp_path)
    transcripts = CONSOLE.findall(README.read_text(encoding="utf-8"))
    assert len(transcripts) >= 4
    assert [replay(block, address, tmp_path) for block in transcripts] == transcripts, "run make docs"
    assert (tmp_path / "threes.png").stat().st_size > 0


def test_the_blocks_of_the_faq_run(address: str, tmp_path: Path) -> None:
    checkout(tmp_path)
    (tmp_path / "digit.png").write_bytes((PICTURES / "digit_7.png").read_bytes())
    for block in blocks_of(ROOT / "docs" / "faq.md", "sh"):
        run_script(block.replace(ADDRESS, address), tmp_path)
    for name, side in (("threes.png", 4 * 28), ("decoded.png", 28)):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (side, side)


@pytest.mark.parametrize("name", draw.DRAWINGS)
def test_the_pictures_are_those_of_the_bundle(name: str) -> None:
    expected = draw.drawing(name)
    with Image.open(ROOT / "docs" / "images" / name) as shown:
        difference = np.abs(np.asarray(shown).astype(int) - expected)
    assert difference.max() <= ROUNDING, "run make docs"


def test_the_bytes_of_the_photographs_are_as_the_readme_says() -> None:
    lengths, coarser = ([len(one) for one in draw.compressed(Offline(ROOT / "models" / name))] for name in PHOTOS)
    *sizes, last = (f"{length:,}" for length in lengths)
    text = README.read_text(encoding="utf-8")
    assert f"{', '.join(sizes)} and {last} bytes" in text
    assert f"`models/photos-f8` takes {sum(coarser) / sum(lengths):.0%}".replace("%", " %") in text


def test_the_perplexity_of_the_training_crops_is_the_committed_result() -> None:
    found = json.loads((ROOT / "docs" / "results" / "photo_perplexity.json").read_text())
    words = f"trained on it is {found['training_crops']:.0f} of {found['codebook_size']}"
    assert words in " ".join(README.read_text(encoding="utf-8").split())


def test_what_the_readme_says_beside_other_codecs_is_the_committed_result() -> None:
    found = json.loads((ROOT / "docs" / "results" / "rate_distortion_photos.json").read_text())
    rates = {
        (one["section"], one["codec"], one["peer"]): one["bd_rate_percent"]
        for one in found["comparisons"]
        if "bd_rate_percent" in one
    }
    expected = {
        ("crops", "vqserve photos-f8", "JPEG"): "73.3 % fewer bytes than JPEG",
        ("whole pictures", "vqserve photos-f8", "JPEG"): "42.5 % fewer than JPEG",
        ("whole pictures", "vqserve photos", "JPEG"): "`models/photos` 5.6 % more",
    }
    text = " ".join(README.read_text(encoding="utf-8").split())
    for key, words in expected.items():
        assert f" {abs(rates[key]):.1f} % {'fewer' if rates[key] < 0 else 'more'}" in f" {words}", key
        assert words in text
    at_our_rate = {
        one["peer"]: one
        for one in found["comparisons"]
        if (one["section"], one["codec"], one.get("setting")) == ("whole pictures", "vqserve photos-f8", "shortest")
    }
    webp, avif, jxl = (at_our_rate[peer] for peer in ("WEBP", "AVIF", "JXL"))
    assert f"{webp['psnr_db']:.2f} dB and an MS-SSIM of {webp['ms_ssim']:.3f}" in text
    assert f"WebP reaches {webp['peer_psnr_db']:.2f} dB and {webp['peer_ms_ssim']:.3f}" in text
    assert f"AVIF with {avif['peer_psnr_db']:.2f} dB and JPEG XL with {jxl['peer_psnr_db']:.2f} dB" in text
    for peer in (avif, jxl):
        assert peer["peer_psnr_db"] > peer["psnr_db"] and peer["peer_ms_ssim"] > peer["ms_ssim"]


def test_the_bits_of_a_digit_without_its_label_are_those_of_the_manifest() -> None:
    bits = json.loads((BUNDLE / "manifest.json").read_text())["quality"]["bits_per_code_unlabelled"]
    assert f"without it they are {bits:.2f} bits and {49 * bits / 8:.1f} bytes" in " ".join(README.read_text().split())


def test_the_table_of_the_rate_term_is_the_committed_result() -> None:
    points = json.loads((ROOT / "docs" / "results" / "rate_term.json").read_text())["points"]
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for point in points:
        numbers = f"{point['mse']:.5f} | {point['perplexity']:.0f} | {point['bits_per_code']:.3f}"
        assert f"{numbers} | {point['bytes_per_digit']:.2f} |" in page
