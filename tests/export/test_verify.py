"""What is no number does not pass: NaN is not above any tolerance, and max() may forget it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from export import device_parity
from export import verify as verification
from export.graphs.autoencoder_graphs import autoencoder_graphs, shapes_of
from export.graphs.onnx_builder import GraphBuilder
from export.sessions import Sessions, VerificationError
from export.verify import _compare_pixels, _require_near_ties, verify
from service.bundle.fields import GraphName, Parity
from tests.export.test_build import model_for
from training.models.autoencoders import VQVAE

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)


@pytest.fixture
def vqvae() -> VQVAE:
    return model_for(1, 4, fsq=False)  # K = 24, D = 3


def graphs_of(vqvae: VQVAE) -> dict[GraphName, onnx.ModelProto]:
    return autoencoder_graphs(vqvae, shapes_of((1, 28, 28), 4, 3, any_size=False))


def verified(vqvae: VQVAE, models: dict[GraphName, onnx.ModelProto]) -> Parity:
    return verify(vqvae, None, models, np.ones(2, np.int32), PICTURES, np.zeros(3, np.int64))


def test_distances_that_are_no_numbers_are_found(vqvae: VQVAE) -> None:
    graph = GraphBuilder("distances")
    latents = graph.input("latents", "float32", ("B", "h", "w", 3))
    product = graph.op("MatMul", latents, graph.constant(np.full((3, 24), np.nan, np.float32)))
    graph.output(product, "distances", "float32", ("B", "h", "w", 24))
    with pytest.raises(VerificationError, match="distances differ by nan"):
        verified(vqvae, graphs_of(vqvae) | {"distances": graph.model()})


def test_latents_that_are_no_numbers_are_found(vqvae: VQVAE) -> None:
    """Both sides choose the first code for them, and agree."""
    with torch.no_grad():
        vqvae.encoder.project.weight.fill_(np.nan)
    with pytest.raises(VerificationError, match="latents that are no numbers"):
        verified(vqvae, graphs_of(vqvae))


def test_codes_of_latents_that_are_no_numbers_are_no_near_ties(vqvae: VQVAE) -> None:
    latents, one, other = np.full((1, 3), np.nan, np.float32), np.array([0]), np.array([1])
    with pytest.raises(VerificationError, match="this is no rounding"):
        _require_near_ties(vqvae, latents, one, other)


def test_two_codes_at_no_distance_at_all_are_a_tie(vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 of 0 is NaN, but no difference."""
    vqvae.quantizer.codebook[1] = vqvae.quantizer.codebook[0]
    monkeypatch.setattr(type(vqvae.quantizer), "offsets", lambda quantizer: None)
    _require_near_ties(vqvae, vqvae.quantizer.codebook[:1].numpy(), np.array([0]), np.array([1]))


def test_pixels_that_are_no_numbers_are_found(vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch decides nothing alone: the NaN is in the first of two."""
    run, decode = Sessions.of(graphs_of(vqvae)), vqvae.decode
    codes: NDArray[np.int64] = np.zeros((2, 7, 7), np.int64)
    codes[0] = 1

    def broken(codes: torch.Tensor) -> Any:
        pixels = decode(codes)
        return pixels * float("nan") if codes.any() else pixels

    monkeypatch.setattr(vqvae, "decode", broken)
    with torch.no_grad(), pytest.raises(VerificationError, match="decoded pixels differ by nan"):
        _compare_pixels(vqvae, run, codes, 1)


def test_what_cannot_be_imported_is_the_same_number() -> None:
    """The GPU check runs without PyTorch."""
    for name in ("LARGEST_PIXEL_DIFFERENCE", "CODES_PER_DIFFERENCE"):
        assert getattr(device_parity, name) == getattr(verification, name)
