"""How many codes a few photographs use: the perplexity of the held-out ones beside that of as many of the others.

    python -m benchmarks.photo_perplexity [data/photos] [--bundle models/photos] [--record]

In: a folder of photographs and a bundle trained on it. Out: the perplexity of the codes of the held-out photographs,
of all others, and the 5th, 50th and 95th percentile of random sets of as many others, in one line of JSON; `--record`
also writes docs/results/photo_perplexity.json and a section of docs/benchmarks.md, which adds what other quantizers
gave (docs/results/photos_quantizers.json), and other settings of the learned ones (photos_rate_weight.json).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.picture_codecs import Vqserve
from benchmarks.report import RESULTS, command_line, table, write_result, write_section
from service.pictures.pixels import to_pixels
from service.telemetry import traffic
from training.data.folder import split_files

SETS = 1000
TILE = 128  # pixels: training and test look at crops of this size
QUANTIZERS, TRAINED = "photos_quantizers", "photos_rate_weight"
PRICE = {"psnr_db": ".2f", "ms_ssim": ".3f", "bits_per_pixel": ".3f"}
Counts = NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/photos"))
    parser.add_argument("--bundle", type=Path, default=Path("models/photos"))
    parser.add_argument("--held-out", type=float, default=0.15, help="the fraction that training put aside")
    parser.add_argument("--record", action="store_true", help="write docs/results and docs/benchmarks.md")
    options = parser.parse_args(arguments)
    vqserve = Vqserve(options.bundle)
    files = split_files(options.folder, options.held_out, TILE)
    others, held_out = ([histogram(vqserve, path) for path in part] for part in files)
    random = np.random.default_rng(0)
    sets = [perplexity(random.permutation(others)[: len(held_out)]) for _ in range(SETS)]
    result = {
        "command": command_line(),
        "bundle": {"name": options.bundle.name, "version": vqserve.bundle.manifest.version},
        "codebook_size": vqserve.bundle.manifest.codes.codebook_size,
        "held_out": {"pictures": len(held_out), "perplexity": perplexity(held_out)},
        "others": {"pictures": len(others), "perplexity": perplexity(others)},
        "training_crops": perplexity([np.array(vqserve.bundle.manifest.code_histogram)]),
        "as_many_others": {f"{percent} %": float(np.percentile(sets, percent)) for percent in (5, 50, 95)},
    }
    if options.record:
        write_result("photo_perplexity", result)
        write_section("photo_perplexity", page(result))
    print(json.dumps(result))


def histogram(vqserve: Vqserve, path: Path) -> Counts:
    """(K,): how often each code occurs in the picture, decoded as the service does it and cut to whole tiles."""
    with Image.open(path) as opened:
        pixels = np.asarray(to_pixels(opened, 3))
    height, width = (side // TILE * TILE for side in pixels.shape[:2])
    codes = vqserve.encode(pixels[None, :height, :width])
    return np.bincount(codes.ravel(), minlength=vqserve.bundle.manifest.codes.codebook_size)


def perplexity(counts: Iterable[Counts]) -> float:
    """exp(entropy) of all counts (K,) together."""
    return traffic.perplexity(np.sum(list(counts), axis=0))


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    low, middle, high = result["as_many_others"].values()
    held_out, others = result["held_out"], result["others"]
    return "\n\n".join(
        [
            "## Perplexity of a few photographs",
            f"`{result['command']}`. `{result['bundle']['name']}` uses its {result['codebook_size']} codes: their "
            f"perplexity is {result['training_crops']:.0f} on the crops that it was trained on, "
            f"{others['perplexity']:.0f} on the {others['pictures']} photographs that were not held out, and "
            f"{held_out['perplexity']:.0f} on the {held_out['pictures']} held-out ones (whole; the manifest has that "
            f"of their crops). Any {held_out['pictures']} of the {others['pictures']} others have {low:.0f} to "
            f"{high:.0f} (5th to 95th percentile of {SETS:,} random sets, median {middle:.0f}).",
            quantizers(),
            moving_averages(),
        ]
    )


def quantizers() -> str:
    """What each way to a codebook gave, and its price."""
    found = read(QUANTIZERS)
    rows = [
        [
            one["kind"],
            one["usage_weight"] or "-",
            one["context_rate_weight"] or "-",
            *(f"{steps:,}" for steps in one["steps"]),
            f"{one['psnr_db']:.2f}",
            shown(one["bits_per_code"]),
            f"{one['perplexity_held_out']:.0f}",
            *(shown((one["rate_distortion"] or {}).get(name), form) for name, form in PRICE.items()),
        ]
        for one in found["runs"]
    ]
    heading = ["KIND", "U", "C", "S", "P", "crops: PSNR, dB", "bits a code", "perplexity", "whole: PSNR, dB", "MS-SSIM"]
    learned, spread, *_, priced, shipped = found["runs"]
    more = spread["bits_per_code"] / learned["bits_per_code"] - 1
    return "\n\n".join(
        (
            "Four photographs do not use all codes by themselves. The trainings, each measured on the held-out "
            f"photographs, the last one is what ships (`{found['command']}` on {found['machine']}):",
            table([*heading, "bits a pixel"], rows),
            "A codebook of moving averages has codes for meadows, and photographs without one do not use them: "
            f"{learned['perplexity_held_out']:.0f}. A fixed grid whose use is rewarded (U, `usage_weight`) has "
            f"{spread['perplexity_held_out']:.0f}, for {100 * more:.0f} % more bits a code: it spends them on "
            "differences that nothing around a code tells of, and smooth surfaces get blotches. With a price on just "
            f"these (C, `context_rate_weight`), codes are in use and predictable: {priced['perplexity_held_out']:.0f} "
            "for about the bytes of the moving averages, but fine texture is smoother, and some blotches stay. Trained "
            "for longer, with less reward and a higher price, it is better than that in each figure "
            f"({shipped['perplexity_held_out']:.0f} in use), with fewer blotches.",
        )
    )


def moving_averages() -> str:
    """What the settings of a learned codebook change."""
    trained = read(TRAINED)
    rows = [
        [
            one["rate_weight"],
            one["restart_below"],
            f"{one['psnr_db']:.2f}",
            f"{one['bits_per_code']:.2f}",
            f"{one['perplexity_held_out']:.0f}",
            f"{one['perplexity_training']:.0f}",
        ]
        for one in trained["runs"]
    ]
    return "\n\n".join(
        (
            "With moving averages, neither training without the rate term nor moving more codes changes the perplexity "
            f"of the held-out ones (`{trained['command']}` on {trained['machine']}):",
            table(["R", "B", "held out: PSNR, dB", "bits a code", "perplexity", "training: perplexity"], rows),
        )
    )


def shown(value: float | None, form: str = ".2f") -> str:
    return "not measured" if value is None else format(value, form)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
