"""The portability benchmark on a tiny bundle, and that it would notice a difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import portability
from benchmarks.portability import Configuration, compare
from benchmarks.tiny_prior import TinyGraphs, draw_codes, tiny_model
from service.codec.container_errors import ContainerError
from tests.conftest import PICTURES
from tests.tiny_bundle import tiny_prior, write_tiny_bundle


def test_a_tiny_bundle_is_portable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "b", "b", prior=tiny_prior())
    folder = PICTURES.parent / "mnist"
    arguments = [str(folder), "--bundle", str(tmp_path / "b"), "--pictures", "70", "--out", str(tmp_path / "out")]
    assert portability.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {
        "pictures": 70,
        "codes": 70 * 49,
        "configurations": 7,
        "different": 0,
    }
    rows = json.loads((tmp_path / "out" / "portability_b.json").read_text())["configurations"]
    assert [row["containers"] for row in rows] == [2, 2, 2, 2, 70, 2, 2]


def test_a_prior_that_differs_in_one_logit_is_noticed() -> None:
    """The encoder's bytes differ; its containers are not decoded to something else in silence."""
    model = tiny_model()
    assert model.prior is not None
    off_by_one = TinyGraphs(12, 3, seed=7)
    off_by_one._table[0, 0, 3, :] += np.arange(12) == 2
    other = replace(model, prior=replace(model.prior, graphs=off_by_one))
    codes = draw_codes(model, (64, 3, 4), seed=0)
    (row,) = compare([(codes, (12, 16))], iter([Configuration("same", model)]))
    assert row["containers_different"] == row["codes_different"] == 0
    with pytest.raises(ContainerError):
        compare([(codes, (12, 16))], iter([Configuration("same", model), Configuration("other", other)]))
