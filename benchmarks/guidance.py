"""How much guidance a VQ-VAE of the comparison needs, and what it costs in variety.

    python -m benchmarks.guidance [--system vqvae-fsq] [--compared runs/compare] [--record]

In: the folder of a `python -m training compare`, finished or not: the system and the classifier are trained there as
`compare` trains them, where they are not there yet. Out: a row for each of `GUIDANCES`, with as many samples as
`compare` takes, as one line of JSON; `--record` also writes docs/results/guidance.json and a section of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from benchmarks.report import command_line, machine, machine_line, table, write_result, write_section
from benchmarks.sample_fidelity import CONFIG, MEASURES
from training.compare import measure_samples, on_one_device, require_own_folders, sampler, variants
from training.compare.classifier import fit_classifier
from training.compare.yardstick import Yardstick
from training.config import RunConfig, load_config
from training.data import DataSet, load_data
from training.fit import fit
from training.runs import METRICS_FILE, Run, load_run

GUIDANCES = (1.0, 2.0, 2.5, 3.0)
SYSTEMS = ("vqvae-gradient", "vqvae-ema", "vqvae-fsq")


def trained(config: RunConfig, data: DataSet, system: str, compared: Path) -> Run:
    """The run of `compare`; fitted now, where it has not been.

    Raises ConfigError where the folder holds a run of another configuration or other pictures.
    """
    folder, variant = compared / system, variants(config, data)[system]
    require_own_folders({system: variant}, data, compared)
    if not (folder / METRICS_FILE).exists():
        fit(variant, folder, resume=True)
    return load_run(folder)


def measure(run: Run, data: DataSet, yardstick: Yardstick) -> dict[str, dict[str, float | None]]:
    """By guidance; every one begins with the same random numbers."""
    rows = {}
    for guidance in GUIDANCES:
        seed_everything(run.config.trainer.seed, verbose=False)
        rows[f"{guidance:g}"] = asdict(measure_samples(sampler(run, data, guidance), yardstick))
    return rows


def page(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = {"real pictures": result["real"], **{f"guidance {g}": row for g, row in result["guidances"].items()}}
    return "\n\n".join(
        (
            f"## What guidance does to `{result['system']}`",
            f"`{result['command']}` on {machine_line(result['machine'])}. The system of the "
            "[model report](model-report.md), trained again by the same configuration on this machine; "
            f"{result['samples']:,} samples a row, the classifier is right on {result['classifier_accuracy']:.2%} of "
            "the test set. A part p of so many samples has a standard error of sqrt(p (1 - p) / samples), 0.002 where "
            "p is 0.97.",
            table(
                ("pictures", *(name.replace("_", " ") for name in MEASURES)),
                [(name, *(f"{row[measure]:.3f}" for measure in MEASURES)) for name, row in rows.items()],
            ),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=__doc__)
    parser.add_argument("--system", choices=SYSTEMS, default="vqvae-fsq")
    parser.add_argument("--compared", type=Path, default=Path("runs/compare"))
    parser.add_argument("--record", action="store_true", help="write docs/results/guidance.json and the page")
    options = parser.parse_args()
    facts, command, config = machine(), command_line(), on_one_device(load_config(CONFIG))
    data = load_data(config.data)
    run = trained(config, data, options.system, options.compared)
    yardstick = Yardstick(config, data, fit_classifier(config, data, options.compared))
    result = {
        "command": command,
        "machine": facts,
        "system": options.system,
        "samples": yardstick.count,
        "test_mse": run.metrics["test"]["mse"],
        "bits_per_code": run.metrics["quality"]["bits_per_code"],
        "classifier_accuracy": yardstick.accuracy,
        "real": asdict(yardstick.real),
        "guidances": measure(run, data, yardstick),
    }
    if options.record:
        write_result("guidance", result)
        write_section("guidance", page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
