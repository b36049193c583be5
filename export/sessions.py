"""The graphs of a bundle opened from memory, for whoever compares what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle.fields import GraphName


class VerificationError(RuntimeError):
    """An exported graph does not compute what its module computes."""


@dataclass(frozen=True)
class Sessions:
    """One CPU session a graph."""

    sessions: dict[GraphName, ort.InferenceSession]

    @classmethod
    def of(cls, models: Mapping[GraphName, onnx.ModelProto]) -> Sessions:
        """Opened from memory: nothing is written."""
        providers = ["CPUExecutionProvider"]
        return cls(
            {name: ort.InferenceSession(m.SerializeToString(), providers=providers) for name, m in models.items()}
        )

    def run(self, graph: GraphName, **inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """All outputs in their order; names, shapes and dtypes are those of docs/bundle-format.md."""
        outputs: list[NDArray[np.generic]] = self.sessions[graph].run(None, inputs)
        return outputs


def batches(size: int, *arrays: NDArray[np.generic]) -> Iterator[tuple[NDArray[np.generic], ...]]:
    """Arrays of one length, cut into parts of `size`."""
    for start in range(0, len(arrays[0]), size):
        yield tuple(array[start : start + size] for array in arrays)
