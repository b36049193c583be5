"""A run folder becomes a bundle folder: graphs, proof, verification, manifest. All or nothing.

In: the folder of a finished `python -m training fit`. Out: a bundle as docs/bundle-format.md describes it. Everything
is written into a temporary folder beside the target and moved there last, so that a failed check leaves no bundle
behind.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from export.cuda_coverage import uncovered
from export.graphs.autoencoder_graphs import autoencoder_graphs, distances_graph, shapes_of
from export.graphs.onnx_builder import OPSET
from export.graphs.prior_graphs import PriorGraphWriter
from export.sessions import VerificationError
from export.target import ExportError, replace_bundle, require_replaceable, resolved, temporary_beside
from export.verify import verify
from service.bundle import MANIFEST_FILE, load_bundle, sha256_file
from service.bundle.fields import (
    CodesSpec,
    GraphName,
    GraphSpec,
    Parity,
    PictureSpec,
    PriorSpec,
    Provenance,
    Quality,
    TensorSpec,
)
from service.bundle.manifest import FORMAT_VERSION, Manifest, version_of
from training.data import load_data
from training.models.autoencoders import VQVAE
from training.models.exactness import prove_exact
from training.models.frequencies import frequency_table
from training.models.prior import PixelCNN, state_shapes
from training.report import require_same_pictures
from training.runs import Run, load_run

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")
CODES_AT_ONCE = 1024  # decoded for their colours: all of a large codebook would take gigabytes


class Exported(NamedTuple):
    """A bundle as it was written; where it lies now another export may have replaced it."""

    manifest: Manifest
    size_bytes: int


def build_bundle(run_folder: Path, bundle_folder: Path, source: str | None = None) -> Exported:
    """Write the bundle of the run. `source` is where its pictures lie now, if no longer at data.source.

    Raises:
        ExportError: the run is not a VQ-VAE, or a manifest cannot hold it; or the target exists and is more or less
            than a bundle, or cannot be written.
        ConfigError: the folder holds no finished run. DataError: its pictures cannot be read, or are others now.
        ExactnessError, VerificationError: a check failed; nothing was written.
    """
    target = resolved(bundle_folder)
    run = load_run(run_folder)
    if not isinstance(run.autoencoder, VQVAE):
        raise ExportError(f"{run_folder} is a run of {run.config.autoencoder.system}: only a vqvae has codes to serve")
    require_replaceable(bundle_folder)
    table = frequency_table(run.autoencoder.quantizer.codebook_size).numpy()
    models = _graphs(run, run.autoencoder, table)
    _require_cuda_kernels(models)
    with _within_limits(run_folder):
        width = run.config.grid(_picture(run))[1]
        prior_spec = prior_spec_of(run.prior, width, table) if run.prior else None  # proves exactness
    pictures, labels = _test_pictures(run, source)
    parity = verify(run.autoencoder, run.prior, models, table, pictures, labels)
    with temporary_beside(target) as temporary, _within_limits(run_folder):
        folder = temporary / "bundle"
        manifest = _write(run, run.autoencoder, models, prior_spec, parity, folder)
        load_bundle(folder)
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
        replace_bundle(target, folder, temporary / "previous")
    return Exported(manifest, size_bytes)


@contextmanager
def _within_limits(run_folder: Path) -> Iterator[None]:
    """Training keeps the limits of the manifest; a run of an earlier version, or one that was edited, may not."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([error.title, *map(str, first["loc"])])
        raise ExportError(f"{run_folder} cannot become a bundle: {where}: {first['msg']}") from error


def any_size(run: Run) -> bool:
    """A model trained on crops takes pictures of any size; one trained on whole pictures knows only theirs."""
    return run.config.data.crop is not None


def _picture(run: Run) -> tuple[int, int, int]:
    channels, height, width = run.metrics["data"]["picture"]
    return channels, height, width


def _graphs(run: Run, vqvae: VQVAE, table: NDArray[np.int32]) -> dict[GraphName, onnx.ModelProto]:
    dimension = vqvae.quantizer.codebook.shape[1]
    shapes = shapes_of(_picture(run), run.config.autoencoder.downsampling, dimension, any_size=any_size(run))
    models = autoencoder_graphs(vqvae, shapes)
    if run.prior is None:
        return models
    graphs, width = PriorGraphWriter(run.prior), run.config.grid(_picture(run))[1]
    models["distances"] = distances_graph(vqvae)
    return models | graphs.all(width, table)


def _require_cuda_kernels(models: dict[GraphName, onnx.ModelProto]) -> None:
    missing = [f"{name}: {node}" for name, model in models.items() for node in uncovered(model)]
    if missing:
        raise VerificationError("; ".join(missing))


def prior_spec_of(prior: PixelCNN, width: int, table: NDArray[np.int32]) -> PriorSpec:
    """Of a prior over grids `width` codes wide."""
    return PriorSpec(
        frequency_table=tuple(int(f) for f in table),
        label_count=prior.label_count,
        largest_partial_sum=prove_exact(prior),
        **state_shapes(prior.channels, len(prior.vertical), len(prior.horizontal), width)._asdict(),
    )


def _test_pictures(run: Run, source: str | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The whole test split: uint8 (N,H,W,C) and labels, `label_count` where there are none."""
    config = run.config.data if source is None else run.config.data.model_copy(update={"source": source})
    data = load_data(config, begun=True)
    require_same_pictures(run, data, config.source)
    split = data.test
    assert isinstance(split.images, torch.Tensor)
    return np.ascontiguousarray(split.images.permute(0, 2, 3, 1).numpy()), split.labels.numpy().astype(np.int64)


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """A graph's inputs or outputs as a manifest lists them: dtypes by NumPy's names, strings for dynamic axes."""
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        specs.append(TensorSpec(name=value.name, dtype=dtype, shape=shape))
    return tuple(specs)


def save_graph(folder: Path, name: GraphName, model: onnx.ModelProto) -> GraphSpec:
    """Write the graph as NAME.onnx; returns its entry in the manifest."""
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return GraphSpec(
        file=path.name,
        sha256=sha256_file(path),
        opset=OPSET,
        inputs=tensor_specs(model.graph.input),
        outputs=tensor_specs(model.graph.output),
    )


@torch.no_grad()
def codebook_colours(vqvae: VQVAE) -> tuple[str, ...]:
    """ "#rrggbb" for each code: the mean colour of a picture made of this code alone, for displays of code grids."""
    codes = torch.arange(vqvae.quantizer.codebook_size)[:, None, None].expand(-1, 3, 3)
    colours = torch.cat([vqvae.decode(part).mean(dim=(2, 3)) for part in torch.split(codes, CODES_AT_ONCE)])  # (K,C)
    means = (colours * 255).round().int()
    return tuple("#" + "".join(f"{value:02x}" for value in row.expand(3).tolist()) for row in means)


def _write(
    run: Run,
    vqvae: VQVAE,
    models: dict[GraphName, onnx.ModelProto],
    prior_spec: PriorSpec | None,
    parity: Parity,
    folder: Path,
) -> Manifest:
    folder.mkdir()
    graphs = {name: save_graph(folder, name, model) for name, model in models.items()}
    manifest = _manifest(run, vqvae, graphs, prior_spec, parity)
    text = manifest.model_dump_json(indent=1, exclude={"graphs": {"__all__": {"counts_as"}}})  # it is for `renew`
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return manifest


def _manifest(
    run: Run, vqvae: VQVAE, graphs: dict[GraphName, GraphSpec], prior_spec: PriorSpec | None, parity: Parity
) -> Manifest:
    (channels, height, width), factor = _picture(run), run.config.autoencoder.downsampling
    h, w = run.config.grid((channels, height, width))
    quantizer, data = vqvae.quantizer, run.metrics["data"]
    return Manifest(
        format_version=FORMAT_VERSION,
        name=run.config.name,
        version=version_of(graphs),
        family="vqvae",
        picture=PictureSpec(
            height=height,
            width=width,
            channels=channels,
            any_size=any_size(run),
            multiple_of=factor,
        ),
        codes=CodesSpec(
            height=h, width=w, codebook_size=quantizer.codebook_size, dimension=quantizer.codebook.shape[1]
        ),
        labels=tuple(data["labels"]) or None,
        graphs=graphs,
        prior=prior_spec,
        code_histogram=tuple(run.metrics["code_histogram"]),
        codebook_colours=codebook_colours(vqvae),
        quality=Quality(**run.metrics["quality"]),
        parity=parity,
        provenance=Provenance(
            config=run.config.model_dump(mode="json"),
            data_digest=data["digest"],
            data_licence=data["licence"],
            commit=run.metrics["commit"],
            libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        ),
    )
