"""Is a graph that is opened the one that the manifest describes, and does it give what it should?

In: a bundle, a graph, and what was found. Out: nothing, or a `BundleError` that names the graph's file.

The manifest is read, and the files are hashed, seconds before the graphs are opened. An export over the folder in
between must not mix two versions, so that the bytes that are opened are hashed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle, BundleError
from service.bundle.fields import GraphName, GraphSpec, TensorSpec
from service.bundle.opset import opset_of

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


def require_opset(bundle: Bundle, path: Path, data: bytes) -> None:
    """`data` is a graph that onnxruntime has opened. Raises BundleError where its operator set is another one."""
    for name, spec in _graphs_in(bundle, path):
        if (found := opset_of(data)) != spec.opset:
            raise BundleError(f"{bundle.where(name)}: opset is {found}, the manifest says {spec.opset}")


def require_tensors(bundle: Bundle, path: Path, session: OpenedGraph) -> None:
    """Raises BundleError where a tensor of the graph has another name, type or shape than in the manifest."""
    for name, spec in _graphs_in(bundle, path):
        _compare(f"{bundle.where(name)}: input", spec.inputs, session.get_inputs(), refined=False)
        _compare(f"{bundle.where(name)}: output", spec.outputs, session.get_outputs(), refined=True)


def require_array(bundle: Bundle, name: GraphName, found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Raises BundleError where a run of the graph gave another type or shape."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise BundleError(
            f"{bundle.where(name)} gives {found.dtype} {found.shape}, "
            f"the manifest says {expected.dtype} {expected.shape}: export it again"
        )


def require_codes(bundle: Bundle, name: GraphName, codes: NDArray[np.int64]) -> None:
    """Raises BundleError where a run of the graph gave codes, of any shape, outside of [0, K)."""
    if not codes.size:
        return
    lowest, highest, k = int(codes.min()), int(codes.max()), bundle.manifest.codes.codebook_size
    if lowest < 0 or highest >= k:
        found = lowest if lowest < 0 else highest
        raise BundleError(
            f"{bundle.where(name)} gives the code {found}, but codes.codebook_size is {k}: export it again"
        )


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
