"""`python -m training fit|evaluate|compare`: the command line of the training jobs.

    python -m training fit --config FILE [--data D] [--out runs/NAME] [--resume] [key.sub=value ...]
    python -m training evaluate --config FILE | --run RUN [--data D]
    python -m training compare --config FILE [--data D] [--out runs/NAME] [--resume] [--docs docs] [key.sub=value ...]

In: a YAML config and overrides, or a run folder. Out: the run folder; one line of JSON with the metrics on stdout.
`evaluate` renews the measurements in the run's metrics.json; those on other data go to metrics-NAME.json beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from pathlib import Path

from training.arguments import folder_named
from training.errors import TrainingError
from training.printing import INSTALL, status_of

try:
    from training.config import RunConfig, load_config
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {missing}: {INSTALL}")


def main(arguments: list[str] | None = None) -> int:
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes of this machine, which all read the pictures
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    command = shlex.join(["python", "-m", "training", *arguments])
    options.command = os.fsencode(command).decode(errors="replace")  # a path need not be UTF-8; the page is
    try:
        metrics = JOBS[options.job](options)
    except (TrainingError, OSError) as error:  # the second of a folder that is not ours, or of a log
        print(f"error: {error}", file=sys.stderr)
        return 2
    if metrics:
        print(json.dumps(metrics))
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    """argparse takes the key=value words of one place only; they may stand before, between and after the options."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    unknown = [word for word in others if word.startswith("-") or "=" not in word or "overrides" not in options]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if others:
        options.overrides += others
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train and evaluate models for vqserve.")
    jobs = parser.add_subparsers(dest="job", required=True)
    fit = jobs.add_parser("fit", help="train an autoencoder and its prior into a run folder")
    fit.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    compare = jobs.add_parser("compare", help="train and measure AE, VAE, CVAE and VQ-VAE side by side")
    compare.add_argument("--docs", type=folder_named, help="a folder for numbers, pictures and model-report.md")
    compare.add_argument(
        "--resume", action="store_true", help="changes nothing: compare always goes on where it stopped"
    )
    for job in (fit, compare):
        job.add_argument("--config", type=Path, required=True, help="a YAML file, such as training/configs/mnist.yaml")
        job.add_argument("--data", help="a path or a name in place of the config's data.source")
        job.add_argument("--out", type=folder_named, help="the run folder; runs/NAME of the config if not given")
        job.add_argument("overrides", nargs="*", metavar="key.sub=value", help="for example trainer.seed=2")
    evaluate = jobs.add_parser("evaluate", help="measure a finished run again, or on all pictures of other data")
    which = evaluate.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=folder_named, help="a run folder")
    which.add_argument("--config", type=Path, help="the config whose run is in runs/NAME")
    evaluate.add_argument(
        "--data",
        help="a path or a name in place of the run's data.source: all of its pictures are measured, or its own test "
        "split; the numbers go to metrics-NAME.json",
    )
    return parser


def _config_and_folder(options: argparse.Namespace) -> tuple[RunConfig, Path]:
    config = load_config(options.config, options.overrides, options.data)
    return config, options.out or Path("runs") / config.name


# Lightning takes seconds to import: each job imports it when it runs, not for --help or a mistake in the config.


def _fit(options: argparse.Namespace) -> dict[str, object]:
    config, folder = _config_and_folder(options)
    from training.fit import fit, require_keys_read

    require_keys_read(config.autoencoder, folder)
    metrics = fit(config, folder, resume=options.resume)
    return _headline(metrics, folder) if metrics else {}  # nothing in the other processes of several


def _evaluate(options: argparse.Namespace) -> dict[str, object]:
    from training.report import evaluate

    folder = options.run or Path("runs") / load_config(options.config).name
    metrics, path = evaluate(folder, options.data)
    return _headline(metrics, folder) | {"file": str(path)}


def _compare(options: argparse.Namespace) -> dict[str, object]:
    config, folder = _config_and_folder(options)
    from training.compare import compare
    from training.compare.model_report import require_docs, write_model_report

    if options.docs:
        require_docs(options.docs)
    result = compare(config, folder, options.command)
    if options.docs:
        write_model_report(folder, options.docs)
    return {"run": str(folder)} | {name: result[name] for name in ("classifier", "systems")}


JOBS = {"fit": _fit, "evaluate": _evaluate, "compare": _compare}


def _headline(metrics: dict[str, object], folder: Path) -> dict[str, object]:
    return {"run": str(folder)} | {name: metrics[name] for name in ("test", "quality", "seconds") if name in metrics}


if __name__ == "__main__":
    sys.exit(status_of(main))
