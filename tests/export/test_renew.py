"""A bundle of an earlier version gets the samplers of this one: the same codes, the same version, no training run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.graphs.prior_graphs import PriorGraphWriter
from export.graphs.prior_reader import read_prior
from export.renew import main
from export.renewal import renew
from export.sessions import VerificationError
from export.target import ExportError
from service.bundle import load_bundle
from service.bundle.fields import GraphName
from service.bundle.manifest import version_of
from tests.tiny_bundle import CODEBOOK_SIZE, tiny_prior, write_tiny_bundle
from training.models.frequencies import frequency_table
from training.models.prior import PixelCNN
from training.printing import status_of

MNIST = Path(__file__).parents[2] / "models" / "mnist"
OLD: tuple[GraphName, ...] = ("prior_row", "prior_row_guided", "prior_diagonal")


def graphs_of(prior: PixelCNN) -> dict[GraphName, bytes]:
    models = PriorGraphWriter(prior).all(8, frequency_table(prior.codebook_size).numpy())
    return {name: model.SerializeToString(deterministic=True) for name, model in models.items()}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("labels", "layers", "head"), [(0, (1, 1), 16), (3, (2, 2), 16), (10, (1, 3), 16), (0, (1, 1), 24), (3, (2, 2), 48)]
)
def test_every_weight_is_read_back(labels: int, layers: tuple[int, int], head: int) -> None:
    """All graphs of the prior that was read are the bytes of those of the prior that was written. A head of 24 or 48
    channels has as many rows as the taps of a layer."""
    torch.manual_seed(labels)
    prior = PixelCNN(
        24, labels, channels=8, vertical_layers=layers[0], horizontal_layers=layers[1], head_channels=head
    ).requires_grad_(False)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    written = PriorGraphWriter(prior).teacher_forced()
    assert graphs_of(read_prior(written, 24, labels)) == graphs_of(prior)


def test_the_shipped_prior_gives_the_logits_of_its_graph() -> None:
    path = load_bundle(MNIST).graph_path("prior")
    codes = np.random.default_rng(0).integers(0, 512, (3, 7, 7))
    labels = np.array([0, 9, 10])  # 10: no label
    (logits,) = ort.InferenceSession(path).run(None, {"codes": codes, "labels": labels})
    found = read_prior(onnx.load(path), 512, 10)(torch.from_numpy(codes), torch.from_numpy(labels))
    assert np.array_equal(found.numpy(), logits)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """With the version that its graphs have."""
    counted = [(name, one["sha256"]) for name, one in manifest["graphs"].items() if name != "prior_diagonal"]
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(counted))
    manifest["version"] = hashlib.sha256(lines.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_old_bundle(folder: Path) -> None:
    """As an earlier version left it: without the second diagonal, and with row graphs of other bytes."""
    write_tiny_bundle(folder, prior=tiny_prior(vertical_layers=1))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / manifest["graphs"].pop("prior_diagonal_filtered")["file"]).unlink()
    for name in OLD:
        model = onnx.load(folder / f"{name}.onnx")
        model.doc_string = "of an earlier version"
        onnx.save(model, folder / f"{name}.onnx")
        manifest["graphs"][name]["sha256"] = digests(folder)[f"{name}.onnx"]
    write_manifest(folder, manifest)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an earlier version. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("renew") / "first"
    write_old_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    """The same, renewed. Read it, do not change it."""
    folder = shutil.copytree(first, first.parent / "second")
    renew(folder)
    return folder


@pytest.fixture
def old(first: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first, tmp_path / "old")


@pytest.fixture
def uncompared(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison of the samplers, which is most of the time, for what comes before and after it."""
    monkeypatch.setattr("export.renewal.compare_samplers", lambda *_: 1)


@pytest.fixture
def renewed(second: Path, tmp_path: Path) -> Path:
    return shutil.copytree(second, tmp_path / "renewed")


def test_a_bundle_keeps_its_version_and_gets_new_samplers(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_bundle(old).manifest
    assert main([str(old)]) == 0
    assert capsys.readouterr().out == (
        f"{old}: prior_row, prior_row_guided, prior_diagonal, prior_diagonal_filtered renewed, version unchanged\n"
    )
    after = load_bundle(old).manifest
    assert after.version == before.version == version_of(after.graphs)
    counted = {name: graph.counts_as for name, graph in after.graphs.items() if graph.counts_as}
    assert counted == {name: before.graphs[name].sha256 for name in OLD if name != "prior_diagonal"}
    assert after.parity.sampled_codes_compared == 6 * 16 * 7 * 7
    written = PriorGraphWriter(tiny_prior(vertical_layers=1)).all(7, frequency_table(CODEBOOK_SIZE).numpy())
    for name, model in written.items():
        assert onnx.load(old / f"{name}.onnx") == model
    unchanged = {"graphs": after.graphs, "parity": after.parity}
    assert before.model_copy(update=unchanged) == after
    assert [path.name for path in old.parent.iterdir()] == ["old"]


@pytest.mark.usefixtures("uncompared")
def test_a_second_time_nothing_changes(renewed: Path) -> None:
    files = digests(renewed)
    assert renew(renewed) == []
    assert digests(renewed) == files


@pytest.mark.usefixtures("uncompared")
def test_the_first_hash_counts_however_often_a_graph_is_replaced(first: Path, renewed: Path) -> None:
    manifest = json.loads((renewed / "manifest.json").read_text())
    model = onnx.load(renewed / "prior_row.onnx")
    model.doc_string = "of a version in between"
    onnx.save(model, renewed / "prior_row.onnx")
    manifest["graphs"]["prior_row"]["sha256"] = digests(renewed)["prior_row.onnx"]
    (renewed / "manifest.json").write_text(json.dumps(manifest))
    assert renew(renewed) == ["prior_row"]
    begun, last = load_bundle(first).manifest, load_bundle(renewed).manifest
    assert last.graphs["prior_row"].counts_as == begun.graphs["prior_row"].sha256
    assert last.version == begun.version


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    files = digests(folder)
    assert main([str(folder)]) == 1
    assert digests(folder) == files
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return capsys.readouterr().err


def test_a_bundle_without_a_prior_has_nothing_to_renew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "plain")
    assert refused(tmp_path / "plain", capsys) == f"error: {tmp_path / 'plain'} has no prior, so no samplers\n"


def with_prior(folder: Path, change: Any) -> None:
    """Edit the bundle's teacher-forced graph, as somebody else's export would have written it."""
    model = onnx.load(folder / "prior.onnx")
    change(model)
    onnx.save(model, folder / "prior.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"]["prior"]["sha256"] = digests(folder)["prior.onnx"]
    write_manifest(folder, manifest)


def test_a_prior_that_is_written_otherwise_is_left_alone(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_prior(old, lambda model: setattr(model, "doc_string", "written by another program"))
    assert refused(old, capsys) == f"error: {old}: the weights of its prior cannot be read exactly: export it again\n"


def test_a_prior_of_another_kind_is_left_alone(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without_products(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "MatMul":
                node.op_type = "Gemm"

    with_prior(old, without_products)
    message = refused(old, capsys)
    assert message.startswith(f"error: {old}: the graph `prior` has not the weights of a PixelCNN: ")
    assert message.endswith(": export it again\n")


def test_a_prior_that_is_no_graph_is_left_alone(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was a traceback."""
    (old / "prior.onnx").write_text("no graph")
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["graphs"]["prior"]["sha256"] = digests(old)["prior.onnx"]
    write_manifest(old, manifest)
    assert refused(old, capsys) == f"error: {old}: the graph `prior` is no ONNX: export it again\n"


def test_a_sampler_that_would_draw_other_codes_is_not_written(
    old: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: Any) -> int:
        raise VerificationError("prior_row draws other codes")

    monkeypatch.setattr("export.renewal.compare_samplers", differs)
    assert refused(old, capsys) == "error: prior_row draws other codes\n"


def test_a_graph_that_would_read_containers_otherwise_is_not_written(
    old: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prior_pixel` draws nothing, so that no sampler shows what it computes."""
    other = PriorGraphWriter(tiny_prior(seed=1, vertical_layers=1)).pixel()
    monkeypatch.setattr(PriorGraphWriter, "pixel", lambda _: other)
    assert refused(old, capsys) == "error: prior_context and prior_pixel disagree with the teacher-forced prior\n"


@pytest.mark.usefixtures("uncompared")
def test_write_protected_files_are_replaced(old: Path) -> None:
    for path in old.iterdir():
        path.chmod(0o444)
    assert "prior_row" in renew(old)
    assert all(path.stat().st_mode & 0o600 == 0o600 for path in old.iterdir())


@pytest.mark.usefixtures("uncompared")
def test_a_full_disk_leaves_the_bundle_and_names_it(
    old: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("export.renewal.save_graph", full)
    assert refused(old, capsys) == (
        f"error: {old} cannot be written (No space left on device): make room there, correct its permissions, or "
        "choose another folder\n"
    )


@pytest.mark.usefixtures("uncompared")
def test_a_full_disk_during_the_copy_has_one_reason(
    old: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message was a Python list of all files."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copystat", full)  # of each file
    message = refused(old, capsys)
    assert message.startswith(f"error: {old} cannot be written ([Errno 28] No space left on device): make room there")


@pytest.mark.usefixtures("uncompared")
def test_a_graph_that_would_change_the_version_is_not_added(old: Path) -> None:
    """One that belongs to it, which an earlier version did not write."""
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["graphs"].pop("prior_row_guided")
    write_manifest(old, manifest)
    (old / "prior_row_guided.onnx").unlink()
    files = digests(old)
    with pytest.raises(ExportError, match="prior_row_guided would be new, and with it the version"):
        renew(old)
    assert digests(old) == files


@pytest.mark.usefixtures("uncompared")
def test_ctrl_c_leaves_the_bundle_as_it_was(
    old: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.renewal.replace_bundle", interrupted)
    files = digests(old)
    assert status_of(lambda: main([str(old)])) == 130
    assert capsys.readouterr().err == "ended by Ctrl-C\n"
    assert digests(old) == files and [path.name for path in old.parent.iterdir()] == ["old"]
