"""Rate against distortion: bundles beside JPEG, WebP, AVIF and JPEG XL on the same pictures, bytes with every header.

    python -m benchmarks.rate_distortion data/mnist --bundle models/mnist
    python -m benchmarks.rate_distortion data/photos --bundle models/photos --held-out 0.15

In: a folder of MNIST's files (the test digits are taken) or of photographs, and bundles. Out: every row in
docs/results/rate_distortion_mnist.json or _photos.json, a plot beside it, and a summary in one line of JSON. Quality is
the mean over pictures of each picture's PSNR and MS-SSIM, and the MSE on [0,1]; times are means a picture, one thread.
`--held-out` keeps the pictures that training with that `test_fraction` put aside; `--record` also writes
a section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.picture_codecs import Coded, Point, Setting, Vqserve, lossless_points, lossy_points
from benchmarks.plot import Line, svg
from benchmarks.quality import Pixels, at_rate, bd_rate, mean_squared_error, ms_ssim, psnr_db
from benchmarks.rate_distortion_report import PEERS, page, plot_name
from benchmarks.report import RESULTS, command_line, write_result, write_section
from service.pictures.pixels import to_pixels
from training.data.arrays import parse_idx, read_bytes
from training.data.folder import picture_files, split_files

MNIST_TEST = "t10k-images-idx3-ubyte.gz"
LEAST_ERROR = 1e-10  # a picture that a lossy codec leaves exact counts as 100 dB
TOGETHER = 64  # pictures a container, where several share one
CROP, CROPS_A_PICTURE = 128, 4
WIDEST = 1280  # pixels; larger photographs are scaled down to it


@dataclass(frozen=True)
class Row:
    """One codec at one setting, over all pictures of a section. `ms_ssim` is None where they are too small for it."""

    section: str
    codec: str
    setting: str
    pictures: int
    bytes_per_picture: float
    bits_per_pixel: float
    mse: float
    psnr_db: float | None  # None: lossless
    ms_ssim: float | None
    encode_ms: float
    decode_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/mnist"))
    parser.add_argument("--bundle", type=Path, action="append", help="may be repeated; default models/mnist or photos")
    parser.add_argument("--pictures", type=int, help="only so many: for a quick look")
    parser.add_argument("--alone", type=int, help="digits: only so many one by one, all of them in common containers")
    parser.add_argument("--held-out", type=float, help="the fraction that training put aside")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--record", action="store_true", help="write the section of docs/benchmarks.md too")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder: name one of photographs, or that of the MNIST files")
    if options.out == RESULTS and not options.record:
        parser.error("--record writes the results that are shown: add it, or name another folder with --out")
    mnist = (options.folder / MNIST_TEST).exists()
    name = "mnist" if mnist else "photos"
    bundles = [Vqserve(folder) for folder in options.bundle or [Path("models") / name]]
    rows = (measure_mnist if mnist else measure_photos)(options, bundles)
    result = {
        "command": command_line(),
        "folder": str(options.folder),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}, one thread",
        "bundles": {vqserve.name: vqserve.bundle.manifest.version for vqserve in bundles},
        "rows": [asdict(row) for row in rows],
        "comparisons": [one for section in sections(rows) for one in compare(of_section(rows, section))],
    }
    target = write_result(f"rate_distortion_{name}", result, options.out)
    for section in sections(rows):
        plot = svg(f"{section} of {name}", "bits per pixel", "PSNR in dB", curves(of_section(rows, section)))
        (options.out / plot_name(name, section)).write_text(plot, encoding="utf-8")
    if options.record:
        write_section(f"rate_distortion_{name}", page(name, result))
    print(json.dumps({"rows": len(rows), "result": str(target), **summary(rows)}))


def measure_mnist(options: argparse.Namespace, bundles: Sequence[Vqserve]) -> list[Row]:
    digits = read_mnist(options.folder / MNIST_TEST)[: options.pictures]
    alone = digits[: options.alone]
    rows = [measure("one by one", point, alone) for point in (*lossless_points(), *lossy_points())]
    for vqserve in bundles:
        rows += [measure("one by one", point, alone) for point in vqserve.points()]
        rows += [measure_together(vqserve, digits, setting) for setting in vqserve.settings]
    return rows


def measure_photos(options: argparse.Namespace, bundles: Sequence[Vqserve]) -> list[Row]:
    pictures = read_photos(options.folder, options.held_out)[: options.pictures]
    points = [*lossy_points(), *(point for vqserve in bundles for point in vqserve.points())]
    given = {"crops": crops_of(pictures), "whole pictures": pictures}
    return [measure(section, point, chosen) for section, chosen in given.items() for point in points]


def measure(section: str, point: Point, pictures: Sequence[Pixels]) -> Row:
    """Each picture on its own."""
    coded = [point.code(pixels) for pixels in pictures]
    return row_of(section, point, pictures, [one.pixels for one in coded], coded)


def measure_together(vqserve: Vqserve, pictures: Sequence[Pixels], setting: Setting) -> Row:
    """The same with containers of 64 pictures; sizes and times are a container's divided by its pictures."""
    point = Point(vqserve.name, setting.name, partial(vqserve.code_group, setting=setting))
    groups = [np.stack(pictures[start : start + TOGETHER]) for start in range(0, len(pictures), TOGETHER)]
    coded = [point.code(group) for group in groups]
    return row_of(f"{TOGETHER} together", point, pictures, [one for group in coded for one in group.pixels], coded)


def row_of(
    section: str, point: Point, pictures: Sequence[Pixels], decoded: Sequence[Pixels], coded: Sequence[Coded]
) -> Row:
    pairs = list(zip(pictures, decoded, strict=True))
    errors = [mean_squared_error(one, other) for one, other in pairs]
    total, count = sum(one.size for one in coded), len(pictures)
    return Row(
        section=section,
        codec=point.codec,
        setting=point.setting,
        pictures=count,
        bytes_per_picture=total / count,
        bits_per_pixel=8 * total / sum(pixels.shape[0] * pixels.shape[1] for pixels in pictures),
        mse=fmean(errors),
        psnr_db=None if max(errors) == 0 else fmean(psnr_db(max(error, LEAST_ERROR)) for error in errors),
        ms_ssim=fmean(ms_ssim(one, other) for one, other in pairs) if large(pictures) else None,
        encode_ms=sum(one.encode_ms for one in coded) / count,
        decode_ms=sum(one.decode_ms for one in coded) / count,
    )


def large(pictures: Sequence[Pixels]) -> bool:
    """MS-SSIM needs at least two scales of its window to be what its name says."""
    return all(min(pixels.shape[:2]) > 40 for pixels in pictures)


def read_mnist(path: Path) -> list[Pixels]:
    """(28,28,1) uint8 each."""
    return list(parse_idx(read_bytes(path), path)[..., np.newaxis])


def read_photos(folder: Path, held_out: float | None) -> list[Pixels]:
    """(H,W,3) uint8 each, decoded as the service does it, at most 1280 wide."""
    files = picture_files(folder) if held_out is None else split_files(folder, held_out, CROP)[1]
    pictures = []
    for path in files:
        with Image.open(path) as opened:
            image = to_pixels(opened, 3)
        if image.width > WIDEST:
            image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
        pictures.append(np.asarray(image))
    return pictures


def crops_of(pictures: Sequence[Pixels]) -> list[Pixels]:
    """Four 128x128 crops a picture at places that a fixed seed draws."""
    random = np.random.default_rng(0)
    crops = []
    for pixels in pictures:
        for _ in range(CROPS_A_PICTURE):
            top, left = (int(random.integers(0, side - CROP + 1)) for side in pixels.shape[:2])
            crops.append(pixels[top : top + CROP, left : left + CROP])
    return crops


def sections(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.section for row in rows))


def of_section(rows: Sequence[Row], section: str) -> list[Row]:
    return [row for row in rows if row.section == section]


def curves(rows: Sequence[Row]) -> Mapping[str, Line]:
    """Codec -> (bits per pixel, PSNR), the lossy rows. Raw codes are a line of their own."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.psnr_db is not None:
            name = f"{row.codec} raw" if row.setting == "raw" else row.codec
            lines.setdefault(name, []).append((row.bits_per_pixel, row.psnr_db))
    return lines


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row of ours: what each peer reaches at the same bits per pixel, None where it has no such rate."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if not row.codec.startswith("vqserve"):
            continue
        for peer in PEERS:
            points = [r for r in rows if r.codec == peer and r.psnr_db is not None]
            psnr = at_rate([(r.bits_per_pixel, r.psnr_db or 0.0) for r in points], row.bits_per_pixel)
            similarity = at_rate([(r.bits_per_pixel, r.ms_ssim) for r in points if r.ms_ssim], row.bits_per_pixel)
            head = {"section": row.section, "codec": row.codec, "setting": row.setting, "peer": peer}
            rate = {"bits_per_pixel": row.bits_per_pixel, "psnr_db": row.psnr_db, "peer_psnr_db": psnr}
            found.append({**head, **rate, "ms_ssim": row.ms_ssim, "peer_ms_ssim": similarity})
    lines = curves(rows)
    for ours in (name for name in lines if name.startswith("vqserve")):
        for peer in (name for name in PEERS if name in lines):
            delta = bd_rate(lines[ours], lines[peer])
            if delta is not None:
                found.append({"section": rows[0].section, "codec": ours, "peer": peer, **asdict(delta)})
    return found


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows of ours, shortened."""
    names = ("section", "codec", "setting", "bytes_per_picture", "bits_per_pixel", "mse", "psnr_db", "ms_ssim")
    ours = [asdict(row) for row in rows if row.codec.startswith("vqserve")]
    return {"ours": [{name: rounded(row[name]) for name in names} for row in ours]}


def rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
