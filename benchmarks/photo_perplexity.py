"""How many codes a few photographs use: the perplexity of the held-out ones beside that of as many of the others.

    python -m benchmarks.photo_perplexity [data/photos] [--bundle models/photos] [--record]

In: a folder of photographs and a bundle trained on it. Out: the perplexity of the codes of the held-out photographs,
of all others, and the 5th, 50th and 95th percentile of random sets of as many others, in one line of JSON; `--record`
also writes docs/results/photo_perplexity.json and a section of docs/benchmarks.md, which adds what training with other
rate weights gave (docs/results/photos_rate_weight.json), and finite scalar quantization (photos_usage_weight.json).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.picture_codecs import Vqserve
from benchmarks.report import RESULTS, command_line, table, write_result, write_section
from service.pixels import to_pixels
from training.data.folder import split_files

SETS = 1000
TILE = 128  # pixels: training and test look at crops of this size
TRAINED, SPREAD = "photos_rate_weight", "photos_usage_weight"
CODEC = "rate_distortion_photos"
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
    total = np.sum(list(counts), axis=0)
    share = total[total > 0] / total.sum()
    return math.exp(-float((share * np.log(share)).sum()))


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    trained = json.loads((RESULTS / f"{TRAINED}.json").read_text(encoding="utf-8"))
    low, middle, high = result["as_many_others"].values()
    held_out, others = result["held_out"], result["others"]
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
    return "\n".join(
        [
            "## Perplexity of a few photographs",
            "",
            f"`{result['command']}`. `{result['bundle']['name']}` uses its {result['codebook_size']} codes: their "
            f"perplexity is {result['training_crops']:.0f} on the crops that it was trained on. The "
            f"{held_out['pictures']} held-out photographs have {held_out['perplexity']:.0f} (whole; the manifest has "
            "that of their crops), and not because codes are dead or the pictures unknown: any "
            f"{held_out['pictures']} of the {others['pictures']} others have "
            f"{low:.0f} to {high:.0f} (5th to 95th percentile of {SETS:,} random sets, median {middle:.0f}). A "
            "photograph of a meadow needs the codes of meadows.",
            "",
            f"Neither training without the rate term nor moving more codes changes that (`{trained['command']}` on "
            f"{trained['machine']}):",
            "",
            table(["R", "B", "held out: PSNR, dB", "bits a code", "perplexity", "training: perplexity"], rows),
            "",
            spread_codes(),
        ]
    )


def spread_codes() -> str:
    """What training for codes that are all in use gave, and its price."""
    found, shipped = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in (SPREAD, CODEC))
    rows = [
        [
            one["usage_weight"],
            f"{one['psnr_db']:.2f}",
            f"{one['bits_per_code']:.2f}" if one["bits_per_code"] else "not trained",
            f"{one['perplexity_held_out']:.0f}",
        ]
        for one in found["runs"]
    ]
    weight = found["rate_distortion"]["usage_weight"]
    spread, ours = (
        next(one for one in points if is_whole(one)) for points in (found["rate_distortion"]["rows"], shipped["rows"])
    )
    rates = [
        next(one["bd_rate_percent"] for one in points if is_whole(one) and "bd_rate_percent" in one)
        for points in (found["rate_distortion"]["bd_rate_against_jpeg"], jpeg(shipped["comparisons"]))
    ]
    return "\n\n".join(
        (
            "Finite scalar quantization that is told to use all of its grid does: also four photographs then use "
            f"nearly all codes (`{found['command']}` on {found['machine']}):",
            table(["U", "held out: PSNR, dB", "bits a code", "perplexity"], rows),
            f"It is not what ships, because codes that are used alike cost more bits. With U = {weight} the held-out "
            f"photographs have {spread['psnr_db']:.2f} dB at {spread['bits_per_pixel']:.3f} bits per pixel, where the "
            f"shipped model has {ours['psnr_db']:.2f} at {ours['bits_per_pixel']:.3f}; against JPEG that is "
            f"{rates[0]:+.1f} % bytes at equal PSNR instead of {rates[1]:+.1f} %, and smooth surfaces get blotches.",
        )
    )


def is_whole(row: dict[str, Any]) -> bool:
    """Whether a row of rate against distortion is of whole photographs, by `photos`, in fewest bytes or in general."""
    wanted = ("whole pictures", "vqserve photos", "shortest")
    return (row["section"], row["codec"], row.get("setting", "shortest")) == wanted


def jpeg(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in comparisons if one["peer"] == "JPEG"]


if __name__ == "__main__":
    main()
