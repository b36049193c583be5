"""Where the row sampler's caches lie between two rows. In: a row graph's session and feeds. Out: the codes drawn.

`HostCaches` is a table in main memory, one entry a place. `DeviceCaches` binds the graph's inputs and outputs to fixed
memory of the device, and while the same samples advance together, the caches that one row leaves there are what the
next one reads: two buffers that take turns. Only when the company changes do they pass through the table. Fixed
addresses are also what a CUDA graph needs; each batch size, session and turn is one graph of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.prior.draws import Codes, Floats

Feeds = Mapping[str, NDArray[Any]]


class HostCaches:
    """A table (places, layers + 1, w, channels), all zero for a fresh sample.

    A batch is gathered into memory that is made once, for the largest one; what a run needs itself comes from
    onnxruntime's arena, which has grown to the largest batch before the first request.
    """

    def __init__(self, places: int, max_batch: int, cache_shape: tuple[int, ...]) -> None:
        self._table = np.zeros((places, *cache_shape), np.float32)
        self._batch = np.empty((max_batch, *cache_shape), np.float32)

    def clear(self, place: int) -> None:
        """A new sample begins at this place."""
        self._table[place] = 0

    def run(self, session: ort.InferenceSession, index: Codes, feeds: Feeds) -> Codes:
        """Advance the samples at the places `index` (B,) by one row -> codes (B,w). A place that pads may repeat."""
        drawn: Codes
        drawn, self._table[index] = session.run(None, {**feeds, "caches": self._gather(index)})
        return drawn

    def _gather(self, index: Codes) -> Floats:
        """The caches at these places, valid until the next call."""
        # The indices are our own; with mode="raise" numpy would make a copy first.
        return np.take(self._table, index, axis=0, out=self._batch[: len(index)], mode="clip")


class DeviceCaches(HostCaches):
    """The same with the last batch on `device` ("cuda", or "cpu" to test). After a failed run its samples are lost."""

    def __init__(self, places: int, max_batch: int, cache_shape: tuple[int, int, int], device: str) -> None:
        super().__init__(places, max_batch, cache_shape)
        self._device = device
        self._memory: dict[int, _Memory] = {}  # by batch size
        self._resident: Codes | None = None  # the places whose caches are on the device and not in the table

    def clear(self, place: int) -> None:
        if self._resident is not None and place in self._resident:
            self._settle()
        super().clear(place)

    def run(self, session: ort.InferenceSession, index: Codes, feeds: Feeds) -> Codes:
        size = len(index)
        if size not in self._memory:
            self._memory[size] = _Memory(size, self._table.shape[1:], self._device)
        memory = self._memory[size]
        if self._resident is None or not np.array_equal(index, self._resident):
            self._settle()
            memory.put_caches(self._gather(index))
        self._resident = None  # until the run has succeeded
        drawn = memory.run(session, feeds)
        self._resident = index
        return drawn

    def _settle(self) -> None:
        """Back into the table with what the device holds."""
        if self._resident is not None:
            self._table[self._resident] = self._memory[len(self._resident)].caches()
            self._resident = None


class _Memory:
    """The tensors of one batch size on the device, at addresses that never change."""

    def __init__(self, size: int, cache_shape: tuple[int, ...], device: str) -> None:
        self._size, self._device = size, device
        self._values: dict[str, ort.OrtValue] = {}
        self._codes = self._new((size, cache_shape[1]), np.int64)
        self._caches = [self._new((size, *cache_shape), np.float32) for _ in range(2)]
        self._turn = 0  # which of the two holds the present caches
        self._bindings: dict[tuple[ort.InferenceSession, int], tuple[ort.IOBinding, ort.RunOptions]] = {}

    def put_caches(self, caches: Floats) -> None:
        self._caches[self._turn].update_inplace(caches)

    def caches(self) -> Floats:
        caches: Floats = self._caches[self._turn].numpy()
        return caches

    def run(self, session: ort.InferenceSession, feeds: Feeds) -> Codes:
        for name, array in feeds.items():
            if name not in self._values:
                self._values[name] = self._new(array.shape, array.dtype)
            self._values[name].update_inplace(array)
        key = (session, self._turn)
        if key not in self._bindings:
            self._bindings[key] = self._bind(session, feeds)
        session.run_with_iobinding(*self._bindings[key])
        self._turn = 1 - self._turn
        drawn: Codes = self._codes.numpy()
        return drawn.copy()  # on a CPU numpy() shows the memory that the next row writes

    def _bind(self, session: ort.InferenceSession, feeds: Feeds) -> tuple[ort.IOBinding, ort.RunOptions]:
        binding, options = session.io_binding(), ort.RunOptions()
        for name in feeds:
            binding.bind_ortvalue_input(name, self._values[name])
        binding.bind_ortvalue_input("caches", self._caches[self._turn])
        binding.bind_ortvalue_output("sampled_codes", self._codes)
        binding.bind_ortvalue_output("next_caches", self._caches[1 - self._turn])
        # Names a CUDA graph of this session; without CUDA graphs nothing reads it.
        options.add_run_config_entry("gpu_graph_id", str(2 * self._size + self._turn))
        return binding, options

    def _new(self, shape: tuple[int, ...], dtype: Any) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device, 0)
