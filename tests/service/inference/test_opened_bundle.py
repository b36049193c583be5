"""A bundle whose graphs are not what its manifest says is refused when they are opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from starlette.testclient import TestClient

from service.bundle import Bundle, BundleError, load_bundle, load_bundles
from service.inference.sessions import CPU, GraphError, SessionMaker, session_maker
from service.registry import models
from service.settings import Settings
from tests.conftest import DEVICE
from tests.service.bundle_edits import Change, edited, labels, more_codes, put, serve, sign, tensor, together
from tests.service.serving import until
from tests.tiny_bundle import write_tiny_bundle

MakeClient = Callable[..., TestClient]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            tensor("encoder_quantizer", "images", shape=["B", "H", 28, 1]),
            r"graph encoder_quantizer: input images is uint8 .*, the manifest says uint8 \('B', 'H', 28, 1\)",
        ),
        (
            together(
                more_codes,
                tensor("prior", "logits", shape=["B", "h", "w", 20]),
                tensor("prior_pixel", "logits", shape=["B", 20]),
                tensor("distances", "distances", shape=["B", "h", "w", 20]),
            ),
            "cannot be run: .*idx=19",  # by the decoder, which runs first
        ),
        (
            together(
                put("prior", "pixel_cache_shape", value=[1, 2, 8]),
                tensor("prior_pixel", "left", shape=["B", 1, 2, 8]),
                tensor("prior_pixel", "next_left", shape=["B", 1, 2, 8]),
            ),
            "graph prior_pixel: input left is float32",
        ),
    ],
)
def test_a_graph_that_is_not_as_described_is_refused_when_it_is_opened(
    whole: Path, tmp_path: Path, change: Change, said: str
) -> None:
    folder = edited(whole, tmp_path / "edited", change)
    load_bundle(folder)
    with pytest.raises(BundleError, match=said):
        serve(folder)


def test_outputs_of_a_graph_are_compared_too(whole: Path, tmp_path: Path) -> None:
    more = together(
        tensor("prior", "logits", shape=["B", "h", "w", 20]),
        tensor("prior_pixel", "logits", shape=["B", 20]),
        tensor("distances", "distances", shape=["B", "h", "w", 20]),
        more_codes,
    )
    bundle = load_bundle(edited(whole, tmp_path / "edited", more))
    maker = SessionMaker(CPU, 1, bundle=bundle)
    maker.open(bundle.graph_path("decoder"))
    with pytest.raises(BundleError, match=r"graph prior_pixel: output logits is int32 \('B', 16\)"):
        maker.open(bundle.graph_path("prior_pixel"))


@pytest.mark.skipif(DEVICE == "cuda", reason="CUDA reads beyond a table without a word")
def test_a_decoder_of_fewer_codes_is_refused_without_a_prior_too(own_bundle: Path, tmp_path: Path) -> None:
    """It served, and answered 500 to the codes that it does not have."""
    with pytest.raises(BundleError, match=r"cannot be run: .*idx=19"):
        serve(edited(own_bundle, tmp_path / "edited", more_codes))


@pytest.mark.parametrize(
    ("count", "said"), [(4, "does not know label 4"), (5, "does not know label 5"), (2, "knows label 3")]
)
def test_the_number_of_labels_is_what_the_prior_knows(whole: Path, tmp_path: Path, count: int, said: str) -> None:
    """Label 4 of 5 failed in the sampler; with 2, the third label was taken for none."""
    folder = edited(whole, tmp_path / "edited", labels(count))
    load_bundle(folder)
    with pytest.raises(BundleError, match=f"graph prior_context {said}, but prior.label_count is {count}"):
        serve(folder)


def test_labels_of_a_prior_without_any_are_refused(any_size: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not know label 1, but prior.label_count is 1"):
        serve(edited(any_size, tmp_path / "edited", labels(1)))


def test_a_good_bundle_logs_nothing_of_labels_that_it_lacks(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    serve(whole)
    assert "onnxruntime" not in capfd.readouterr().err


def test_weights_in_another_file_are_refused(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could change under the same version. From the working directory onnxruntime would take them."""
    path = own_bundle / "decoder.onnx"
    graph = onnx.load(path)
    onnx.save(graph, path, save_as_external_data=True, location="decoder.bin", size_threshold=0)
    sign(own_bundle, "decoder")
    load_bundle(own_bundle)
    monkeypatch.chdir(own_bundle)
    with pytest.raises(BundleError, match=r"decoder\.onnx keeps weights in another file"):
        serve(own_bundle)
    with pytest.raises(BundleError, match=r"decoder\.onnx keeps weights in another file"):
        session_maker(Settings(device="cpu"), path).open(path)


def test_the_message_names_the_file_that_onnxruntime_refuses(own_bundle: Path) -> None:
    (own_bundle / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(GraphError, match=r"^decoder\.onnx: .*INVALID_PROTOBUF"):
        SessionMaker(CPU, 1).open(own_bundle / "decoder.onnx")
    with pytest.raises(BundleError, match=r"nothing\.onnx cannot be read: No such file"):
        SessionMaker(CPU, 1).open(own_bundle / "nothing.onnx")


def test_a_bundle_that_changes_while_it_is_opened_is_refused(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of the new one served under the version of the old one."""

    def replaced(folders: Any) -> list[Bundle]:
        loaded = load_bundles(folders)
        write_tiny_bundle(own_bundle, "tiny", seed=1)
        return loaded

    monkeypatch.setattr(models, "load_bundles", replaced)
    with pytest.raises(BundleError, match=r"graph encoder_quantizer: .*changed while the bundle was opened"):
        serve(own_bundle)


def test_a_watched_folder_that_changes_while_it_is_opened_is_opened_again(
    make_client: MakeClient, own_bundle: Path
) -> None:
    client = make_client(bundles=(own_bundle,), watch_bundles_s=0.1)
    served = client.app.state.service.models  # type: ignore[attr-defined]
    opened, opens = list[str](), served._open

    def slow(bundle: Bundle) -> Any:
        opened.append(bundle.manifest.version)
        if len(opened) == 1:
            write_tiny_bundle(own_bundle, "tiny", seed=2)
        return opens(bundle)

    served._open = slow
    write_tiny_bundle(own_bundle, "tiny", seed=1)
    until(lambda: len(opened) >= 2)
    newest = load_bundle(own_bundle).manifest.version
    assert opened[0] != newest
    until(lambda: client.get("/models/tiny").json()["version"] == newest)
    assert 'outcome="failed"} 1.0' in client.get("/metrics").text
