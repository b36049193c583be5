"""The benchmark of batch sizes on a tiny bundle: it measures sizes that the sampler has not run before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import batch_sizes
from service.prior.row_caches import HostCaches
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
    assert found["unplanned_by_planned"] > 0 and found["unplanned_by_planned_filtered"] > 0


def test_two_samples_run_before_one_where_one_is_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bundle(tmp_path / "b", "b", prior=tiny_prior())
    sizes: list[int] = []
    monkeypatch.setattr(batch_sizes.RowSampler, "check", lambda self, size: sizes.append(size))
    bundle = batch_sizes.load_bundle(tmp_path / "b")
    batch_sizes.opened(batch_sizes.TwoFirst, bundle, 1)
    assert sizes == [2, batch_sizes.MAX_BATCH, 1]
    sizes.clear()
    batch_sizes.opened(batch_sizes.HardlyWarm, bundle, 1)
    assert sizes == [1, batch_sizes.MAX_BATCH]
