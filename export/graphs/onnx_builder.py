"""A small writer of ONNX graphs: each method adds one node and returns the name of its output.

All graphs of a bundle are written with it. A tracer would take seconds to minutes (the row sampler unrolls w columns)
where this takes milliseconds, and every node is one that the exactness proof and the CUDA check know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
DTYPES = {
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "bool": TensorProto.BOOL,
}


class GraphBuilder:
    """Collects nodes and constants; `model()` checks them and returns the ONNX model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scaled: dict[tuple[str, str], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """`dtype` is one of `DTYPES`; strings in `shape` are dynamic axes."""
        self._inputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], shape))
        return name

    def output(self, value: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Give `value` out under the name `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], shape))

    def constant(self, value: NDArray[np.generic]) -> str:
        """An initializer; equal arrays are stored once."""
        value = np.ascontiguousarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(numpy_helper.from_array(value, name))
        return self._constants[key]

    def scaled_constant(self, integers: NDArray[np.int8], scales: NDArray[np.float32]) -> str:
        """integers * scales as float32, stored as they are. onnxruntime multiplies once, when it opens the graph."""
        key = (self.constant(integers), self.constant(scales))
        if key not in self._scaled:
            self._scaled[key] = self.op("Mul", self.cast(key[0], "float32"), key[1])
        return self._scaled[key]

    def integers(self, *values: int) -> str:
        """int64 (n,)."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """float32 ()."""
        return self.constant(np.array(value, np.float32))

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output; an empty name stands for an optional input that is left out."""
        return self.ops(operator, *inputs, count=1, **attributes)[0]

    def ops(self, operator: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """A node of `count` outputs."""
        stem = f"{operator.lower()}_{len(self._nodes)}"
        outputs = [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=stem, **attributes))
        return outputs

    def cast(self, value: str, dtype: str) -> str:
        """`dtype` is one of `DTYPES`."""
        return self.op("Cast", value, to=DTYPES[dtype])

    def split(self, value: str, count: int, axis: int) -> list[str]:
        """`count` equal parts along `axis`."""
        return self.ops("Split", value, count=count, axis=axis, num_outputs=count) if count > 1 else [value]

    def slice(self, value: str, axis: int, start: int, end: int) -> str:
        """value[start:end] along `axis`; negative numbers count from its end."""
        return self.op("Slice", value, self.integers(start), self.integers(end), self.integers(axis))

    def model(self) -> onnx.ModelProto:
        """Raises onnx's ValidationError or InferenceError where a node or a shape is wrong."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        # IR 10 is what every onnxruntime since 1.20 reads
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model
