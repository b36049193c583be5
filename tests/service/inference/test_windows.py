"""Windows give what the whole gives, for networks as deep as the ones that this project trains."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from starlette.testclient import TestClient

from service.inference.windows import CORE, MARGIN, WHOLE, run_in_parts, run_in_windows, windows
from tests.conftest import Tiny
from tests.service.bad_inputs import npy
from tests.tiny_bundle import oracle_codes, oracle_pixels
from training.models.networks import Decoder, Encoder


@given(st.integers(1, 300), st.integers(1, 300))
def test_cores_cover_the_grid_once_and_margins_stay_inside(height: int, width: int) -> None:
    covered = np.zeros((height, width), int)
    for window in windows((height, width)):
        covered[window.kept] += 1
        for seen, kept, end in zip(window.seen, window.kept, (height, width), strict=True):
            assert 0 <= seen.start <= kept.start < kept.stop <= seen.stop <= end
            assert seen.start == 0 or kept.start - seen.start == MARGIN
            assert seen.stop == end or seen.stop - kept.stop == MARGIN
            assert seen.stop - seen.start <= WHOLE
    assert (covered == 1).all()


@pytest.mark.parametrize("downsampling", [4, 8])
def test_windows_give_what_the_whole_gives(downsampling: int) -> None:
    """In float64, where the order of additions moves results by 1e-15; too small a margin moves them far more."""
    torch.manual_seed(0)
    encoder = Encoder(3, 4, channels=16, residual_blocks=2, downsampling=downsampling).double()
    decoder = Decoder(3, 4, channels=16, residual_blocks=2, downsampling=downsampling).double()

    def run(network: torch.nn.Module, batch: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            result: NDArray[Any] = network(torch.from_numpy(batch).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
            return result

    shapes: list[int] = []

    def encode(batch: NDArray[Any]) -> NDArray[Any]:
        shapes.append(max(batch.shape[1:3]) // downsampling)
        return run(encoder, batch)

    pixels = np.random.default_rng(1).random((1, 90 * downsampling, 150 * downsampling, 3))
    latents = run_in_windows(encode, pixels, scale_in=downsampling, scale_out=1)
    assert len(shapes) == 2 * 3 and max(shapes) <= WHOLE
    np.testing.assert_allclose(latents, run(encoder, pixels), atol=1e-12)
    decoded = run_in_windows(lambda batch: run(decoder, batch), latents, scale_in=1, scale_out=downsampling)
    np.testing.assert_allclose(decoded, run(decoder, latents), atol=1e-12)


def test_small_pictures_run_whole() -> None:
    calls: list[tuple[int, ...]] = []

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        calls.append(batch.shape)
        return batch

    for size in (1, CORE, WHOLE):
        run_in_windows(run, np.zeros((2, size, size)), scale_in=1, scale_out=1)
    assert calls == [(2, size, size) for size in (1, CORE, WHOLE)]


@pytest.mark.parametrize("kept", [1, 0, 3])
def test_a_run_that_gives_other_than_it_was_given_is_no_result(kept: int) -> None:
    """One row stood for all pictures of a part, and the answer was 200."""

    def short(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.resize(pixels, (kept, *pixels.shape[1:]))

    said = f"a run of 2 pictures gave {kept}"
    with pytest.raises(ValueError, match=said):
        run_in_parts(short, np.arange(4).reshape(4, 1), 2)
    with pytest.raises(ValueError, match=said):
        run_in_windows(short, np.zeros((2, WHOLE + 1, 4)), scale_in=1, scale_out=1)


def test_a_large_picture_goes_through_the_service_in_windows(client: TestClient, tiny: Tiny) -> None:
    """The engine calls the graphs with windows only: the answer is the oracle's for the whole picture."""
    pixels = np.random.default_rng(2).integers(0, 256, (1, 400, 520, 3), np.uint8)
    headers = {"content-type": "application/x-npy", "accept": "application/x-npy"}
    encoded = client.post("/encode?model=tiny_colour", content=npy(pixels), headers=headers)
    codes = np.load(io.BytesIO(encoded.content))
    assert np.array_equal(codes, oracle_codes(pixels, tiny.colour_weights))
    decoded = client.post("/decode?model=tiny_colour", content=encoded.content, headers=headers)
    assert np.array_equal(np.load(io.BytesIO(decoded.content)), oracle_pixels(codes, tiny.colour_weights, 3))
