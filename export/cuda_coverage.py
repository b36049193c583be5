"""Which nodes of a graph have no kernel on onnxruntime's CUDA execution provider. Needs no GPU.

In: an ONNX model. Out: a list of `Uncovered` nodes, empty when the whole graph runs on CUDA. Sub-graphs of If, Loop and
Scan are checked too. `cuda_kernels.json` lists the kernels that onnxruntime-gpu registers, read from its wheel: for
each operator [first version, last version, {type constraint: types}]. As in onnxruntime's registry, a kernel with an
open last version (2147483647) covers only nodes whose schema has exactly its first version: a newer schema is not
covered until a kernel is registered for it.

    python -m export.cuda_coverage models/mnist/*.onnx
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import shape_inference

OPEN = 2147483647
TABLE = Path(__file__).with_name("cuda_kernels.json")


@dataclass(frozen=True)
class Uncovered:
    """A node without a kernel; `types` are those of the operator's type parameters."""

    node: str
    operator: str
    version: int
    types: dict[str, str]

    def __str__(self) -> str:
        types = ", ".join(f"{name}={value}" for name, value in sorted(self.types.items()))
        return f"{self.node}: {self.operator}-{self.version} ({types}) has no CUDA kernel"


@cache
def _kernels() -> dict[str, list[tuple[int, int, dict[str, list[str]]]]]:
    kernels: dict[str, list[tuple[int, int, dict[str, list[str]]]]] = json.loads(TABLE.read_text())["kernels"]
    return kernels


def uncovered(model: onnx.ModelProto) -> list[Uncovered]:
    """The nodes of `model` without a CUDA kernel for their version and types.

    Raises:
        ValueError, InferenceError, SchemaError: it is no graph of the operators that ONNX has.
    """
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    opsets = [entry.version for entry in inferred.opset_import if entry.domain in ("", "ai.onnx")]
    if not opsets:
        raise ValueError("it names no version of ONNX's operators")
    return list(_walk(inferred.graph, opsets[0], {}))


def _walk(graph: onnx.GraphProto, opset: int, outer: dict[str, str]) -> Iterator[Uncovered]:
    types = outer | _value_types(graph)
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant":  # becomes an initializer before kernels are chosen
            continue
        name = node.name or f"{node.op_type}#{index}"
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain) if not node.domain else None
        bound = _bound_types(node, schema, types) if schema else {}
        version = schema.since_version if schema else 0
        if not any(_covers(kernel, version, bound) for kernel in _kernels().get(node.op_type, []) if schema):
            yield Uncovered(name, node.op_type, version, bound)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _walk(inner, opset, types)


def _value_types(graph: onnx.GraphProto) -> dict[str, str]:
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: _type_name(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: _type_name(tensor.data_type) for tensor in graph.initializer}


def _type_name(element: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(element)
    return name.lower()


def _bound_types(node: onnx.NodeProto, schema: Any, types: dict[str, str]) -> dict[str, str]:
    """Type constraint of the operator's schema -> the type that this node gives it."""
    bound = {}
    for formals, actuals in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for position, name in enumerate(actuals):
            formal = formals[min(position, len(formals) - 1)]
            if name in types:
                bound[formal.type_str] = types[name]
    return bound


def _covers(kernel: tuple[int, int, dict[str, list[str]]], version: int, bound: dict[str, str]) -> bool:
    first, last, constraints = kernel
    in_range = version == first if last == OPEN else first <= version <= last
    return in_range and all(bound[name] in allowed for name, allowed in constraints.items() if name in bound)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="List the nodes that have no kernel on onnxruntime's CUDA provider.")
    parser.add_argument("graphs", nargs="+", type=Path, metavar="MODEL.onnx", help="or the folder of a bundle")
    given = parser.parse_args(arguments).graphs
    paths = [graph for path in given for graph in sorted(path.glob("*.onnx")) or [path]]
    missing = [(path, node) for path in paths for node in _uncovered_in(path)]
    for path, node in missing:
        print(f"{path}: {node}")
    if not missing:
        print(f"{len(paths)} graphs: every node has a CUDA kernel")
    return 1 if missing else 0


def _uncovered_in(path: Path) -> list[Uncovered]:
    try:
        return uncovered(onnx.load(path))
    except (OSError, ValueError, DecodeError, onnx.defs.SchemaError, shape_inference.InferenceError) as error:
        sys.exit(f"error: {path} cannot be read as a graph: {error}")


if __name__ == "__main__":
    sys.exit(main())
