"""Do bytes mean the same everywhere? One bundle, many ways to compute its prior, every picture of a data set.

    python -m benchmarks.portability data/mnist --bundle models/mnist
    python -m benchmarks.portability data/photos --bundle models/photos --held-out 0.15

In: pictures and a bundle. Out: docs/results/portability_<model>.json and one line of JSON. Every configuration encodes
all pictures and decodes the containers of the first configuration; counted are containers that differ from the first
one's and codes that differ from those that went in. All must be 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from benchmarks.picture_codecs import Vqserve
from benchmarks.rate_distortion import MNIST_TEST, read_mnist, read_photos
from benchmarks.report import RESULTS, command_line, write_result
from benchmarks.torch_graphs import TorchGraphs
from export.graphs.prior_reader import read_prior
from service import codec
from service.bundle import Bundle
from service.codec.codec_model import CodecModel
from service.codec.container import Mode
from service.codec.prior_coding import Codes
from service.inference.prior_sessions import codec_model
from service.inference.sessions import Session

TOGETHER = 64
LIMITS = codec.Limits(max_codes=1 << 24)
LEVELS = ort.GraphOptimizationLevel


@dataclass(frozen=True)
class Configuration:
    """`together`: pictures of one size that share a container."""

    name: str
    model: CodecModel
    together: int = TOGETHER


def configurations(bundle: Bundle) -> Iterator[Configuration]:
    """The first is the one that the others are compared with."""
    for threads in (1, 2):
        for name, level in (("off", LEVELS.ORT_DISABLE_ALL), ("all", LEVELS.ORT_ENABLE_ALL)):
            model = codec_model(bundle, partial(open_session, threads=threads, level=level))
            yield Configuration(f"onnxruntime, threads {threads}, optimisation {name}", model)
    yield Configuration("onnxruntime, one picture a container", model, together=1)
    yield Configuration("onnx reference evaluator", codec_model(bundle, open_reference))
    spec = bundle.manifest.prior
    assert spec is not None
    graph = onnx.load(bundle.graph_path("prior"))
    network = TorchGraphs(read_prior(graph, bundle.manifest.codes.codebook_size, spec.label_count))
    yield Configuration("PyTorch", CodecModel.of(bundle.manifest, network))


def open_session(path: Path, threads: int, level: ort.GraphOptimizationLevel) -> Session:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.graph_optimization_level = threads, level
    return cast(Session, ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


def open_reference(path: Path) -> Session:
    return cast(Session, ReferenceEvaluator(str(path)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/mnist"))
    parser.add_argument("--bundle", type=Path, default=Path("models/mnist"))
    parser.add_argument("--held-out", type=float, help="photographs: the fraction that training put aside")
    parser.add_argument("--pictures", type=int, help="only so many: for a quick look")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options, command = parser.parse_args(arguments), command_line()
    vqserve = Vqserve(options.bundle)
    manifest = vqserve.bundle.manifest
    grids = [(vqserve.encode(batch), batch.shape[1:3]) for batch in batches(options)]
    rows = compare(grids, configurations(vqserve.bundle))
    pictures, codes = sum(len(one) for one, _ in grids), sum(one.size for one, _ in grids)
    result: dict[str, Any] = {"command": command, "model": manifest.name, "version": manifest.version}
    result |= {"pictures": pictures, "codes": codes, "configurations": rows}
    write_result(f"portability_{manifest.name}", result, options.out)
    different = sum(row["codes_different"] + row["containers_different"] for row in rows)
    print(json.dumps({"pictures": pictures, "codes": codes, "configurations": len(rows), "different": different}))
    return 1 if different else 0


def batches(options: argparse.Namespace) -> list[Any]:
    """uint8 (B,H,W,C) arrays of pictures of one size."""
    if (options.folder / MNIST_TEST).exists():
        digits = np.stack(read_mnist(options.folder / MNIST_TEST)[: options.pictures])
        return [digits[start : start + TOGETHER] for start in range(0, len(digits), TOGETHER)]
    return [pixels[None] for pixels in read_photos(options.folder, options.held_out)[: options.pictures]]


def compare(
    grids: list[tuple[Codes, tuple[int, int]]], configurations: Iterator[Configuration]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    expected: list[bytes] = []
    for configuration in configurations:
        written = [data for codes, size in grids for data in pack(configuration, codes, size)]
        expected = expected or written
        alike = configuration.together == TOGETHER  # otherwise its containers cannot be the same, only their codes
        given = expected if alike else written
        decoded = [codec.decode(configuration.model, data, LIMITS).codes.reshape(-1) for data in given]
        truth = np.concatenate([codes.reshape(-1) for codes, _ in grids])
        row = {
            "name": configuration.name,
            "containers": len(written),
            "containers_different": sum(a != b for a, b in zip(written, expected, strict=True)) if alike else 0,
            "codes_different": int((np.concatenate(decoded) != truth).sum()),
        }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def pack(configuration: Configuration, codes: Codes, size: tuple[int, int]) -> list[bytes]:
    step = configuration.together
    parts = [codes[start : start + step] for start in range(0, len(codes), step)]
    return [codec.encode(configuration.model, part, size=size, modes=[Mode.PRIOR]) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
