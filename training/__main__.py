"""`python -m training fit|evaluate`: the command line of the training jobs.

    python -m training fit --config FILE [--data D] [--out runs/NAME] [--resume] [key.sub=value ...]
    python -m training evaluate RUN [--data D]

In: a YAML config and overrides, or a run folder. Out: the run folder; one line of JSON with the metrics on stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from training.config import ConfigError, load_config
from training.data import DataError


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips and device lists
    options = _parser().parse_args(arguments)
    try:
        metrics = _evaluate(options) if options.job == "evaluate" else _fit(options)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if metrics:
        print(json.dumps(metrics))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train and evaluate models for vqserve.")
    jobs = parser.add_subparsers(dest="job", required=True)
    fit = jobs.add_parser("fit", help="train an autoencoder and its prior into a run folder")
    fit.add_argument("--config", type=Path, required=True, help="a YAML file, for example training/configs/mnist.yaml")
    fit.add_argument("--data", help="a path or a name in place of the config's data.source")
    fit.add_argument("--out", type=Path, help="the run folder; runs/NAME of the config if not given")
    fit.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    fit.add_argument("overrides", nargs="*", metavar="key.sub=value", help="for example trainer.seed=2")
    evaluate = jobs.add_parser("evaluate", help="measure a finished run again and rewrite its metrics.json")
    evaluate.add_argument("run", type=Path, help="a run folder")
    evaluate.add_argument("--data", help="a path or a name in place of the run's data.source")
    return parser


def _fit(options: argparse.Namespace) -> dict[str, object]:
    from training.fit import fit  # Lightning takes seconds to import: not for --help or a config error

    overrides = options.overrides + ([f"data.source={json.dumps(options.data)}"] if options.data else [])
    config = load_config(options.config, overrides)
    folder = options.out or Path("runs") / config.name
    return _headline(fit(config, folder, resume=options.resume), folder)


def _evaluate(options: argparse.Namespace) -> dict[str, object]:
    from training.report import evaluate

    return _headline(evaluate(options.run, options.data), options.run)


def _headline(metrics: dict[str, object], folder: Path) -> dict[str, object]:
    return {"run": str(folder)} | {name: metrics[name] for name in ("test", "quality", "seconds") if name in metrics}


if __name__ == "__main__":
    sys.exit(main())
