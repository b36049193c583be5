"""The benchmark of batch sizes on a tiny bundle: it measures sizes that the sampler has not run before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import batch_sizes
from service.row_caches import HostCaches
from tests.tiny_bundle import tiny_prior, write_tiny_bundle


def test_the_warm_up_leaves_the_measured_sizes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bundle(tmp_path / "b", "b", prior=tiny_prior())
    ran: list[int] = []
    plain = HostCaches.run

    def recorded(self: HostCaches, session: object, index: np.ndarray, feeds: object) -> object:  # type: ignore[type-arg]
        ran.append(len(index))
        return plain(self, session, index, feeds)  # type: ignore[arg-type]

    monkeypatch.setattr(HostCaches, "run", recorded)
    found = batch_sizes.measure(tmp_path / "b", 1)
    first = [ran.index(size) for size in batch_sizes.SIZES]
    assert first == sorted(first) and not set(ran[: first[0]]) & set(batch_sizes.SIZES)
    assert all(size & (size - 1) for size in batch_sizes.SIZES)
    assert found["padded_by_exact"] > 0 and found["first_by_later"] > 0
