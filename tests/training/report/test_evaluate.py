"""`evaluate` measures a finished run again, on its own pictures or on others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.bundle.fields import Quality
from tests.training.conftest import VQ_ONLY, copied, tiny_config
from training import report
from training.data import DataError, load_data
from training.fit import fit
from training.report import evaluate
from training.report.evaluation import measure_reconstruction
from training.runs import (
    load_run,
)


def test_evaluate_repeats_the_numbers_of_fit(tiny_run: Path, tmp_path: Path) -> None:
    copy = copied(tiny_run, tmp_path / "copy")
    before = Quality.model_validate(json.loads((copy / "metrics.json").read_text())["quality"]).model_dump()
    after = Quality.model_validate(evaluate(copy)[0]["quality"]).model_dump()
    assert after.pop("split") == before.pop("split") == "test"
    # other memory layouts of the same weights sum in another order; a near-tie may become another code
    assert after == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("side", "labels", "said"),
    [
        (
            8,
            np.arange(50) % 10,
            r"pictures of \(1, 8, 8\) \(channels, height, width\), .* trained on \(1, 28, 28\)",
        ),
        (28, None, "has no labels, the run was trained with the labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9: give the"),
        (28, np.arange(50) % 11, "has the labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..., the run was trained with the"),
    ],
)
def test_evaluate_says_what_is_wrong_with_other_data(
    tiny_run: Path, tmp_path: Path, side: int, labels: np.ndarray | None, said: str
) -> None:
    """It printed the shape and all labels of both as tuples, whichever of the two was wrong."""
    arrays = {"images": np.zeros((50, side, side), np.uint8)} | ({} if labels is None else {"labels": labels})
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=said):
        evaluate(tiny_run, str(tmp_path / "d.npz"))


def test_evaluate_says_what_to_do_with_labels_that_the_run_has_not(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", images=images)
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(60) % 2)
    fit(tiny_config(*VQ_ONLY, f"data.source={tmp_path / 'd.npz'}"), tmp_path / "run")
    with pytest.raises(DataError, match="has the labels 0, 1, the run was trained with no labels: leave them out"):
        evaluate(tmp_path / "run", str(tmp_path / "labelled.npz"))


def test_evaluate_keeps_where_the_model_came_from(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export then called today's commit and libraries those that had trained the model."""
    copy = copied(tiny_run, tmp_path / "copy")
    before = json.loads((copy / "metrics.json").read_text())
    monkeypatch.setattr(report, "_commit", lambda: "another")
    monkeypatch.setattr(report, "version", lambda name: "another")
    metrics, path = evaluate(copy)
    assert path == copy / "metrics.json" and json.loads(path.read_text()) == metrics
    measured = {"test", "quality"}
    assert {name: metrics[name] for name in metrics.keys() - measured} == {
        name: before[name] for name in before.keys() - measured
    }


def test_evaluate_on_other_data_leaves_what_the_export_reads(tiny_run: Path, tmp_path: Path) -> None:
    """The digest, the licence and the code histogram of the other data became those of the model."""
    copy = copied(tiny_run, tmp_path / "copy")
    before = (copy / "metrics.json").read_bytes()
    data = load_data(tiny_config().data)
    images, labels = data.test.images[:50], data.test.labels[:50].numpy()
    assert isinstance(images, torch.Tensor)
    pixels = images[:, 0].numpy()
    np.savez(tmp_path / "later.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    metrics, path = evaluate(copy, str(tmp_path / "later.npz"))
    name = f"later-{metrics['data']['digest'][:8]}"
    assert path == copy / f"metrics-{name}.json" and json.loads(path.read_text()) == metrics
    assert metrics["quality"]["pictures"] == 50 and metrics["data"]["digest"] != data.digest
    assert (copy / "metrics.json").read_bytes() == before
    assert (copy / f"reconstructions-{name}.png").exists() and not (copy / "reconstructions.png").exists()


def test_evaluate_measures_every_picture_of_other_data(tiny_run: Path, tmp_path: Path) -> None:
    """It measured the part that a training would have put aside, 15 of 100, and refused two pictures."""
    copy = copied(tiny_run, tmp_path / "copy")
    test = load_data(tiny_config().data).test
    assert isinstance(test.images, torch.Tensor)
    pixels, labels = test.images[:, 0].numpy(), test.labels.numpy()
    few = [int(np.flatnonzero(labels == 9)[0]), 0]
    for name, part in (("all", slice(None)), ("few", few)):
        np.savez(tmp_path / f"{name}.npz", images=pixels[part], labels=labels[part])
        metrics, path = evaluate(copy, str(tmp_path / f"{name}.npz"))
        assert metrics["quality"]["pictures"] == len(labels[part]) and path != copy / "metrics.json"
        assert metrics["data"]["pictures"] == {"train": 0, "validation": 0, "test": len(labels[part])}
        if name == "all":  # the run's test split, from another place
            expected = json.loads((copy / "metrics.json").read_text())["quality"]["mse"]
            assert metrics["quality"]["mse"] == pytest.approx(expected, rel=1e-3)


def test_evaluate_measures_the_test_split_of_other_data_however_few_lie_beside_it(
    tiny_run: Path, tmp_path: Path
) -> None:
    """It measured the one training picture, which is too few to be split, in the place of the test pictures."""
    test = load_data(tiny_config().data).test
    assert isinstance(test.images, torch.Tensor)
    pixels, labels = test.images[:, 0].numpy(), test.labels.numpy()
    one = np.flatnonzero(labels == 9)[:1]  # the last label: the names of all follow from the training labels
    np.savez(tmp_path / "d.npz", x_train=pixels[one], y_train=labels[one], x_test=pixels, y_test=labels)
    metrics, _ = evaluate(copied(tiny_run, tmp_path / "copy"), str(tmp_path / "d.npz"))
    assert metrics["data"]["pictures"] == {"train": 0, "validation": 0, "test": len(labels)}


def test_evaluate_does_not_mind_what_lies_beside_the_test_split(tmp_path: Path) -> None:
    """Training pictures of several sizes, which nobody measures, were refused."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=random.integers(0, 256, (60, 8, 8, 3), np.uint8))
    fit(tiny_config(*VQ_ONLY, f"data.source={tmp_path / 'd.npz'}"), tmp_path / "run")
    for split, width in (("train", 8), ("train", 9), ("test", 8), ("test", 8)):
        folder = tmp_path / "p" / split
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (8, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{len(list(folder.iterdir()))}.png")
    metrics, _ = evaluate(tmp_path / "run", str(tmp_path / "p"))
    assert metrics["test"]["pictures"] == 2


def test_evaluate_knows_the_data_of_the_run_elsewhere(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=random.integers(0, 256, (60, 8, 8), np.uint8))
    fit(tiny_config(*VQ_ONLY, f"data.source={tmp_path / 'd.npz'}"), tmp_path / "run")
    (tmp_path / "d.npz").rename(tmp_path / "moved.npz")
    metrics, path = evaluate(tmp_path / "run", str(tmp_path / "moved.npz"))
    assert path.name == "metrics.json" and metrics["test"]["pictures"] == 9


def test_evaluate_cuts_all_of_other_pictures_into_tiles(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for folder, count in (("p", 12), ("q", 2)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            pixels = random.integers(0, 256, (34, 50), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    overrides = (f"data.source={tmp_path / 'p'}", "data.crop=16", "data.grey=true")
    fit(tiny_config(*VQ_ONLY, *overrides), tmp_path / "run")
    metrics, _ = evaluate(tmp_path / "run", str(tmp_path / "q"))
    assert metrics["test"]["pictures"] == 2 * 2 * 3


def test_evaluate_keeps_what_it_measured_on_other_data_of_the_same_name(tiny_run: Path, tmp_path: Path) -> None:
    """a/test.npz and b/test.npz became one metrics-test.json, which had the numbers of the later one."""
    copy = copied(tiny_run, tmp_path / "copy")
    test = load_data(tiny_config().data).test
    assert isinstance(test.images, torch.Tensor)
    pixels, labels = test.images[:, 0].numpy(), test.labels.numpy()
    found = {}
    for folder, part in (("a", slice(50)), ("b", slice(50, 100))):
        (tmp_path / folder).mkdir()
        arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels[part], "y_test": labels[part]}
        np.savez(tmp_path / folder / "test.npz", **arrays)
        metrics, path = evaluate(copy, str(tmp_path / folder / "test.npz"))
        found[path] = metrics
    assert len(found) == 2 and all(json.loads(path.read_text()) == metrics for path, metrics in found.items())
    assert len(list(copy.glob("reconstructions-test-*.png"))) == 2


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\u732b", "\U0001f431"])
def test_evaluate_has_room_for_the_longest_name_of_a_file(tmp_path: Path, tiny_run: Path, letter: str) -> None:
    """All was measured, and then the file's name was too long."""
    copy = copied(tiny_run, tmp_path / "copy")
    test = load_data(tiny_config().data).test
    assert isinstance(test.images, torch.Tensor)
    path = tmp_path / f"{letter * (250 // len(letter.encode()))}.npz"
    np.savez(path, images=test.images[:40, 0].numpy(), labels=test.labels[:40].numpy())
    metrics, written = evaluate(copy, str(path))
    assert written.name == f"metrics-{letter * 50}-{metrics['data']['digest'][:8]}.json" and written.exists()


def test_the_elbo_is_the_same_at_each_call_and_disturbs_no_random_numbers(tmp_path: Path) -> None:
    """It was drawn from wherever the generator stood: `evaluate` never repeated the number of `fit`."""
    first = fit(tiny_config(*VQ_ONLY, "autoencoder.system=vae"), tmp_path)["test"]["elbo_nats"]
    again = [evaluate(tmp_path)[0]["test"]["elbo_nats"] for _ in range(2)]
    assert again[0] == again[1] == pytest.approx(first, rel=1e-5)  # another memory layout sums in another order
    run = load_run(tmp_path)
    test = load_data(run.config.data).test
    before = torch.get_rng_state()
    found = [measure_reconstruction(run.autoencoder, test, seed).elbo_nats for seed in (run.config.trainer.seed, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == again[0] and found[1] != again[0]
