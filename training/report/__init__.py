"""What `fit` and `evaluate` write beside the weights: metrics.json and the two picture sheets.

In: trained models and their data. Out: `metrics.json`, `reconstructions.png` and `samples.png` in the run folder, or,
measured on other data than the run's, `metrics-NAME.json` and `reconstructions-NAME.png`. NAME is that of the file or
folder and the first digits of the data's digest, so that no other data's file is overwritten.
"""

from __future__ import annotations

import logging
import math
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.bundle.fields import Quality
from training.config import RunConfig
from training.data import DataError, DataSet, Split, licence_of, load_to_measure, tiles, to_unit
from training.models.autoencoders import VQVAE
from training.models.building import System
from training.models.prior import PixelCNN
from training.models.quantizers import VectorQuantizer
from training.report.evaluation import (
    batches,
    bits_per_code,
    code_perplexity,
    encode_all,
    histogram,
    measure_reconstruction,
    pictures_a_batch,
    reconstruct,
    sample_codes,
)
from training.report.sheets import interleave, sheet, write_png
from training.runs import METRICS_FILE, PROGRESS_FILE, Run, load_run, read_json, write_json
from training.runs.callbacks import Sheet

COLUMNS, ROWS = 8, 2  # of a sheet of reconstructions: pictures in a row, and rows of them
SAMPLE_ROWS_SMALL, SAMPLE_ROWS_LARGE = 10, 1  # rows of samples of grids up to, and beyond, LARGE_GRID codes
LARGE_GRID = 256
MOST_CODES_DRAWN = 1 << 14  # in a sample: half a minute on one core, at some ms a code
DIGEST_DIGITS = 8  # of the data's, in the names of files: enough for all that one run is ever measured on
LONGEST_STEM = 50  # characters, of at most 4 bytes; with what stands around it a name may have 255 bytes
MOST_LABELS_LISTED = 10  # in a message
LIBRARIES = ("torch", "lightning", "numpy", "safetensors")

logger = logging.getLogger(__name__)


def draw_reconstructions(model: System, split: Split) -> NDArray[np.uint8]:
    """Rows of pictures from all over `split`, each above what the model makes of them. The first ones would be of one
    label, or of one photograph."""
    assert isinstance(split.images, Tensor)
    columns = min(COLUMNS, len(split))
    count = min(ROWS * columns, len(split) // columns * columns)
    chosen = torch.linspace(0, len(split) - 1, count).long()
    device = next(model.parameters()).device
    images = to_unit(split.images[chosen])
    size = pictures_a_batch(model, *images.shape[2:])
    with torch.no_grad():
        parts = batches(images, split.labels[chosen], size)
        made = torch.cat([_made_of(model, one.to(device), labels.to(device)).float().cpu() for one, labels in parts])
    return sheet(interleave(images, made, columns), columns)


def _made_of(model: System, images: Tensor, labels: Tensor) -> Tensor:
    """As training sees it: a codebook that has not started quantizes nothing yet."""
    if isinstance(model, VQVAE) and isinstance(model.quantizer, VectorQuantizer) and not model.quantizer.initialised:
        return model.decoder(model.encoder(images)).clamp(0, 1)  # type: ignore[no-any-return]
    return reconstruct(model, images, labels)


def draw_samples(prior: PixelCNN, model: VQVAE, grid: tuple[int, int], seed: int = 1) -> NDArray[np.uint8]:
    """Samples of the prior; with labels, one row a label."""
    rows = SAMPLE_ROWS_SMALL if grid[0] * grid[1] <= LARGE_GRID else SAMPLE_ROWS_LARGE
    if prior.label_count:
        rows = min(rows, prior.label_count)
    labels = torch.arange(rows).repeat_interleave(COLUMNS).clamp(max=prior.label_count)
    generator = torch.Generator().manual_seed(seed)
    codes = sample_codes(prior, labels, *grid, generator)
    return sheet(model.decode(codes.to(next(model.parameters()).device)), COLUMNS)


def sheet_of_samples(prior: PixelCNN, model: VQVAE, grid: tuple[int, int]) -> Sheet | None:
    """What draws the sheet; None, and a line in the log, where that could take longer than the training."""
    if math.prod(grid) > MOST_CODES_DRAWN:
        logger.warning("no sheets of samples: one has %d codes, more than %d", math.prod(grid), MOST_CODES_DRAWN)
        return None
    return partial(draw_samples, prior, model, grid)


@torch.no_grad()
def measure(config: RunConfig, data: DataSet, model: System, prior: PixelCNN | None) -> dict[str, Any]:
    """The part of metrics.json that a test split decides."""
    reconstruction = measure_reconstruction(model, data.test, config.trainer.seed)
    metrics: dict[str, Any] = {"test": {"pictures": len(data.test), **asdict(reconstruction)}}
    if not isinstance(model, VQVAE):
        return metrics
    size = model.quantizer.codebook_size
    assert isinstance(data.test.images, Tensor)
    codes = encode_all(model, data.test.images)
    labelled, unlabelled = None, None
    if prior is not None:
        labelled = bits_per_code(prior, codes, data.test.labels)
        nobody = torch.full_like(data.test.labels, prior.label_count)
        unlabelled = bits_per_code(prior, codes, nobody) if prior.label_count else None
    quality = Quality(
        split="test",
        pictures=len(data.test),
        mse=reconstruction.mse,
        psnr_db=reconstruction.psnr_db,
        perplexity=code_perplexity(codes, size),
        bits_per_code=labelled,
        bits_per_code_unlabelled=unlabelled,
    )
    return metrics | {"quality": quality.model_dump(mode="json")}


def write_report(
    config: RunConfig,
    data: DataSet,
    model: System,
    prior: PixelCNN | None,
    folder: Path,
) -> dict[str, Any]:
    """Measure on the test split, draw the sheets, and write both; metrics.json comes last and marks a finished run."""
    metrics = measure(config, data, model, prior) | {
        "data": _facts(data) | {"licence": licence_of(config.data)},
        "seconds": read_json(folder / PROGRESS_FILE)["seconds"],
        **_code(),
    }
    if isinstance(model, VQVAE):
        metrics["code_histogram"] = _training_histogram(config, data, model)
    _write_sheets(config, data, model, prior, folder)
    write_json(folder / METRICS_FILE, metrics)
    return metrics


def evaluate(folder: Path, source: str | None = None) -> tuple[dict[str, Any], Path]:
    """Measure a finished run again, on its own test pictures or on all of `source`, unless that has a test split of its
    own; returns the numbers and the file they are in.

    On the run's own data, metrics.json keeps what it says of the training: only measurements and sheets are new. On
    other data it stays as it is, because the export reads it, and the numbers go to metrics-NAME.json.

    Raises:
        ConfigError: the folder holds no finished run.
        DataError: the data cannot be read, its pictures have another shape or other labels than the run's, or, without
            `source`, are no longer those that the run was trained on.
    """
    run = load_run(folder)
    config = run.config
    if source is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    data = load_to_measure(config.data, run.metrics["data"]["digest"])
    if source is None:  # of changed data some would be training pictures
        require_same_pictures(run, data, config.data.source)
    _require_same_kind(run, data, config.data.source)
    measured = measure(config, data, run.autoencoder, run.prior)
    if data.digest == run.metrics["data"]["digest"]:
        path, metrics = folder / METRICS_FILE, run.metrics | measured
        _write_sheets(config, data, run.autoencoder, run.prior, folder)
    else:
        stem = Path(config.data.source).resolve().stem[:LONGEST_STEM]
        name = f"{stem}-{data.digest[:DIGEST_DIGITS]}"
        path = folder / f"metrics-{name}.json"
        metrics = measured | {"source": config.data.source, "data": _facts(data), **_code()}
        write_png(draw_reconstructions(run.autoencoder, data.test), folder / f"reconstructions-{name}.png")
    write_json(path, metrics)
    return metrics, path


def require_same_pictures(run: Run, data: DataSet, source: str) -> None:
    """Raises DataError if `data`, which lies at `source`, is not what the run was trained on."""
    if not data.is_that_of(run.metrics["data"]):
        raise DataError(
            f"{source} holds other pictures than {run.folder} was trained on: bring them back, or say with --data "
            "where they are"
        )


def _require_same_kind(run: Run, data: DataSet, source: str) -> None:
    """Raises DataError if pictures or labels of `data`, which lies at `source`, are none that the model can take."""
    picture, labels = tuple(run.metrics["data"]["picture"]), tuple(run.metrics["data"]["labels"])
    if data.picture != picture:
        raise DataError(
            f"{source} has pictures of {data.picture} (channels, height, width), the run was trained on {picture}: "
            "bring them to that shape"
        )
    if data.label_names != labels:
        same = "give the pictures the same ones; in a folder of picture files they are the names of its sub-folders"
        none = "leave them out; of a folder of picture files, name one sub-folder, or move all into one"
        raise DataError(
            f"{source} has {_listed(data.label_names)}, the run was trained with {_listed(labels)}: "
            f"{same if labels else none}"
        )


def _listed(labels: Sequence[str]) -> str:
    if not labels:
        return "no labels"
    return f"the labels {', '.join(labels[:MOST_LABELS_LISTED])}{', ...' * (len(labels) > MOST_LABELS_LISTED)}"


def _facts(data: DataSet) -> dict[str, Any]:
    """What the data is: enough to tell it from other data."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "picture": list(data.picture),
        "labels": list(data.label_names),
        "pictures": {name: len(split) for name, split in splits.items()},
        "skipped": list(data.skipped),
        "digest": data.digest,
    }


def _code() -> dict[str, Any]:
    """The commit and the libraries that compute here."""
    return {"commit": _commit(), "libraries": {name: version(name) for name in LIBRARIES}}


def _write_sheets(config: RunConfig, data: DataSet, model: System, prior: PixelCNN | None, folder: Path) -> None:
    write_png(draw_reconstructions(model, data.test), folder / "reconstructions.png")
    if isinstance(model, VQVAE) and prior is not None:
        draw = sheet_of_samples(prior, model, config.grid(data.picture))
        if draw is not None:
            write_png(draw(), folder / "samples.png")


def _training_histogram(config: RunConfig, data: DataSet, model: VQVAE) -> list[int]:
    """How often each code occurs in the training pictures, or in their tiles where training sees crops.

    Tiles are cut from one picture at a time: those of all would hold every decoded picture, whatever `data.memory_mib`
    says.
    """
    counts = torch.zeros(model.quantizer.codebook_size, dtype=torch.int64)
    crop, train = config.data.crop, data.train
    parts = [train] if crop is None else (tiles(train.select([index]), crop) for index in range(len(train)))
    for part in parts:
        assert isinstance(part.images, Tensor)
        counts += histogram(encode_all(model, part.images), len(counts))
    listed: list[int] = counts.tolist()
    return listed


def _commit() -> str | None:
    """The commit of the code, with "-dirty" where a file has been changed since; None outside a checkout of it."""
    file = Path(__file__)
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)  # else the checkout is that of another project
        commit = _git(file.parent, "rev-parse", "HEAD")
        # `describe --dirty` would lock the index, and whoever commits at this moment would be refused
        changed = _git(file.parent, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - our own words
