"""The page about the decoder's sigma, and what the model report takes from its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import decoder_sigma
from benchmarks.pages import result
from tests.training.conftest import tiny_config
from training.data import load_data
from training.fit import fit
from training.runs import load_run

MACHINE = {"cpu": "C", "cpus": 2, "memory_gib": 1.0, "load_average_1min": 0.1, "python": "3", "onnxruntime": "1"}


def test_the_page_gives_both_elbos_and_bounds_what_sigma_explains() -> None:
    row = {"steps": 2000, "learning_rate": 0.002, "mse": 0.00441, "elbo_nats": 798.0, "kl_nats": 80.0}
    row |= {"decoder_sigma": 0.1014, "best_sigma": 0.072, "best_elbo_nats": 872.5}
    small, large = {"mse": 0.0044, "elbo_nats": 800.0, "steps": 2000}, {"mse": 0.003, "elbo_nats": 1080, "steps": 7000}
    report = {"vae": small, "cvae": small, "vae-large": large, "cvae-large": large}
    found = {"command": "c", "machine": MACHINE, "systems": {"vae": row, "cvae": row}, "reported": report}
    text = decoder_sigma.page(found)
    assert "| cvae | 0.00441 | 0.00440 | 0.1014 | 0.0720 | 80.0 | 800.0 | 798.0 | 872.5 |" in text
    assert "`vae` has 74.5 nats more: of the 280.0 nats between it and `vae-large` (7,000 steps)" in text


def test_a_run_is_measured_by_the_draws_of_its_own_metrics(tmp_path: Path) -> None:
    config = tiny_config("autoencoder.system=vae", "trainer.autoencoder.steps=5", "prior=null")
    metrics = fit(config, tmp_path)["test"]
    measured = decoder_sigma.measure(load_run(tmp_path), load_data(config.data))
    for key in ("mse", "elbo_nats", "decoder_sigma", "best_sigma"):
        assert measured[key] == pytest.approx(metrics[key], rel=1e-4)  # another memory layout sums in another order
    assert measured["steps"] == 5


def test_the_recorded_run_is_that_of_the_model_report() -> None:
    """The same training: its reconstructions are as good to five digits."""
    found, compared = result("decoder_sigma"), result("compare")
    for name, row in found["systems"].items():
        assert row["mse"] == pytest.approx(compared["systems"][name]["mse"], rel=1e-5)
        assert row["decoder_sigma"] > row["best_sigma"] and row["best_elbo_nats"] > row["elbo_nats"]
        assert found["reported"][name]["elbo_nats"] == compared["systems"][name]["elbo_nats"]


def test_the_model_report_says_what_was_measured() -> None:
    row = result("decoder_sigma")["systems"]["cvae"]
    text = Path("docs/model-report.md").read_text(encoding="utf-8").split("## The decoder's sigma")[1]
    assert f"{row['decoder_sigma']:.4f} for `cvae`, where {row['best_sigma']:.4f} is the best" in text
    assert f"costs it {row['best_elbo_nats'] - row['elbo_nats']:.0f} nats" in text
