"""The measures against other implementations, and the whole benchmark on tiny bundles and a few pictures."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import AvifImagePlugin, Image
from pillow_jxl import JpegXLImagePlugin
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from benchmarks import picture_codecs, rate_distortion, rate_distortion_report
from benchmarks.picture_codecs import EFFORTS, SETTINGS, lossless_points, lossy_points
from benchmarks.plot import svg
from benchmarks.quality import Pixels, at_rate, bd_rate, mean_squared_error, ms_ssim, psnr_db
from service.bundle.fields import PictureSpec
from service.pictures.images import to_picture
from tests.conftest import PICTURES
from tests.tiny_bundle import tiny_prior, write_tiny_bundle


def noisy(shape: tuple[int, ...]) -> tuple[Pixels, Pixels]:
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None] % 256
    first = np.broadcast_to(smooth, shape).astype(np.uint8)
    return first, np.clip(first + random.normal(0, 20, shape), 0, 255).astype(np.uint8)


def test_psnr_of_a_known_error() -> None:
    first = np.full((4, 4, 1), 100, np.uint8)
    assert psnr_db(mean_squared_error(first, first + 10)) == pytest.approx(20 * math.log10(25.5))


@pytest.mark.parametrize("side", [180, 240])
def test_ms_ssim_is_that_of_torchmetrics(side: int) -> None:
    first, second = noisy((side, side + 20, 3))
    tensors = [torch.from_numpy(pixels / 255.0).permute(2, 0, 1)[None] for pixels in (first, second)]
    expected = multiscale_structural_similarity_index_measure(tensors[0], tensors[1], data_range=1.0)
    # torchmetrics counts the reflected border at the coarsest scale, which the paper leaves out; here it is 0.00004.
    assert ms_ssim(first, second) == pytest.approx(float(expected), abs=2e-4)
    assert ms_ssim(first, first) == 1.0


def test_ms_ssim_of_small_pictures_uses_fewer_scales() -> None:
    first, second = noisy((128, 128, 3))
    assert 0 < ms_ssim(first, second) < ms_ssim(first, first) == 1.0


@pytest.mark.parametrize("side", [11, 21, 22, 41, 43, 44, 81, 87, 88, 161, 175, 176])
def test_ms_ssim_has_a_scale_for_each_halving_that_the_window_fits(side: int) -> None:
    """Sides a little above ten times a power of two got one scale too many, on which the window did not fit."""
    first, second = noisy((side, side + 30, 3))
    assert 0 < ms_ssim(first, second) < 0.99
    assert ms_ssim(first, first) == pytest.approx(1, abs=1e-6)  # float32


def test_bd_rate_of_a_curve_that_takes_a_fifth_more_everywhere() -> None:
    reference = [(0.1, 25.0), (0.2, 28.0), (0.4, 31.0), (0.8, 33.5), (1.6, 36.0)]
    more = [(1.2 * rate, quality) for rate, quality in reference]
    found, back = bd_rate(more, reference), bd_rate(reference, more)
    assert found is not None and back is not None
    assert found.bd_rate_percent == pytest.approx(20) and back.bd_rate_percent == pytest.approx(-100 / 6)
    assert (found.low_db, found.high_db) == (25.0, 36.0)
    assert bd_rate(reference[:3], reference) is None


@pytest.mark.parametrize(("raised", "comparable"), [(9.9, True), (10.1, False), (50, False)])
def test_curves_that_share_less_than_a_decibel_are_not_compared(raised: float, comparable: bool) -> None:
    """One figure was a mean over 0.17 dB, which one row of the table would have said as well."""
    reference = [(0.1, 25.0), (0.2, 28.0), (0.4, 31.0), (0.8, 33.5), (1.6, 36.0)]
    better = [(rate, quality + raised) for rate, quality in reference]
    assert (bd_rate(better, reference) is not None) == comparable


def test_quality_at_a_rate_is_interpolated_and_never_extrapolated() -> None:
    curve = [(1.0, 10.0), (4.0, 20.0)]
    assert at_rate(curve, 2.0) == pytest.approx(15.0)
    assert at_rate(curve, 1.0) == 10.0 and at_rate(curve, 0.99) is None and at_rate(curve, 4.01) is None


def test_lossless_codecs_are_lossless_and_lossy_ones_trade_bytes_for_quality() -> None:
    pixels = np.asarray(Image.open(PICTURES / "ladybird_crop.jpg"))
    for point in lossless_points():
        assert np.array_equal(point.code(pixels).pixels, pixels), point
    by_codec: dict[str, list[tuple[int, float]]] = {}
    for point in lossy_points():
        coded = point.code(pixels)
        by_codec.setdefault(point.codec, []).append((coded.size, mean_squared_error(pixels, coded.pixels)))
    assert set(by_codec) == set(rate_distortion_report.PEERS)
    for curve in by_codec.values():
        assert curve[0][0] < curve[-1][0] and curve[0][1] > curve[-1][1]


def test_every_codec_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVIF and JPEG XL took all cores, and the page said that their times were those of one thread."""
    found: dict[str, set[Any]] = {}

    def spied(module: Any, name: str, threads: Callable[..., Any]) -> None:
        made = getattr(module, name)

        def make(*arguments: Any, **options: Any) -> Any:
            found.setdefault(name, set()).add(threads(*arguments, **options))
            return made(*arguments, **options)

        monkeypatch.setattr(module, name, make)

    spied(AvifImagePlugin._avif, "AvifEncoder", lambda *arguments: arguments[4])
    spied(AvifImagePlugin._avif, "AvifDecoder", lambda data, codec, threads: threads)
    for name in ("Encoder", "Decoder"):
        spied(JpegXLImagePlugin, name, lambda **options: options["num_threads"])
    for point in (*lossy_points(), *lossless_points()):
        point.code(noisy((16, 16, 3))[0])
    assert found == {name: {1} for name in ("AvifEncoder", "AvifDecoder", "Encoder", "Decoder")}


def test_photographs_are_those_that_the_service_sees(tmp_path: Path) -> None:
    """Transparency was thrown away here, and 16 bits were clipped, where service and training keep what is seen."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    with Image.open(tmp_path / "turned.png") as opened:
        spec = PictureSpec(height=8, width=8, channels=3, any_size=True, multiple_of=1)
        seen = to_picture(opened, spec, "exact").pixels
    (found,) = rate_distortion.read_photos(tmp_path, None)
    assert np.array_equal(found, seen)


def test_the_plot_is_an_svg_with_every_point_and_name() -> None:
    text = svg("a < b", "x", "y", {"one": [(0, 1), (2, 3)], "two": [(1, 1)]})
    root = ElementTree.fromstring(text)  # noqa: S314 - our own text
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert len(circles) == 3 + 2 and {"one", "two", "a < b"} <= words


def write_photos(folder: Path) -> None:
    folder.mkdir()
    with Image.open(PICTURES / "ladybird_crop.jpg") as image:
        for index, size in enumerate([(150, 131), (131, 200), (140, 140)]):
            image.resize(size).save(folder / f"{index}.png")


def test_the_benchmark_measures_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every_second = {name: qualities[::2] for name, qualities in picture_codecs.QUALITIES.items()}
    monkeypatch.setattr(picture_codecs, "QUALITIES", every_second)
    write_photos(tmp_path / "photos")
    write_tiny_bundle(tmp_path / "b", "b", any_size=True, prior=tiny_prior(label_count=0))
    out = tmp_path / "out"
    rate_distortion.main(
        [str(tmp_path / "photos"), "--bundle", str(tmp_path / "b"), "--held-out", "0.34", "--out", str(out)]
    )
    summary = json.loads(capsys.readouterr().out)
    result = json.loads((out / "rate_distortion_photos.json").read_text())
    assert summary["rows"] == len(result["rows"]) == 2 * (len(lossy_points()) + len(SETTINGS) + len(EFFORTS))
    ours = {(row["section"], row["setting"]): row for row in result["rows"] if row["codec"] == "vqserve b"}
    assert ours["crops", "raw"]["pictures"] == 4 and ours["whole pictures", "raw"]["pictures"] == 1
    # 32 x 32 codes of 4 bits; the header gives the size, 128 x 128, in an extension byte and two varints.
    assert ours["crops", "raw"]["bytes_per_picture"] == 10 + 1 + 4 + 32 * 32 * 4 / 8
    assert ours["crops", "shortest"]["bytes_per_picture"] <= ours["crops", "raw"]["bytes_per_picture"]
    assert ours["crops", "shortest"]["mse"] == ours["crops", "raw"]["mse"]
    assert {one["peer"] for one in result["comparisons"]} == set(rate_distortion_report.PEERS)
    assert (out / "rate_distortion_photos_whole_pictures.svg").exists()


@pytest.mark.parametrize(("given", "said"), [(["nowhere"], "nowhere is no folder"), (["."], "--record writes")])
def test_shown_results_are_written_only_where_that_is_asked_for(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quick look replaced them, and the tests of the page then failed."""
    with pytest.raises(SystemExit):
        rate_distortion.main(given)
    assert said in capsys.readouterr().err


def test_the_benchmark_measures_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = PICTURES.parent / "mnist"
    write_tiny_bundle(tmp_path / "b", "b", prior=tiny_prior())
    arguments = [str(folder), "--bundle", str(tmp_path / "b"), "--pictures", "70", "--alone", "3"]
    rate_distortion.main([*arguments, "--out", str(tmp_path / "out")])
    summary = json.loads(capsys.readouterr().out)
    sizes = {(row["section"], row["setting"]): row["bytes_per_picture"] for row in summary["ours"]}
    assert sizes["one by one", "raw"] == 10 + 49 * 4 / 8 + 0.5  # 24.5 bytes of codes fill 25
    assert sizes["64 together", "raw"] == pytest.approx((2 * 11 + 70 * 24.5) / 70, rel=1e-4)  # five digits


def test_the_page_says_what_each_peer_reaches_at_our_rate_and_who_is_ahead() -> None:
    quality = {"mse": 0.001, "encode_ms": 1.0, "decode_ms": 2.0, "pictures": 1600}
    head = {"section": "crops", "codec": "vqserve b", "setting": "raw"}
    ours = {**head, **quality, "bytes_per_picture": 300.0, "bits_per_pixel": 0.15, "psnr_db": 30.0, "ms_ssim": 0.9}
    behind = {**head, "peer": "JPEG", "peer_psnr_db": 28.0, "peer_ms_ssim": 0.95}
    none = [{**head, "peer": peer, "peer_psnr_db": None, "peer_ms_ssim": None} for peer in ("WEBP", "AVIF", "JXL")]
    rate = {
        "section": "crops",
        "codec": "vqserve b",
        "peer": "JPEG",
        "bd_rate_percent": -12.34,
        "low_db": 28,
        "high_db": 31.26,
    }
    result = {"command": "c", "machine": "m", "rows": [ours], "comparisons": [behind, *none, rate]}
    page = rate_distortion_report.page("photos", result)
    assert "| b, raw | 300 | 0.1500 | 0.00100 | 30.00 | 0.9000 | 1.0 | 2.0 | **28.00** / 0.9500 | - | - | - |" in page
    assert "vqserve b against JPEG -12.3 % (28.0 to 31.3 dB)" in page
    assert "### Crops: 1,600 pictures\n" in page
    assert "(results/rate_distortion_photos_crops.svg)" in page
