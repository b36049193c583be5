"""Rate against distortion on MNIST: one VQ-VAE and prior a codebook size, measured on the 10,000 test digits.

In: nothing but the data. Out: a run folder a point under OUT, and one JSON line with every point and the overrides that
made it; `--record` also writes it to docs/results/mnist_curve.json, a plot beside it and a section of
docs/benchmarks.md. Bytes a digit are 49 codes at the prior's bits per code, without a header. The baseline is the
VQ-VAE example of Keras (MSE 0.0042, prior at 1.034 nats a code: 9.1 bytes a digit).

The point `512-plain` has no rate term (lambda 0): beside `512` it shows what the term buys. `64-long` and
`32-long` have larger lambdas and the shipped model's decoder, and train for twice as many steps. `32-small` has the
shipped model's sizes and autoencoder steps and half of the prior's steps: `benchmarks.mnist_small_end` measures the
bytes of its containers.

    python -m benchmarks.mnist_curve --out runs/curve [--only 64 512 512-plain] [--record]

A point whose run is finished is not trained again, unless the configuration has changed since: then that is said and
OUT has to be another folder. The shipped bundle is a point too, read from its manifest.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks.plot import svg
from benchmarks.report import command_line, table, write_section
from training.config import load_config
from training.fit import fit, require_own_folder
from training.runs import METRICS_FILE, read_json

CONFIG = Path("training/configs/mnist.yaml")
SHIPPED = Path("models/mnist")
RESULT = Path("docs/results/mnist_curve.json")
KERAS = {"bytes_per_digit": 9.1, "mse": 0.0042, "bits_per_code": 1.49}
CODES = 49
# name -> codebook size, lambda of the entropy-constrained assignment
POINTS = {
    "512-plain": (512, 0.0),
    "512": (512, 0.04),
    "256": (256, 0.06),
    "128": (128, 0.08),
    "64": (64, 0.12),
    "32": (32, 0.2),
    "16": (16, 0.2),
    "64-long": (64, 0.16),
    "32-long": (32, 0.35),
    "32-small": (32, 0.43),
}
SHORTER = (
    "autoencoder.decoder_channels=64",
    "prior.channels=48",
    "prior.vertical_layers=4",
    "trainer.autoencoder.steps=3000",
    "trainer.prior.steps=1500",
)
LONGER = (
    "prior.channels=48",
    "prior.vertical_layers=4",
    "trainer.autoencoder.steps=6000",
    "trainer.prior.steps=2500",
)
# For bytes without a label: the prior sees half of the digits without theirs.
SMALLEST = ("prior.label_dropout=0.5", "trainer.prior.steps=6000")


def overrides_of(name: str) -> tuple[str, ...]:
    (size, weight), quantizer = POINTS[name], "autoencoder.quantizer"
    budget = {"long": LONGER, "small": SMALLEST}.get(name.partition("-")[2], SHORTER)
    return (*budget, f"{quantizer}.codebook_size={size}", f"{quantizer}.rate_weight={weight}")


def point(name: str, out: Path) -> dict[str, Any]:
    """Train one point, or read it where it is finished; a ConfigError where the folder holds another configuration."""
    folder, overrides = out / f"k{name}", overrides_of(name)
    config, finished = load_config(CONFIG, overrides), (folder / METRICS_FILE).is_file()
    require_own_folder(config, folder, resume=True)
    metrics = read_json(folder / METRICS_FILE) if finished else fit(config, folder, resume=True)
    quality = metrics["quality"]
    return {
        "point": name,
        "overrides": list(overrides),
        "mse": quality["mse"],
        "psnr_db": quality["psnr_db"],
        "perplexity": quality["perplexity"],
        "bits_per_code": quality["bits_per_code"],
        "bytes_per_digit": quality["bits_per_code"] * CODES / 8,
        "seconds": metrics["seconds"],
    }


def shipped(folder: Path = SHIPPED) -> dict[str, Any]:
    """The bundle as a point, with the settings of its training that the page shows."""
    manifest = read_json(folder / "manifest.json")
    config, quality = manifest["provenance"]["config"], manifest["quality"]
    weight, steps = config["autoencoder"]["quantizer"]["rate_weight"], config["trainer"]["autoencoder"]["steps"]
    measured = {name: quality[name] for name in ("mse", "psnr_db", "perplexity", "bits_per_code")}
    return {
        "point": f"{manifest['codes']['codebook_size']}, `{folder}`",
        "overrides": [f"autoencoder.quantizer.rate_weight={weight}", f"trainer.autoencoder.steps={steps}"],
        **measured,
        "bytes_per_digit": quality["bits_per_code"] * CODES / 8,
    }


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Fewer bytes at a lower error."""
    return bool(one["bytes_per_digit"] < other["bytes_per_digit"] and one["mse"] < other["mse"])


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = [
        (
            one["point"],
            _override(one, "autoencoder.quantizer.rate_weight"),
            _override(one, "trainer.autoencoder.steps"),
            f"{one['bytes_per_digit']:.2f}",
            f"{one['mse']:.5f}",
            f"{one['psnr_db']:.2f}",
            f"{one['perplexity']:.1f}",
            "yes" if one["point"] in result["dominating"] else "",
        )
        for one in result["points"]
    ]
    base = result["baseline"]
    return "\n\n".join(
        (
            "## MNIST with few codes",
            f"`{result['command']}`. On the 10,000 test digits; bytes are 49 codes at the prior's bits per code with "
            "the digit's label, without a header. The baseline is the VQ-VAE example of Keras: "
            f"{base['bytes_per_digit']} bytes at MSE {base['mse']}. `steps` are those of the autoencoder. The rows of "
            "3,000 steps have a smaller decoder too, of 64 channels instead of 96; `models/mnist` and `32-small` have "
            "a larger prior.",
            table(("K", "lambda", "steps", "bytes", "MSE", "PSNR", "perplexity", "dominates the baseline"), rows),
            "![PSNR by bytes a digit](results/mnist_curve.svg)",
        )
    )


def _override(one: dict[str, Any], name: str) -> str:
    """The value that the point was trained with: its own, or else that of the configuration."""
    settings = dict(text.split("=", 1) for text in one["overrides"])
    found = settings.get(name)
    if found is None:
        found = load_config(CONFIG, ()).model_dump()
        for part in name.split("."):
            found = found[part]
    return str(found)


def plot(result: dict[str, Any]) -> str:
    base = result["baseline"]
    lines = {
        "vqserve": [(one["bytes_per_digit"], one["psnr_db"]) for one in result["points"]],
        "Keras example": [(base["bytes_per_digit"], -10 * math.log10(base["mse"]))],
    }
    return svg("MNIST test digits", "bytes a digit", "PSNR of the mean MSE in dB", lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist_curve", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/curve"))
    parser.add_argument("--only", nargs="*", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--record", action="store_true", help="write docs/results, with its picture, and the page")
    options = parser.parse_args()
    points = [*(point(name, options.out) for name in options.only), shipped()]
    result = {
        "command": command_line(),
        "baseline": KERAS,
        "points": sorted(points, key=lambda p: p["bytes_per_digit"]),
        "dominating": [p["point"] for p in points if dominates(p, KERAS)],
    }
    if options.record:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        RESULT.with_suffix(".svg").write_text(plot(result), encoding="utf-8")
        write_section("mnist_curve", page(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
