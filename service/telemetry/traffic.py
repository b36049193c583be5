"""What the traffic looks like to the codebook. In: the codes of every picture that is encoded. Out: their
perplexity, and their divergence from the histogram of the training set, which grows when the pictures are no longer
like those of training.

The counts forget: once a window is full they are halved. With several worker processes each keeps its counts in a file
of a shared folder, and whoever is asked for metrics adds the files up. A reload of the same version goes on with them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.telemetry.metric_files import CountsError, place

WINDOW_CODES = 1 << 20


class CodeTraffic:
    """Counts of the K codes of one model version, int64 (K,)."""

    def __init__(self, model: str, version: str, codebook_size: int, shared_folder: Path | None = None) -> None:
        """Raises CountsError where the shared folder takes no file for them."""
        self._pattern = f"codes_{model}_{version[:12]}_*.bin"
        self._own_of_all_versions = f"codes_{model}_{'?' * len(version[:12])}_{place()}.bin"
        self._folder = shared_folder
        self._size = codebook_size
        self._counts: NDArray[np.int64]
        if shared_folder is None:
            self._counts = np.zeros(codebook_size, np.int64)
        else:
            self._path = shared_folder / self._pattern.replace("*", str(place()))
            self._counts = _open_counts(self._path, codebook_size)
        self._total = int(self._counts.sum())
        self._lock = threading.Lock()

    def add(self, codes: NDArray[np.int64]) -> None:
        """From any thread: an engine's, or the event loop's."""
        found = np.bincount(codes.ravel(), minlength=self._size)
        with self._lock:
            self._counts += found
            self._total += codes.size
            if self._total > WINDOW_CODES:
                np.floor_divide(self._counts, 2, out=self._counts)
                self._total = int(self._counts.sum())

    def counts(self) -> NDArray[np.int64]:
        """Of all the processes together, (K,)."""
        if self._folder is None:
            return self._counts.copy()
        total = np.zeros(self._size, np.int64)
        for path in self._folder.glob(self._pattern):
            found = np.fromfile(path, np.int64, self._size)
            if len(found) == self._size:  # else another worker is just making it
                total += found
        return total

    def forget_other_versions(self) -> None:
        """Remove the files of this process for the model's other versions, one for each reload, once this one is
        served: what still writes to one does no harm."""
        if self._folder is not None:
            for path in self._folder.glob(self._own_of_all_versions):
                if path != self._path:
                    path.unlink(missing_ok=True)


def _open_counts(path: Path, codebook_size: int) -> NDArray[np.int64]:
    """The file of this process, (K,). One that is there belongs to the model that is being replaced and still writes to
    it: cutting it to length again would take the memory away from under it.

    A new one is written whole: in one with holes a full disk would be a bus error at some later count.
    """
    size = codebook_size * np.dtype(np.int64).itemsize
    try:
        if not (path.is_file() and path.stat().st_size == size):
            path.write_bytes(bytes(size))
        return np.memmap(path, np.int64, mode="r+", shape=(codebook_size,))
    except OSError as error:
        raise CountsError(path.parent, error) from error


def perplexity(counts: NDArray[np.int64]) -> float:
    """2 to the entropy in bits: from 1, one code only, to K, all alike. 0 when there is nothing to count."""
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))))


def divergence_bits(counts: NDArray[np.int64], training_counts: Sequence[int]) -> float:
    """Jensen-Shannon divergence of traffic and training, in bits: 0 alike, 1 disjoint. 0 when nothing was counted."""
    training = np.asarray(training_counts, np.float64)
    if not counts.sum() or not training.sum():
        return 0.0
    p, q = counts / counts.sum(), training / training.sum()
    middle = (p + q) / 2
    return float((_relative_entropy_bits(p, middle) + _relative_entropy_bits(q, middle)) / 2)


def _relative_entropy_bits(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    used = p > 0
    return float(np.sum(p[used] * np.log2(p[used] / q[used])))
