"""A finished run becomes a bundle that loads, says what was measured, and is all or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export.__main__ import main
from export.build import build_bundle
from export.cuda_coverage import uncovered
from export.graphs.autoencoder_graphs import autoencoder_graphs, distances_graph, shapes_of
from export.reference_sampler import sample
from export.sessions import Sessions, VerificationError
from export.target import ExportError
from export.verify import _compare_distances, _require_near_ties, to_torch, verify
from export.verify_prior import sample_rows
from service.bundle import BundleError, load_bundle
from service.bundle.fields import GraphName
from training.data import DataError
from training.models.autoencoders import VQVAE
from training.models.networks import Decoder, Encoder
from training.models.quantizers import EMAQuantizer
from training.models.scalar_quantizer import FiniteScalarQuantizer
from training.runs import load_run


@pytest.fixture(scope="module")
def bundle(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    build_bundle(finished_run, folder)
    return folder


def test_the_bundle_loads_and_tells_what_was_measured(bundle: Path, finished_run: Path) -> None:
    manifest = load_bundle(bundle).manifest
    run = load_run(finished_run)
    assert manifest.quality.model_dump() == run.metrics["quality"]
    assert manifest.parity.pictures == manifest.quality.pictures == 100
    assert manifest.parity.codes_compared == 100 * 49
    assert manifest.parity.codes_different == 0
    assert manifest.parity.largest_pixel_difference <= 1
    assert manifest.parity.prior_logits_compared == 100 * 49 * 16
    assert manifest.parity.sampled_codes_compared == 4 * 16 * 49
    assert manifest.labels == tuple("0123456789")
    assert sum(manifest.code_histogram) % 49 == 0
    assert manifest.codebook_colours is not None
    assert len(manifest.codebook_colours) == 16


@pytest.mark.usefixtures("unverified")
def test_the_same_run_gives_the_same_version(bundle: Path, finished_run: Path, tmp_path: Path) -> None:
    again = build_bundle(finished_run, tmp_path / "again").manifest
    assert again.version == load_bundle(bundle).manifest.version


def test_graphs_name_no_path_of_the_machine_that_made_them(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        assert b"/" + str(Path.cwd()).encode().lstrip(b"/") not in path.read_bytes()


def test_a_failed_verification_leaves_no_bundle(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(vqvae: VQVAE, shapes: object) -> dict[str, onnx.ModelProto]:
        """A decoder whose codebook is off by one entry."""
        with torch.no_grad():
            models = autoencoder_graphs(vqvae, shapes)  # type: ignore[arg-type]
            vqvae.quantizer.codebook.copy_(vqvae.quantizer.codebook.roll(1, 0))
            broken_models = autoencoder_graphs(vqvae, shapes)  # type: ignore[arg-type]
            vqvae.quantizer.codebook.copy_(vqvae.quantizer.codebook.roll(-1, 0))
        return {**models, "decoder": broken_models["decoder"]}

    monkeypatch.setattr("export.build.autoencoder_graphs", broken)
    assert main([str(finished_run), str(tmp_path / "bundle")]) == 1
    assert "decoded pixels differ" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sampler_that_forgets_known_codes_is_found(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code was known in any case that the export compared."""

    def forgetful(run: Sessions, graph: GraphName, uniforms: Any, labels: Any, controls: Any, known: Any) -> Any:
        return sample_rows(run, graph, uniforms, labels, controls)

    monkeypatch.setattr("export.verify_prior.sample_rows", forgetful)
    with pytest.raises(VerificationError, match="draws other codes"):
        build_bundle(finished_run, tmp_path / "bundle")


def test_samplers_of_many_codes_are_compared_on_fewer_grids(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen of them, with the logits of the whole grid for each position: 7 GB and hours for 65,536 codes."""
    shapes = list[tuple[int, ...]]()

    def noted(logits_of: Any, uniforms: Any, *arguments: Any, **more: Any) -> Any:
        def noting(codes: Any, labels: Any) -> Any:
            shapes.append(codes.shape)
            return logits_of(codes, labels)

        return sample(noting, uniforms, *arguments, **more)

    monkeypatch.setattr("export.verify_prior.sample", noted)
    monkeypatch.setattr("export.verify_prior.grids_a_batch", lambda codes, codebook_size: 3)
    build_bundle(finished_run, tmp_path / "bundle")
    assert {batch for batch, _, _ in shapes} == {3}
    assert {rows for _, rows, _ in shapes} == {*range(1, 8)}, "a position needs no row below its own"


def test_distances_of_another_codebook_are_found() -> None:
    """Nothing compared this graph before it was written."""
    vqvae = model_for(1, 4, fsq=False)
    shapes = shapes_of((1, 28, 28), 4, 3, any_size=False)
    models = autoencoder_graphs(vqvae, shapes) | {"distances": distances_graph(vqvae)}
    pictures, table = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8), np.ones(2, np.int32)
    verify(vqvae, None, models, table, pictures, np.zeros(3, np.int64))
    vqvae.quantizer.codebook.mul_(1.001)
    models["distances"] = distances_graph(vqvae)
    vqvae.quantizer.codebook.div_(1.001)
    with pytest.raises(VerificationError, match="distances differ by"):
        verify(vqvae, None, models, table, pictures, np.zeros(3, np.int64))


def test_a_near_tie_is_one_of_distance_and_bits_together() -> None:
    """With a rate term any other code passed, however far its vector was."""
    vqvae = model_for(1, 4, fsq=False)
    quantizer = vqvae.quantizer
    assert isinstance(quantizer, EMAQuantizer)
    offsets = quantizer.offsets()
    assert offsets is not None
    cheap, dear = int(offsets.argmin()), int(offsets.argmax())
    # on the line between two vectors, where the dearer one is nearer by as much as it costs more
    line = quantizer.codebook[dear] - quantizer.codebook[cheap]
    share = 0.5 * (1 + (offsets[dear] - offsets[cheap]) / line.square().sum())
    latents = (quantizer.codebook[cheap] + share * line).numpy()[None]
    _require_near_ties(vqvae, latents, np.array([cheap]), np.array([dear]))
    halfway = (quantizer.codebook[cheap] + 0.5 * line).numpy()[None]
    with pytest.raises(VerificationError, match="this is no rounding"):
        _require_near_ties(vqvae, halfway, np.array([dear]), np.array([cheap]))


def test_a_failed_export_keeps_the_older_bundle(
    finished_run: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_bundle(bundle).manifest.version

    def refuse(*_: object) -> None:
        raise VerificationError("no")

    monkeypatch.setattr("export.build.verify", refuse)
    with pytest.raises(VerificationError):
        build_bundle(finished_run, bundle)
    assert load_bundle(bundle).manifest.version == before


@pytest.mark.usefixtures("unverified")
def test_an_export_interrupted_at_its_last_step_keeps_the_older_bundle(
    finished_run: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one was in a temporary folder by then, and was removed with it."""
    before, rename = load_bundle(bundle).manifest.version, Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target == bundle and path.name == "bundle":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(finished_run, bundle)
    assert load_bundle(bundle).manifest.version == before


def test_distances_of_latents_in_a_small_ball_far_from_zero_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their error is that of float32 at |z|^2, which is much larger than any of the distances."""
    vqvae = model_for(1, 4, fsq=False)
    vqvae.quantizer.codebook.mul_(1e-3).add_(10)
    shapes = shapes_of((1, 28, 28), 4, 3, any_size=False)
    models = autoencoder_graphs(vqvae, shapes) | {"distances": distances_graph(vqvae)}
    latents = (10 + 1e-3 * np.random.default_rng(0).normal(size=(3, 7, 7, 3))).astype(np.float32)
    run = Sessions.run
    monkeypatch.setattr(Sessions, "run", lambda s, graph, **x: [latents] if graph == "encoder" else run(s, graph, **x))
    _compare_distances(vqvae, Sessions.of(models), np.zeros((3, 28, 28, 1), np.uint8))


@pytest.mark.usefixtures("unverified")
def test_the_pictures_of_a_run_may_lie_elsewhere_now(
    finished_run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    moved, config["data"]["source"] = config["data"]["source"], str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert main([str(run), str(tmp_path / "bundle")]) == 1
    assert "gone" in capsys.readouterr().err
    assert main([str(run), str(tmp_path / "bundle"), "--data", moved]) == 0
    assert load_bundle(tmp_path / "bundle").manifest.version == load_bundle(bundle).manifest.version
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((50, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"other\.npz holds other pictures .*, or say with --data where they are"):
        build_bundle(run, tmp_path / "bundle", str(other))


def test_a_file_in_the_path_of_the_bundle_is_named(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="a file is in its path"):
        build_bundle(finished_run, tmp_path / "file" / "x")


def test_a_folder_that_is_no_bundle_is_not_replaced(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ExportError, match="is not a bundle"):
        build_bundle(finished_run, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format_version is 2, this service reads 1"),
        ("name", "Bad Name", "name: String should match"),
        ("version", "0" * 64, "the graphs hash to"),
        ("code_histogram", [1, 2], "code_histogram has 2 entries"),
        ("colour", "red", "colour: Extra inputs are not permitted"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    bundle: Path, tmp_path: Path, field: str, value: object, message: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_a_changed_or_missing_graph_is_refused(bundle: Path, tmp_path: Path) -> None:
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    decoder = tmp_path / "decoder.onnx"
    decoder.write_bytes(decoder.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"graph decoder: .* has sha256"):
        load_bundle(tmp_path)
    decoder.unlink()
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="python -m export"):
        load_bundle(tmp_path / "nowhere")


def model_for(channels: int, downsampling: int, fsq: bool) -> VQVAE:
    torch.manual_seed(0)
    options = {"channels": 32, "residual_blocks": 1, "downsampling": downsampling}
    quantizer = (
        FiniteScalarQuantizer((4, 4, 3), context_rate_weight=0.1) if fsq else EMAQuantizer(24, 3, rate_weight=0.1)
    )
    if isinstance(quantizer, EMAQuantizer):
        quantizer.codebook.normal_(0, 0.1)
        quantizer.cluster_size.uniform_(0, 10)
        quantizer.mean_error.fill_(0.01)
    return VQVAE(Encoder(channels, 3, **options), quantizer, Decoder(channels, 3, **options)).eval()


@pytest.mark.parametrize(("channels", "downsampling", "fsq"), [(1, 4, False), (3, 8, False), (3, 4, True)])
def test_any_size_graphs_compute_what_the_modules_compute(channels: int, downsampling: int, fsq: bool) -> None:
    vqvae = model_for(channels, downsampling, fsq)
    models = autoencoder_graphs(vqvae, shapes_of((channels, 64, 64), downsampling, 3, any_size=True))
    assert all(uncovered(model) == [] for model in models.values())
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 72, channels), dtype=np.uint8)
    codes = Sessions.of(models).run("encoder_quantizer", images=pictures)[0]
    assert np.array_equal(codes, vqvae.encode(to_torch(pictures)).numpy())
    parity = verify(vqvae, None, models, np.array([2, 1], np.int32), pictures, np.zeros(3, np.int64))
    assert parity.codes_compared == codes.size
