"""Codes that weigh distortion against bits: what is minimised, and what it buys."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.picture_codecs import Vqserve
from benchmarks.tiny_prior import FREQUENCY_TABLE, tiny_model
from service.codec.codec_model import CodecModel
from service.codec.prior_coding import frequencies
from service.prior.effort import _mean_errors as mean_errors
from service.prior.effort import choose_codes
from service.prior.likelihood import bits_of
from service.stopping import Stopped, stoppable
from tests.conftest import PICTURES
from tests.tiny_bundle import oracle_codes, tiny_prior, write_tiny_bundle

K = 12


class PixelLatents:
    """The latent of a code is the first pixel of its 4 x 4 patch; the vectors are the multiples of 16."""

    def latents(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return images[:, ::4, ::4].astype(np.float32)

    def distances(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((latents - 16 * np.arange(K, dtype=np.float32)) ** 2).astype(np.float32)


def model() -> CodecModel:
    return replace(tiny_model(), latents=PixelLatents())


def noise(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 200, shape).astype(np.uint8)


def test_no_effort_takes_the_nearest_vectors() -> None:
    pixels = noise((3, 12, 16, 1))
    nearest = PixelLatents().distances(PixelLatents().latents(pixels)).argmin(-1)
    assert np.array_equal(choose_codes(model(), pixels, 0.0, np.full(3, 3)), nearest)


@pytest.mark.parametrize("effort", [0.3, 2.0])
def test_every_code_minimises_distance_plus_weighted_bits(effort: float) -> None:
    """Oracle: the teacher-forced logits of the codes that came out are those that each choice saw."""
    pixels, labels = noise((4, 12, 16, 1)), np.array([0, 1, 2, 3])
    chosen = choose_codes(model(), pixels, effort, labels)
    distances = PixelLatents().distances(PixelLatents().latents(pixels)).astype(np.float64)
    weights = effort * distances.min(-1).mean(axis=(1, 2))
    prior = model().prior
    assert prior is not None
    frequency = frequencies(prior.graphs.logits(chosen, labels), FREQUENCY_TABLE)
    bits = np.log2(frequency.sum(-1, keepdims=True) / frequency)
    assert np.array_equal(chosen, (distances + weights[:, None, None, None] * bits).argmin(-1))


@pytest.mark.parametrize(("graph", "stage"), [("latents", "the encoder"), ("distances", "the mean errors")])
def test_effort_stops_when_nobody_waits(graph: str, stage: str) -> None:
    """The choice itself is `walk`, which tests/service/codec/test_codec.py stops."""
    stop, calls = threading.Event(), []

    class Leaving(PixelLatents):
        def run(self, name: str, given: NDArray[Any]) -> NDArray[np.float32]:
            calls.append(name)
            if name == graph:
                stop.set()
            found: NDArray[np.float32] = getattr(PixelLatents, name)(self, given)
            return found

        def latents(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return self.run("latents", images)

        def distances(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
            return self.run("distances", latents)

    leaving = replace(model(), latents=Leaving())
    with pytest.raises(Stopped):
        stoppable(lambda: choose_codes(leaving, noise((1, 400, 400, 1)), 1.0, np.full(1, 3)), stop)()
    assert calls.count(graph) == 1, stage


@pytest.mark.parametrize("most", [1, 5 * K, 1 << 21])
def test_distances_are_computed_in_parts_of_bounded_size(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the largest picture has a million codes: 2 GiB of distances where K is 512."""
    sizes: list[int] = []

    class Measured(PixelLatents):
        def distances(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
            found = super().distances(latents)
            sizes.append(found.size)
            return found

    pixels, labels = noise((2, 8, 400, 1)), np.array([0, 3])
    expected = choose_codes(model(), pixels, 1.0, labels)
    monkeypatch.setattr("service.prior.effort.MOST_DISTANCES", most)
    chosen = choose_codes(replace(model(), latents=Measured()), pixels, 1.0, labels)
    assert np.array_equal(chosen, expected)
    in_parts = sizes[: -(-100 // max(1, most // (2 * K))) * 2]  # of the mean errors; the choices come after them
    assert max(in_parts) <= max(most, 2 * K) and sum(in_parts) == 2 * 2 * 100 * K


def test_neither_the_batch_nor_the_tiles_matter() -> None:
    pixels, labels = noise((5, 28, 36, 1)), np.array([3, 1, 2, 0, 3])  # 7 x 9 codes: tiles of 3 x 4, and smaller ones
    together = choose_codes(model(), pixels, 1.0, labels)
    for index in range(5):
        alone = choose_codes(model(), pixels[index : index + 1], 1.0, labels[index : index + 1])
        assert np.array_equal(alone[0], together[index])


def test_an_error_that_cancels_to_below_0_is_0() -> None:
    """Its mean is what a bit weighs: below 0, more bits would be better."""

    class Cancelling(PixelLatents):
        def distances(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
            return super().distances(latents) - np.float32(1e-4)

    latents = np.zeros((2, 3, 3, 1), np.float32)
    assert mean_errors(Cancelling(), latents, K).tolist() == [0, 0]


def test_more_effort_costs_fewer_bits_and_more_distance(tmp_path: Path) -> None:
    """On a bundle, through onnxruntime: its distances graph agrees with its quantizer and with numpy."""
    weights = write_tiny_bundle(tmp_path / "b", "b", prior=tiny_prior())
    vqserve = Vqserve(tmp_path / "b")
    pixels = np.stack([np.asarray(Image.open(PICTURES / f"digit_{n}.png"))[..., None] for n in (0, 1, 2, 4, 7)])
    nearest = vqserve.encode(pixels)
    assert np.array_equal(choose_codes(vqserve.model, pixels, 0.0, np.full(5, 3)), nearest)
    assert np.array_equal(nearest, oracle_codes(pixels, weights))
    latents = vqserve.model.latents
    assert latents is not None
    distances = latents.distances(latents.latents(pixels))
    bits, lengths = [], []
    for effort in (0.0, 0.2, 1.0, 4.0):
        codes = vqserve.encode(pixels, effort)
        bits.append(bits_of(vqserve.model, codes, np.full(5, 3)).sum())
        lengths.append(np.take_along_axis(distances, codes[..., None], -1).sum())
    assert bits == sorted(bits, reverse=True) and bits[-1] < 0.95 * bits[0]
    assert lengths == sorted(lengths) and lengths[-1] > lengths[0]
