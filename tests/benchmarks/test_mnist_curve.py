"""The page of the curve, and which points lie under and left of the baseline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mnist_curve
from benchmarks.mnist_curve import CONFIG, KERAS, POINTS, dominates, overrides_of, page, plot, shipped
from benchmarks.mnist_curve import point as point_of
from training.config import ConfigError, load_config
from training.runs import write_json


def point(name: str, size: float, mse: float) -> dict[str, Any]:
    measured = {"mse": mse, "psnr_db": 25.0, "perplexity": 7.0, "bits_per_code": 1.3, "bytes_per_digit": size}
    return {"point": name, "overrides": list(overrides_of(name)), **measured}


def test_a_point_dominates_only_with_fewer_bytes_and_a_lower_error() -> None:
    assert dominates(point("32-long", 8.0, 0.0039), KERAS)
    assert not dominates(point("64", 9.2, 0.0038), KERAS)
    assert not dominates(point("32", 8.0, 0.0047), KERAS)


def test_every_point_is_a_valid_configuration() -> None:
    for name in POINTS:
        config = load_config(CONFIG, overrides_of(name))
        assert config.autoencoder.quantizer.codebook_size == POINTS[name][0]


def test_a_point_that_another_configuration_has_trained_is_refused(tmp_path: Path) -> None:
    """It was read as the result of today's overrides."""
    folder = tmp_path / "k64"
    folder.mkdir()
    write_json(folder / "config.json", load_config(CONFIG, overrides_of("32")).model_dump(mode="json"))
    write_json(folder / "metrics.json", {"quality": {}})
    with pytest.raises(ConfigError, match="another configuration"):
        point_of("64", tmp_path)


def test_without_record_the_committed_curve_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way to one point, which another page's command names, replaced the whole curve."""
    monkeypatch.setattr(mnist_curve, "RESULT", tmp_path / "curve.json")
    monkeypatch.setattr(mnist_curve, "write_section", lambda name, text: (tmp_path / name).write_text(text))
    monkeypatch.setattr(mnist_curve, "point", lambda name, out: point(name, 8.1, 0.0039))
    monkeypatch.setattr(sys, "argv", ["mnist_curve", "--only", "32-small"])
    assert mnist_curve.main() == 0
    assert list(tmp_path.iterdir()) == [] and "32-small" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["mnist_curve", "--only", "32-small", "--record"])
    assert mnist_curve.main() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"curve.json", "curve.svg", "mnist_curve"}


def test_the_shipped_bundle_is_a_point() -> None:
    point = shipped()
    assert point["point"] == "512, `models/mnist`"
    assert point["bytes_per_digit"] == point["bits_per_code"] * 49 / 8
    assert "rate_weight=0.04" in point["overrides"][0]
    assert "| 512, `models/mnist` | 0.04 |" in page(
        {"command": "c", "baseline": KERAS, "points": [point], "dominating": []}
    )


def test_the_page_names_lambda_and_steps_of_each_point() -> None:
    points = [point("32-long", 8.0, 0.0039), point("64", 9.2, 0.0038)]
    text = page({"command": "c", "baseline": KERAS, "points": points, "dominating": ["32-long"]})
    assert "| 32-long | 0.35 | 6000 | 8.00 | 0.00390 | 25.00 | 7.0 | yes |" in text
    assert "| 64 | 0.12 | 3000 | 9.20 | 0.00380 | 25.00 | 7.0 |  |" in text
    assert "Keras example" in plot({"baseline": KERAS, "points": points})


def test_a_setting_without_an_override_is_that_of_the_configuration() -> None:
    text = page({"command": "c", "baseline": KERAS, "points": [point("32-small", 8.1, 0.0037)], "dominating": []})
    assert f"| 32-small | 0.43 | {load_config(CONFIG).trainer.autoencoder.steps} | 8.10 |" in text
