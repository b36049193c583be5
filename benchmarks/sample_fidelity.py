"""What a bundle draws, by the yardsticks of `compare`: distance to real pictures, precision, recall, class agreement.

    python -m benchmarks.sample_fidelity --bundle models/mnist --compared runs/compare [--record]

In: a bundle with labels, and the folder of a finished `python -m training compare`, whose classifier is used. Out: a
row for each of `SETTINGS`, with as many samples as `compare` takes, the same number of each label, as one line of JSON;
`--record` also writes docs/results/sample_fidelity.json and a section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.report import command_line, table, write_result, write_section
from training.compare.classifier import fit_classifier
from training.compare.yardstick import Yardstick
from training.config import load_config
from training.data import load_data
from vqserve.offline import Offline
from vqserve.operations import Wanted

CONFIG = Path("training/configs/compare.yaml")
TOGETHER = 64  # samples of one request
SETTINGS: dict[str, Wanted] = {
    "temperature 1": {},
    "temperature 0.8": {"temperature": 0.8},
    "guidance 1.5": {"guidance": 1.5},
    "guidance 2": {"guidance": 2.0},
    "guidance 3": {"guidance": 3.0},
}
MEASURES = ("frechet", "precision", "recall", "spread", "class_agreement")


def draw(model: Offline, label: int, count: int, settings: Wanted) -> list[np.ndarray[Any, Any]]:
    """(H,W) uint8 each; the seeds follow from the label."""
    pictures: list[np.ndarray[Any, Any]] = []
    for start in range(0, count, TOGETHER):
        n, seed = min(TOGETHER, count - start), label * count + start
        asked: Wanted = {"n": n, "label": label, "seed": seed, **settings}
        pictures += [np.asarray(Image.open(io.BytesIO(one.png))) for one in model.generate(asked).items]
    return pictures


def measure(model: Offline, yardstick: Yardstick, label_count: int, settings: Wanted) -> dict[str, Any]:
    each = yardstick.count // label_count
    pictures = [one for label in range(label_count) for one in draw(model, label, each, settings)]
    labels = torch.arange(label_count).repeat_interleave(each)
    return {"samples": len(pictures), **asdict(yardstick.measure(_to_unit(pictures), labels))}


def _to_unit(pictures: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    """(H,W) uint8 each -> (N,1,H,W) float32 in [0,1]."""
    return torch.from_numpy(np.stack(pictures))[:, None].float() / 255


def page(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = {"real": result["real"], **result["settings"]}
    return "\n\n".join(
        (
            f"## What `models/{result['bundle']}` draws",
            f"`{result['command']}`: {result['samples']:,} samples, the same number of each label, in the features of "
            f"the classifier of the [model report](model-report.md) ({result['classifier_accuracy']:.2%} on the test "
            "set). "
            "`real` is as many training pictures, measured in the same way.",
            table(
                ("pictures", *(name.replace("_", " ") for name in MEASURES)),
                [(name, *(f"{row[measure]:.3f}" for measure in MEASURES)) for name, row in rows.items()],
            ),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample_fidelity", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/mnist"))
    parser.add_argument("--compared", type=Path, default=Path("runs/compare"))
    parser.add_argument("--record", action="store_true", help="write docs/results/sample_fidelity.json and the page")
    options = parser.parse_args()
    config = load_config(CONFIG)
    data = load_data(config.data)
    yardstick = Yardstick(config, data, fit_classifier(config, data, options.compared))
    model, labels = Offline(options.bundle), len(data.label_names)
    rows = {name: measure(model, yardstick, labels, settings) for name, settings in SETTINGS.items()}
    result = {
        "command": command_line(),
        "bundle": options.bundle.name,
        "version": json.loads((options.bundle / "manifest.json").read_text())["version"],
        "samples": yardstick.count // labels * labels,
        "classifier_accuracy": yardstick.accuracy,
        "real": asdict(yardstick.real),
        "settings": rows,
    }
    if options.record:
        write_result("sample_fidelity", result)
        write_section("sample_fidelity", page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
