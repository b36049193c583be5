"""Bundles whose graphs give what they must not, or for which there is no memory, are refused with the graph's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from service.bundle import BundleError
from service.bundle.opset import opset_of
from service.inference import engine
from service.prior import diagonal, sampling
from tests.conftest import DEVICE
from tests.service.bundle_edits import edited, put, raised, serve


def refused(folder: Path, graph: str, said: str) -> None:
    with pytest.raises(BundleError, match=rf"^{re.escape(str(folder))}/{graph}\.onnx: graph {graph} {said}"):
        serve(folder)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return edited(whole, tmp_path / "copy", lambda manifest: None)


@pytest.mark.parametrize("source", [None, "images"])
def test_an_encoder_that_gives_other_codes_is_refused(copy: Path, source: str | None) -> None:
    """It served, said that it was ready, and answered 500. Of a black picture, the second gives codes of the model."""
    raised(copy, "encoder_quantizer", "codes", source)
    refused(copy, "encoder_quantizer", r"gives the code \d{3,}, but codes.codebook_size is 16: export it again")


@pytest.mark.parametrize("source", [None, "uniforms"])
@pytest.mark.parametrize(
    "graph",
    [
        "prior_row",
        "prior_row_unfiltered",
        "prior_row_guided",
        pytest.param("prior_diagonal", marks=pytest.mark.skipif(DEVICE == "cuda", reason="it is for CPUs")),
    ],
)
def test_a_sampler_that_draws_other_codes_is_refused(copy: Path, graph: str, source: str | None) -> None:
    """As above. The second draws them where a uniform is large, as a graph does that knows more codes."""
    raised(copy, graph, "sampled_codes", source)
    refused(copy, graph, r"gives the code 1?\d\d, but codes.codebook_size is 16: export it again")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MemoryError("Unable to allocate 7.45 GiB"), "needs more memory than there is: Unable to allocate 7.45 GiB"),
        (ValueError("array is too big"), "cannot be run: array is too big: export it again"),
        (RuntimeError("two\nlines"), "cannot be run: two lines: export it again"),
        (RuntimeError("std::bad_alloc"), "needs more memory than there is: std::bad_alloc"),
        (
            RuntimeError("bfc_arena.cc: Failed to allocate memory for requested buffer of size 8"),
            "needs more memory than there is: bfc_arena.cc: Failed to allocate memory for requested buffer of size 8",
        ),
        (
            RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
            "needs more memory than there is: CUDA failure 2: out of memory ; GPU=0",
        ),
        (
            RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
            "needs more memory than there is: CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        ),
        (
            RuntimeError("pthread_create failed, error code: 11 error msg: Resource temporarily unavailable"),
            "cannot be run: pthread_create failed, error code: 11 error msg: Resource temporarily unavailable: allow "
            "more threads (pids) or memory",
        ),
        (
            RuntimeError("can't start new thread"),
            "cannot be run: can't start new thread: allow more threads (pids) or memory",
        ),
        (
            RuntimeError("CUDA failure 700: an illegal memory access was encountered"),
            "cannot be run, because the device fails: CUDA failure 700: an illegal memory access was encountered",
        ),
    ],
)
@pytest.mark.parametrize("graph", ["prior_row", "prior_row_guided", "prior_diagonal", "decoder"])
def test_memory_that_is_not_there_is_a_fault_of_the_bundle(
    copy: Path, monkeypatch: pytest.MonkeyPatch, graph: str, fault: Exception, said: str
) -> None:
    """The start ended with numpy's traceback, and a reload with a bare 500. What onnxruntime says of memory, and of a
    broken GPU, was followed by the advice to export the bundle again, which changes nothing."""

    def fails(*_: Any) -> Any:
        raise fault

    made = sampling.open_caches
    if graph == "prior_row":
        monkeypatch.setattr(sampling, "open_caches", fails)
    elif graph == "prior_row_guided":
        monkeypatch.setattr(sampling, "open_caches", lambda *given: fails() if given[3] == (4, 7, 8) else made(*given))
    elif graph == "prior_diagonal":
        monkeypatch.setattr(diagonal, "HostCaches", fails)
    else:
        call = engine.Engine._call
        monkeypatch.setattr(engine.Engine, "_call", lambda *given: fails() if given[2] == "codes" else call(*given))
    refused(copy, graph, re.escape(said) + "$")


def test_memory_that_is_not_there_for_a_picture_is_too(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise MemoryError("Unable to allocate 1. EiB")

    monkeypatch.setattr(engine.Engine, "_known_input", fails)
    with pytest.raises(BundleError, match=rf"^{re.escape(str(copy))}: a graph needs more memory than there is: Unable"):
        serve(copy)


def test_the_operator_set_is_that_of_the_manifest(whole: Path, tmp_path: Path) -> None:
    """No one ever compared them."""
    folder = edited(whole, tmp_path / "edited", put("graphs", "decoder", "opset", value=18))
    with pytest.raises(BundleError, match=r"/edited/decoder\.onnx: graph decoder: opset is 17, the manifest says 18"):
        serve(folder)


@pytest.mark.parametrize(
    ("opsets", "expected"),
    [
        ([("", 17)], 17),
        ([("ai.onnx", 300)], 300),
        ([("ai.onnx.ml", 3), ("", 21)], 21),
        ([("elsewhere", 1)], None),
    ],
)
def test_the_operator_set_is_read_from_the_file(opsets: list[tuple[str, int]], expected: int | None) -> None:
    """Against files that onnx writes, with a graph before it and metadata after it."""
    one = helper.make_tensor_value_info("one", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["one"], ["two"])], "graph", [one], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=8)
    model.metadata_props.add(key="key", value="value")
    assert opset_of(model.SerializeToString()) == expected


@pytest.mark.parametrize("data", [b"", b"\x42", b"\x42\xff", b"\xff\xff", b"no model at all", b"\x43\x44"])
def test_bytes_that_are_no_model_have_no_operator_set(data: bytes) -> None:
    assert opset_of(data) is None
