"""A prior with random weights in a folder, for benchmarks whose time does not depend on what was learned.

In: its size. Out: a `Bundle` with what the samplers read: graphs and numbers of the prior, and no autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import onnx
import torch

from export.build import prior_spec_of, save_graph
from export.graphs.diagonal_graph import diagonal, worthwhile
from export.graphs.prior_graphs import PriorGraphWriter
from service.bundle import Bundle
from service.bundle.fields import CodesSpec, GraphName, GraphSpec
from service.bundle.manifest import Manifest
from training.models.frequencies import frequency_table
from training.models.prior import PixelCNN


@dataclass(frozen=True)
class PriorSize:
    """By default that of `models/photos`, without its weights."""

    height: int = 32
    width: int = 32
    codebook_size: int = 512
    channels: int = 64
    vertical_layers: int = 6
    horizontal_layers: int = 2
    label_count: int = 0


def random_prior(size: PriorSize, seed: int = 0) -> PixelCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = PixelCNN(
            size.codebook_size,
            size.label_count,
            channels=size.channels,
            vertical_layers=size.vertical_layers,
            horizontal_layers=size.horizontal_layers,
        )
    return prior.requires_grad_(False)


def write_prior(prior: PixelCNN, size: PriorSize, folder: Path) -> tuple[Bundle, dict[str, float]]:
    """The bundle, and the seconds that the export of each graph took."""
    graphs, table = PriorGraphWriter(prior), frequency_table(size.codebook_size).numpy()
    writers: dict[GraphName, Callable[[], onnx.ModelProto]] = {
        "prior": graphs.teacher_forced,
        "prior_row": lambda: graphs.row(size.width, table, filters=True),
        "prior_row_unfiltered": lambda: graphs.row(size.width, table, filters=False),
        "prior_context": graphs.context_row,
        "prior_pixel": graphs.pixel,
    }
    if worthwhile(graphs, size.width):
        writers["prior_diagonal"] = lambda: diagonal(graphs, size.width, table)
        writers["prior_diagonal_filtered"] = lambda: diagonal(graphs, size.width, table, filters=True)
    specs: dict[str, GraphSpec] = {}
    seconds: dict[str, float] = {}
    for name, write in writers.items():
        started = perf_counter()
        specs[name] = save_graph(folder, name, write())
        seconds[name] = perf_counter() - started
    fields: dict[str, Any] = dict(
        name="random",
        codes=CodesSpec(height=size.height, width=size.width, codebook_size=size.codebook_size, dimension=1),
        graphs=specs,
        prior=prior_spec_of(prior, size.width, table),
    )
    return Bundle(folder, Manifest.model_construct(**fields)), seconds
