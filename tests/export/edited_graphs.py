"""Edits that break an exported graph in one place: what the checks of the export must find.

In: an ONNX model of `export.graphs.onnx_builder`, where each output is the copy (Identity) of another value. Out: an
edited copy of the model with the same inputs and outputs.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DTYPES = {int(TensorProto.INT64): np.int64, int(TensorProto.FLOAT): np.float32}


def combined(model: onnx.ModelProto, output: str, operator: str, other: NDArray[np.generic] | str) -> onnx.ModelProto:
    """The graph gives `operator(output, other)`, where `other` is an array or the name of a value."""
    edited = _copy(model)
    copied = next(node for node in edited.graph.node if output in node.output)
    assert copied.op_type == "Identity"
    copied.op_type = operator
    copied.input.append(other if isinstance(other, str) else _constant(edited, "other", other))
    return edited


def deaf(model: onnx.ModelProto, name: str, neutral: float) -> onnx.ModelProto:
    """The graph takes every entry of the input `name` for `neutral`, which is false for a mask."""
    edited = _copy(model)
    element = next(value.type.tensor_type.elem_type for value in edited.graph.input if value.name == name)
    for node in edited.graph.node:
        node.input[:] = ["unheard" if value == name else value for value in node.input]
    never = _constant(edited, "never", np.array(False))
    if element == TensorProto.BOOL:
        unheard = helper.make_node("And", [name, never], ["unheard"])
    else:
        instead = _constant(edited, "instead", np.array(neutral, DTYPES[element]))
        unheard = helper.make_node("Where", [never, name, instead], ["unheard"])
    edited.graph.node.insert(0, unheard)
    return edited


def with_nodes(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """The graph computes these nodes first."""
    edited = _copy(model)
    for index, node in enumerate(nodes):
        edited.graph.node.insert(index, node)
    return edited


def one_entry(shape: tuple[int, ...], value: float, dtype: type[np.generic]) -> NDArray[np.generic]:
    """Zeros but for the first entry of the last row: one of each sample, where `shape` has no batch."""
    array = np.zeros(shape, dtype)
    array[(-1, *(0 for _ in shape[1:]))] = value
    return array


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    return edited


def _constant(model: onnx.ModelProto, name: str, value: NDArray[np.generic]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name
