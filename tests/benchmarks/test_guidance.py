"""The page about guidance, and that a system which is there is not trained again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import guidance
from benchmarks.pages import result

ROW = {"frechet": 8.7571, "precision": 0.72, "recall": 0.9, "spread": 1.05, "class_agreement": 0.975}
MACHINE = {"cpu": "C", "cpus": 2, "memory_gib": 1.0, "load_average_1min": 0.1, "python": "3", "onnxruntime": "1"}


def test_the_page_has_a_row_a_guidance_beside_the_real_pictures() -> None:
    result = {"command": "c", "machine": MACHINE, "system": "vqvae-fsq", "samples": 5000, "classifier_accuracy": 0.9866}
    text = guidance.page({**result, "real": ROW, "guidances": {"1": ROW, "2.5": ROW}})
    assert "| guidance 2.5 | 8.757 | 0.720 | 0.900 | 1.050 | 0.975 |" in text
    assert "5,000 samples" in text and "98.66%" in text


def test_a_system_that_is_there_is_loaded_and_another_one_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[object, Path]] = []
    asked: list[tuple[object, Path]] = []
    monkeypatch.setattr(guidance, "variants", lambda config, data: {"vqvae-ema": "ema", "vqvae-fsq": "fsq"})
    monkeypatch.setattr(guidance, "require_own_folders", lambda systems, data, folder: asked.append((systems, folder)))
    monkeypatch.setattr(guidance, "fit", lambda config, folder, resume: fitted.append((config, folder)))
    monkeypatch.setattr(guidance, "load_run", lambda folder: folder.name)
    (tmp_path / "vqvae-ema").mkdir()
    (tmp_path / "vqvae-ema" / guidance.METRICS_FILE).write_text("{}")
    for system in ("vqvae-ema", "vqvae-fsq"):
        assert guidance.trained(None, None, system, tmp_path) == system  # type: ignore[arg-type,comparison-overlap]
    assert fitted == [("fsq", tmp_path / "vqvae-fsq")]
    assert asked == [({"vqvae-ema": "ema"}, tmp_path), ({"vqvae-fsq": "fsq"}, tmp_path)]


def test_the_model_report_says_what_was_measured() -> None:
    found = result("guidance")
    agreement = {name: row["class_agreement"] for name, row in found["guidances"].items()}
    text = Path("docs/model-report.md").read_text(encoding="utf-8").split("## Beyond guidance 2")[1]
    assert found["system"] == "vqvae-fsq" and f"{agreement['2.5']:.1%} of its samples" in text
    assert agreement["1"] < agreement["2"] < agreement["2.5"] >= agreement["3"]
