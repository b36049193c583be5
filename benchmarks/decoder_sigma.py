"""Whether the decoder's sigma of the comparison's `vae` and `cvae` had settled when their training ended.

    python -m benchmarks.decoder_sigma [--compared runs/compare] [--record]

In: the folder of a `python -m training compare`, finished or not: the two systems are trained there as `compare` trains
them, where they are not there yet. Out: of each, sigma as learned and the best one for the same encoder and means, with
the ELBO at both, as one line of JSON; `--record` also writes docs/results/decoder_sigma.json and a section of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.guidance import trained
from benchmarks.report import RESULTS, command_line, machine, machine_line, table, write_result, write_section
from benchmarks.sample_fidelity import CONFIG
from training.compare import COMPARE_FILE, on_one_device
from training.config import load_config
from training.data import DataSet, load_data
from training.report.evaluation import measure_reconstruction
from training.runs import Run, read_json

SYSTEMS = ("vae", "cvae")
REPORTED = ("mse", "elbo_nats", "steps")  # of the model report's own training


def measure(run: Run, data: DataSet) -> dict[str, Any]:
    """The run's numbers on the test split, by the same draws as its metrics.json."""
    stage = run.config.trainer.autoencoder
    measured = asdict(measure_reconstruction(run.autoencoder, data.test, run.config.trainer.seed))
    return {"steps": stage.steps, "learning_rate": stage.learning_rate, **measured}


def reported(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the model report says of the same systems and of the larger ones, which were trained for longer."""
    names = [*SYSTEMS, *(f"{name}-large" for name in SYSTEMS)]
    return {name: {key: systems[name][key] for key in REPORTED} for name in names}


def page(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    first = result["systems"][SYSTEMS[0]]
    return "\n\n".join(
        (
            "## The decoder's sigma of `vae` and `cvae`",
            f"`{result['command']}` on {machine_line(result['machine'])}. The systems of the "
            "[model report](model-report.md), as `compare` trains them. Sigma of p(x|z) is one learned "
            "number. The logarithm of its square moves by about a learning rate a step, "
            f"{first['learning_rate']:g} at most, for {first['steps']:,} steps. The best sigma for the same encoder "
            "and means is the root of the MSE of sampled z (arXiv:2006.13202); the KL term is the same at both. MSE is "
            "that of the mean of q(z|x), which the report shows.",
            table(
                ("system", "MSE", "MSE, report", "sigma", "best sigma", "KL, nats", "ELBO, report", "ELBO", "at best"),
                [_row(name, row, result["reported"][name]) for name, row in result["systems"].items()],
            ),
            " ".join(_sentence(name, row, result["reported"]) for name, row in result["systems"].items()),
        )
    )


def _row(name: str, row: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{row['mse']:.5f}",
        f"{report['mse']:.5f}",
        f"{row['decoder_sigma']:.4f}",
        f"{row['best_sigma']:.4f}",
        f"{row['kl_nats']:.1f}",
        f"{report['elbo_nats']:.1f}",
        f"{row['elbo_nats']:.1f}",
        f"{row['best_elbo_nats']:.1f}",
    )


def _sentence(name: str, row: Mapping[str, Any], report: Mapping[str, Mapping[str, Any]]) -> str:
    """How much of the report's step from a system to its larger one is sigma: no more than what it had left to gain."""
    large = report[f"{name}-large"]
    return (
        f"At its best sigma `{name}` has {row['best_elbo_nats'] - row['elbo_nats']:.1f} nats more: of the "
        f"{large['elbo_nats'] - report[name]['elbo_nats']:.1f} nats between it and `{name}-large` "
        f"({large['steps']:,} steps) in the report, at most so many are sigma."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoder_sigma", description=__doc__)
    parser.add_argument("--compared", type=Path, default=Path("runs/compare"))
    parser.add_argument("--record", action="store_true", help="write docs/results/decoder_sigma.json and the page")
    options = parser.parse_args()
    facts, command, config = machine(), command_line(), on_one_device(load_config(CONFIG))
    data = load_data(config.data)
    result = {
        "command": command,
        "machine": facts,
        "systems": {name: measure(trained(config, data, name, options.compared), data) for name in SYSTEMS},
        "reported": reported(read_json(RESULTS / COMPARE_FILE)["systems"]),
    }
    if options.record:
        write_result("decoder_sigma", result)
        write_section("decoder_sigma", page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
