"""Rate against distortion on MNIST: one VQ-VAE and prior a codebook size, measured on the 10,000 test digits.

In: nothing but the data. Out: a run folder a point under OUT, `docs/results/mnist_curve.json` with every point and the
overrides that made it, and one JSON line at the end. Bytes a digit are 49 codes at the prior's bits per code, without
a header. The baseline is the VQ-VAE example of Keras (MSE 0.0042, prior at 1.034 nats a code: 9.1 bytes a digit).

    python -m benchmarks.mnist_curve --out runs/curve [--only 64 32]

A point whose run is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from training.config import load_config
from training.fit import fit
from training.runs import METRICS_FILE, read_json

CONFIG = Path("training/configs/mnist.yaml")
RESULT = Path("docs/results/mnist_curve.json")
KERAS = {"bytes_per_digit": 9.1, "mse": 0.0042, "bits_per_code": 1.49}
CODES = 49
# codebook size -> lambda of the entropy-constrained assignment
POINTS = {512: 0.04, 256: 0.06, 128: 0.08, 64: 0.12, 32: 0.12, 16: 0.12}
SHORTER = (
    "autoencoder.decoder_channels=64",
    "prior.channels=48",
    "prior.vertical_layers=4",
    "trainer.autoencoder.steps=3000",
    "trainer.prior.steps=1200",
)


def overrides_of(codebook_size: int) -> tuple[str, ...]:
    quantizer = "autoencoder.quantizer"
    size, weight = f"{quantizer}.codebook_size={codebook_size}", f"{quantizer}.rate_weight={POINTS[codebook_size]}"
    return (*SHORTER, size, weight)


def point(codebook_size: int, out: Path) -> dict[str, Any]:
    """Train one point, or read it where it is finished."""
    folder = out / f"k{codebook_size}"
    overrides = overrides_of(codebook_size)
    finished = (folder / METRICS_FILE).is_file()
    metrics = read_json(folder / METRICS_FILE) if finished else fit(load_config(CONFIG, overrides), folder, resume=True)
    quality = metrics["quality"]
    return {
        "codebook_size": codebook_size,
        "overrides": list(overrides),
        "mse": quality["mse"],
        "psnr_db": quality["psnr_db"],
        "perplexity": quality["perplexity"],
        "bits_per_code": quality["bits_per_code"],
        "bytes_per_digit": quality["bits_per_code"] * CODES / 8,
        "seconds": metrics["seconds"],
    }


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Fewer bytes at a lower error."""
    return bool(one["bytes_per_digit"] < other["bytes_per_digit"] and one["mse"] < other["mse"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist_curve", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/curve"))
    parser.add_argument("--only", type=int, nargs="*", choices=sorted(POINTS), default=sorted(POINTS, reverse=True))
    options = parser.parse_args()
    points = [point(size, options.out) for size in options.only]
    result = {
        "command": "python -m benchmarks.mnist_curve",
        "baseline": KERAS,
        "points": sorted(points, key=lambda p: p["bytes_per_digit"]),
        "dominating": [p["codebook_size"] for p in points if dominates(p, KERAS)],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
