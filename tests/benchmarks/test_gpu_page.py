"""The page of the GPU's check: rates beside each other, differences named, a failed check not printed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu_page import page


def document(batches: list[int], rate: float, *, different: int = 0, passed: bool = True) -> dict[str, Any]:
    return {
        "bundle": {"name": "digits"},
        "device": {"name": "a GPU", "driver_version": "1.2"},
        "versions": {"onnxruntime": "1.31", "python": "3.11"},
        "passed": passed,
        "parity": [
            {"what": "codes", "compared": 1000, "different": 0, "largest": 0.0},
            {"what": "pixels", "compared": 2000, "different": different, "largest": float(different > 0)},
        ],
        "timings": [
            {"work": "encode", "batch": batch, "device_pictures_per_s": rate, "cpu_pictures_per_s": 10.0}
            for batch in batches
        ],
    }


def test_batches_that_only_the_widest_run_has_stand_under_graphs() -> None:
    text = page([document([1, 64], 100), document([1, 64], 200), document([64, 256], 300)])
    assert "| encode | 64 | 100 | 200 | 10 |" in text
    assert "| encode | 256 | - | 300 | 10 |" in text
    assert "compared 3,000 values" in text
    assert "no difference" in text


def test_differences_are_named() -> None:
    text = page([document([1], 1.0), document([1], 1.0, different=3), document([1], 1.0)])
    assert "all passed, the only differences are 3 of 2,000 pixels, by 1 of 255. " in text


def test_distances_that_differ_within_what_is_allowed_are_differences() -> None:
    """The page called one pixel the only difference, where half of the values had been compared with a tolerance."""
    other = document([1], 1.0, different=3)
    other["parity"].append({"what": "distances", "compared": 9, "different": 0, "largest": 8.6e-7})
    text = page([document([1], 1.0), other, document([1], 1.0)])
    assert "are 3 of 2,000 pixels, by 1 of 255 and distances, by at most 9e-07 of their span. " in text


def test_a_check_that_failed_makes_no_page() -> None:
    with pytest.raises(AssertionError):
        page([document([1], 1.0), document([1], 1.0, passed=False), document([1], 1.0)])
