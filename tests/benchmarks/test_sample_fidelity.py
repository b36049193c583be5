"""What the page about samples says, and that samples of one label are all different."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sample_fidelity import draw, page
from tests.tiny_bundle import tiny_prior, write_tiny_bundle
from vqserve.offline import Offline


def test_samples_of_a_label_have_seeds_of_their_own(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", "b", prior=tiny_prior())
    model = Offline(tmp_path / "b")
    pictures = [picture.tobytes() for label in (0, 1) for picture in draw(model, label, 70, {"guidance": 1.5})]
    assert len(pictures) == 140 and len(set(pictures)) > 130


def test_the_page_has_a_row_a_setting_beside_the_real_pictures() -> None:
    row = {"frechet": 8.7571, "precision": 0.72, "recall": 0.9, "spread": 1.05, "class_agreement": 0.87}
    result = {"command": "c", "bundle": "b", "samples": 5000, "classifier_accuracy": 0.9866, "real": row}
    text = page({**result, "settings": {"guidance 2": row}})
    assert "| guidance 2 | 8.757 | 0.720 | 0.900 | 1.050 | 0.870 |" in text
    assert "5,000 samples" in text and "98.66%" in text
