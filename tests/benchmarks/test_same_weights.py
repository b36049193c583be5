"""Two runs are compared bit by bit: a difference that == does not see is one, and other tensors are no comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.report import RESULTS
from benchmarks.same_weights import NAME, compare, main, page


def saved(path: Path, *values: float, steps: int = 0) -> Path:
    weights: NDArray[np.float32] = np.array(values, np.float32)
    save_file({"weights": weights, "steps": np.array(steps)}, path)
    return path


def test_equal_bits_are_no_difference_even_where_they_are_nan(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", 1.5, float("nan")), saved(tmp_path / "b", 1.5, float("nan"))
    assert compare(first, second) == {"tensors": 2, "numbers": 3, "different": 0}


def test_every_number_whose_bits_differ_counts_once(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", 0.0, 1.0, 2.0), saved(tmp_path / "b", -0.0, 1.0, 3.0, steps=1)
    assert compare(first, second) == {"tensors": 2, "numbers": 4, "different": 3}


def test_runs_of_other_shapes_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not hold the same tensors"):
        compare(saved(tmp_path / "a", 1.0), saved(tmp_path / "b", 1.0, 2.0))


def test_two_runs_of_one_configuration_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for seed, run in enumerate(runs):
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"seed": seed}))
    for given, said in ((runs[:1] * 2, "two runs are compared"), (runs, "not of one configuration")):
        with pytest.raises(SystemExit):
            main(list(map(str, given)))
        assert said in capsys.readouterr().err


def test_the_committed_result_found_no_difference() -> None:
    result = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    assert [found["different"] for found in result["stages"].values()] == [0, 0]
    assert f"{result['stages']['prior']['numbers']:,} | 0 |" in page(result)
    assert abs(result["quality"]["mse"] / result["quality_shipped"]["mse"] - 1) < 0.05
    assert abs(result["quality"]["bits_per_code"] / result["quality_shipped"]["bits_per_code"] - 1) < 0.05
