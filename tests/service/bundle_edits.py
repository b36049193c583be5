"""Copies of bundles whose manifests say something else. In: a bundle and a change. Out: another folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.bundle import sha256_file
from service.bundle.fields import GraphName, GraphSpec
from service.bundle.manifest import version_of
from service.settings import Settings
from tests.conftest import DEVICE, running

Change = Callable[[dict[str, Any]], object]


def edited(source: Path, target: Path, change: Change) -> Path:
    """A copy whose manifest is another."""
    shutil.copytree(source, target)
    path = target / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return target


def put(*where: str | int, value: object) -> Change:
    """Sets the field that these keys lead to."""

    def change(manifest: Any) -> None:
        for key in where[:-1]:
            manifest = manifest[key]
        manifest[where[-1]] = value

    return change


def tensor(graph: str, tensor_name: str, **fields: object) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        spec = manifest["graphs"][graph]
        next(one for one in (*spec["inputs"], *spec["outputs"]) if one["name"] == tensor_name).update(fields)

    return change


def together(*changes: Change) -> Change:
    return lambda manifest: [change(manifest) for change in changes]


def more_codes(manifest: dict[str, Any]) -> None:
    """K = 20 wherever the manifest says it outside of its graphs."""
    manifest["codes"]["codebook_size"] = 20
    manifest["code_histogram"] = [1] * 20


def labels(count: int) -> Change:
    names = [f"label {n}" for n in range(count)] or None
    return together(put("labels", value=names), put("prior", "label_count", value=count))


def serve(folder: Path) -> None:
    with running(Settings(bundles=(folder,), device=DEVICE, threads=1)):
        pass


def raised(folder: Path, graph: str, output: str, source: str | None = None) -> None:
    """The codes that a graph gives, and 100 more: all of them, or in proportion to one of its inputs."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
        node.input[:] = ["before" if name == output else name for name in node.input]
    more = [helper.make_node("Add", ["before", "offset"], [output])]
    if source is None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(100, np.int64), "offset"))
    else:
        hundred = numpy_helper.from_array(np.array(100, np.float32), "hundred")
        model.graph.initializer.append(hundred)
        more = [
            helper.make_node("Cast", [source], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["number", "hundred"], ["product"]),
            helper.make_node("ReduceMax", ["product"], ["largest"], keepdims=0),
            helper.make_node("Cast", ["largest"], ["offset"], to=TensorProto.INT64),
            *more,
        ]
    model.graph.node.extend(more)
    onnx.save(model, path)
    sign(folder, graph)


def sign(folder: Path, graph: str) -> None:
    """The manifest knows the graph as it is now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["graphs"][graph]["sha256"] = sha256_file(folder / f"{graph}.onnx")
    graphs = {name: GraphSpec.model_validate(spec) for name, spec in manifest["graphs"].items()}
    manifest["version"] = version_of(cast(dict[GraphName, GraphSpec], graphs))
    path.write_text(json.dumps(manifest))
