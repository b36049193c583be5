"""Is a graph that is opened the one that the manifest describes? In: a bundle, a graph file's path, and what was found.

The manifest is read, and the files are hashed, seconds before the graphs are opened. An export over the folder in
between must not mix two versions, so that the bytes that are opened are hashed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from service.bundle import Bundle, BundleError, GraphName, GraphSpec, TensorSpec

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
    "tensor(bool)": "bool",
}


class OpenedGraph(Protocol):
    """The part of `onnxruntime.InferenceSession` that is compared with the manifest."""

    def get_inputs(self) -> Sequence[Any]: ...

    def get_outputs(self) -> Sequence[Any]: ...


def require_unchanged(bundle: Bundle, path: Path, data: bytes) -> None:
    """Raises BundleError where the bytes of the file are not those that the manifest describes."""
    for name, spec in _graphs_in(bundle, path):
        if hashlib.sha256(data).hexdigest() != spec.sha256:
            raise BundleError(f"graph {name}: {path} changed while the bundle was opened: load it again")


def require_tensors(bundle: Bundle, path: Path, session: OpenedGraph) -> None:
    """Raises BundleError where a tensor of the graph has another name, type or shape than in the manifest."""
    for name, spec in _graphs_in(bundle, path):
        _compare(f"graph {name}: input", spec.inputs, session.get_inputs(), refined=False)
        _compare(f"graph {name}: output", spec.outputs, session.get_outputs(), refined=True)


def _graphs_in(bundle: Bundle, path: Path) -> Iterator[tuple[GraphName, GraphSpec]]:
    """Those that the manifest keeps in this file; none where it is of another folder."""
    return ((name, spec) for name, spec in bundle.manifest.graphs.items() if bundle.graph_path(name) == path.absolute())


def _compare(what: str, described: Sequence[TensorSpec], found: Sequence[Any], *, refined: bool) -> None:
    """`refined`: onnxruntime may have found the size of an axis that the graph leaves open."""
    names = [tensor.name for tensor in described]
    if [tensor.name for tensor in found] != names:
        raise BundleError(f"{what}s are {', '.join(t.name for t in found)}, the manifest says {', '.join(names)}")
    for spec, tensor in zip(described, found, strict=True):
        dtype, shape = _DTYPES.get(tensor.type, tensor.type), tuple(tensor.shape)
        axes_agree = len(shape) == len(spec.shape) and all(
            one == other if isinstance(one, int) and isinstance(other, int) else refined or type(one) is type(other)
            for one, other in zip(shape, spec.shape, strict=True)
        )
        if dtype != spec.dtype or not axes_agree:
            raise BundleError(f"{what} {spec.name} is {dtype} {shape}, the manifest says {spec.dtype} {spec.shape}")
