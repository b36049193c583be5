"""What the manifest takes from the run, and what becomes of the older bundle when the new one is no good."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from export.__main__ import main
from export.build import _require_cuda_kernels, build_bundle, save_graph, tensor_specs
from export.graphs.autoencoder_graphs import autoencoder_graphs
from export.graphs.onnx_builder import DTYPES
from export.sessions import Sessions, VerificationError
from export.target import replace_bundle
from service.bundle import BundleError, load_bundle
from service.bundle.fields import CodesSpec, GraphName, GraphSpec, Parity
from service.bundle.manifest import Manifest
from tests.export.edited_graphs import with_nodes
from training.config import DataConfig
from training.data import load_data
from training.models.exactness import partial_sum_bounds
from training.models.limits import counts
from training.runs import load_run

HISTOGRAM = [5, 0, 3, 12, 1, 7, 2, 90, 4, 6]  # 10 codes
FACTS = {"labels": ["zebra", "ant", "mole"], "licence": "CC-BY-4.0"}


def edited(run: Path, folder: Path, config: dict[str, Any], metrics: dict[str, Any]) -> Path:
    """A copy of the run whose files say something else: sections are merged, values replaced."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    for name, changes in (("config.json", config), ("metrics.json", metrics)):
        values = json.loads((folder / name).read_text())
        for key, value in changes.items():
            values[key] = values[key] | value if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def told_run(oblong_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    told = {"data": FACTS, "code_histogram": HISTOGRAM, "commit": "c0ffee-dirty"}
    return edited(oblong_run, tmp_path_factory.mktemp("told") / "run", {}, told)


@pytest.fixture(scope="module")
def manifest(told_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    written = build_bundle(told_run, folder).manifest
    assert load_bundle(folder).manifest == written
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    return written


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what comes after: nothing is compared."""
    parity = Parity(pictures=1, codes_compared=1, codes_different=0, largest_pixel_difference=0)
    monkeypatch.setattr("export.build.verify", lambda *_: parity)


def test_labels_keep_the_order_of_their_numbers(manifest: Manifest) -> None:
    assert manifest.labels == ("zebra", "ant", "mole")


def test_the_histogram_is_that_of_the_training(manifest: Manifest) -> None:
    assert manifest.code_histogram == tuple(HISTOGRAM)


def test_the_provenance_is_that_of_the_run(manifest: Manifest, told_run: Path, oblong_run: Path) -> None:
    assert manifest.name == "oblong"
    told, provenance = json.loads((told_run / "config.json").read_text()), manifest.provenance
    assert provenance.config == told
    pictures = DataConfig(**told["data"])
    assert provenance.data_digest == load_data(pictures).digest
    assert (provenance.data_licence, provenance.commit) == ("CC-BY-4.0", "c0ffee-dirty")
    assert provenance.libraries == {
        name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")
    }


def test_the_largest_sum_is_the_one_proved(manifest: Manifest, told_run: Path) -> None:
    prior = load_run(told_run).prior
    assert prior is not None and manifest.prior is not None
    assert manifest.prior.largest_partial_sum == max(partial_sum_bounds(prior).values())


def test_a_run_on_whole_pictures_takes_their_size_only(manifest: Manifest) -> None:
    assert not manifest.picture.any_size
    assert manifest.graphs["encoder"].inputs[0].shape == ("B", 8, 12, 3)


def test_training_counts_what_the_manifest_counts(manifest: Manifest, told_run: Path) -> None:
    """Else it would let pass, or refuse, what the export does not."""
    prior, config = manifest.prior, load_run(told_run).config
    assert prior is not None
    assert [count.found for count in counts(config, (3, 8, 12))] == [
        manifest.picture.width,
        manifest.codes.width,
        manifest.codes.codebook_size,
        manifest.codes.dimension,
        math.prod(prior.cache_shape),
        prior.context_channels,
    ]
    assert math.prod(prior.pixel_cache_shape) == prior.context_channels


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE", "INT16"])
def test_a_tensor_of_another_type_is_refused_by_its_name(dtype: str) -> None:
    """Of half precision it was "float3216"."""
    value = helper.make_tensor_value_info("x", getattr(onnx.TensorProto, dtype), ["B", 4])
    name = {"DOUBLE": "float64"}.get(dtype, dtype.lower())
    with pytest.raises(ValidationError, match=f"input_value='{name}'"):
        tensor_specs([value])


def test_a_codebook_has_at_most_65536_codes() -> None:
    """The page said so, and nothing kept it: 81,920 codes delayed the start of a service without a word."""
    codes = {"height": 1, "width": 1, "dimension": 3}
    CodesSpec(**codes, codebook_size=65536)
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        CodesSpec(**codes, codebook_size=65537)


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"labels": ["zebra", " ", "mole"]}, "run cannot become a bundle: Manifest: .*labels.1 is empty"),
        ({"quality": {"mse": -1}}, "run cannot become a bundle: Quality.mse: Input should be greater"),
    ],
)
def test_a_run_that_no_manifest_can_hold_is_told_in_one_line(
    told_run: Path, older: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], said: str
) -> None:
    """It was pydantic's traceback."""
    changes = {"data": facts} if "labels" in facts else facts
    run = edited(told_run, older.parent / "run", {}, changes)
    assert main([str(run), str(older)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    shutil.rmtree(run)
    assert_untouched(older)


@pytest.mark.usefixtures("unverified")
def test_a_run_on_crops_takes_pictures_of_any_size(told_run: Path, tmp_path: Path) -> None:
    data = json.loads((told_run / "config.json").read_text())["data"] | {"crop": 8}
    tiles = load_data(DataConfig(**data))
    facts = {"picture": [3, 8, 8], "digest": tiles.digest}
    run = edited(told_run, tmp_path / "run", {"data": data}, {"data": facts})
    written = build_bundle(run, tmp_path / "bundle").manifest
    assert written.picture.any_size
    assert (written.picture.height, written.picture.width, written.codes.width) == (8, 8, 4)
    opened = Sessions.of({name: onnx.load(tmp_path / "bundle" / f"{name}.onnx") for name in ("encoder", "decoder")})
    assert opened.run("encoder", images=np.zeros((1, 6, 20, 3), np.uint8))[0].shape == (1, 3, 10, 7)
    assert opened.run("decoder", codes=np.zeros((1, 3, 10), np.int64))[0].shape == (1, 6, 20, 3)


def test_a_run_without_prior_and_labels_has_neither(told_run: Path, tmp_path: Path) -> None:
    run = edited(told_run, tmp_path / "run", {"prior": None}, {"data": {"labels": []}})
    written = build_bundle(run, tmp_path / "bundle").manifest
    assert (written.labels, written.prior) == (None, None)
    assert set(written.graphs) == {"encoder", "quantizer", "encoder_quantizer", "decoder"}
    assert written.parity.codes_compared == 5 * 4 * 6  # 5 test pictures


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """What an earlier export left, as far as the next one looks."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"format_version": 1, "graphs": {"one": {"file": "older.onnx"}}}')
    (folder / "older.onnx").touch()
    return folder


def assert_untouched(older: Path) -> None:
    assert sorted(path.name for path in older.iterdir()) == ["manifest.json", "older.onnx"]
    assert [path.name for path in older.parent.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("unverified")
def test_a_bundle_that_does_not_load_does_not_replace_one(
    told_run: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full may cut a file short."""

    def cut(folder: Path, name: GraphName, model: onnx.ModelProto) -> GraphSpec:
        spec = save_graph(folder, name, model)
        (folder / spec.file).write_bytes((folder / spec.file).read_bytes()[:-1])
        return spec

    monkeypatch.setattr("export.build.save_graph", cut)
    with pytest.raises(BundleError, match="the manifest says"):
        build_bundle(told_run, older)
    assert_untouched(older)


@pytest.mark.usefixtures("unverified")
def test_a_graph_with_a_node_that_cuda_lacks_is_refused(
    told_run: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder computes what it should, and beside it a curve that CUDA has no kernel for."""
    nodes = (
        helper.make_node("Cast", ["codes"], ["numbers"], to=DTYPES["float32"]),
        helper.make_node("Asinh", ["numbers"], ["curved"], name="curve"),
    )

    def curved(vqvae: Any, shapes: Any) -> dict[GraphName, onnx.ModelProto]:
        models = autoencoder_graphs(vqvae, shapes)
        _require_cuda_kernels(models)
        return models | {name: with_nodes(models[name], *nodes) for name in ("decoder",)}

    monkeypatch.setattr("export.build.autoencoder_graphs", curved)
    with pytest.raises(VerificationError, match=r"^decoder: curve: Asinh-9 \(T=float\) has no CUDA kernel$"):
        build_bundle(told_run, older)
    assert_untouched(older)


def test_the_older_bundle_is_back_if_the_new_one_cannot_be_moved(older: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_bundle(older, older.parent / "not there", older.parent / "previous")
    assert_untouched(older)


def test_the_older_bundle_makes_room(older: Path) -> None:
    new, previous = older.parent / "new", older.parent / "previous"
    new.mkdir()
    replace_bundle(older, new, previous)
    assert list(older.iterdir()) == []
    assert not new.exists()
    assert (previous / "older.onnx").exists()
