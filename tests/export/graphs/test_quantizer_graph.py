"""The quantizer's graph on latents whose distances are exact, so that it is known which of them are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.graphs.autoencoder_graphs import Shapes, autoencoder_graphs, shapes_of
from export.sessions import Sessions
from training.models.autoencoders import VQVAE
from training.models.networks import Decoder, Encoder
from training.models.quantizers import EMAQuantizer
from training.models.scalar_quantizer import FiniteScalarQuantizer

LATENTS = [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [4.0, 0.0], [-1.0, 0.0]]


def quantize(codebook: list[list[float]], sizes: list[float], rate_weight: float) -> tuple[list[int], list[int]]:
    """Codes of LATENTS by the graph and by the module."""
    quantizer = EMAQuantizer(len(codebook), 2, rate_weight=rate_weight)
    quantizer.codebook.copy_(torch.tensor(codebook))
    quantizer.cluster_size.copy_(torch.tensor(sizes))
    quantizer.mean_error.fill_(1.0)
    vqvae = VQVAE(Encoder(1, 2, channels=4, residual_blocks=0), quantizer, Decoder(1, 2, channels=4)).eval()
    models = autoencoder_graphs(vqvae, shapes_of((1, 4, 20), 4, 2, any_size=False))
    latents = np.array(LATENTS, np.float32)[None, None]  # (B,h,w,D)
    (codes,) = Sessions.of(models).run("quantizer", latents=latents)
    return codes.flatten().tolist(), vqvae.quantizer.assign(torch.from_numpy(latents).movedim(-1, 1)).flatten().tolist()


def test_a_tie_goes_to_the_lowest_index() -> None:
    """Codes 1 and 3 are one vector, and code 2 is as far from (0,0) and (1,1)."""
    found, expected = quantize([[3.0, 0], [1, 0], [0, 1], [1, 0]], [1.0] * 4, rate_weight=0.0)
    assert found == expected == [1, 1, 2, 0, 2]


@pytest.mark.parametrize(
    ("rate_weight", "codes"), [(1.0, [0, 1, 0, 1, 0]), (3.0, [1, 1, 1, 1, 0]), (5.0, [1, 1, 1, 1, 1])]
)
def test_bits_weigh_as_much_as_the_distances_that_they_are_added_to(rate_weight: float, codes: list[int]) -> None:
    """Code 0 has two bits more than code 1. It is as far from (1,1), nearer to (0,0) and (0,1) by 4, to (-1,0) by 8."""
    found, expected = quantize([[0.0, 0], [2, 0]], [1.0, 4.0], rate_weight)
    assert found == expected == codes


def test_latents_of_fsq_are_bounded_in_the_graphs_as_in_the_module() -> None:
    """In small latents nothing is seen of it: here they are several units large."""
    torch.manual_seed(0)
    options = {"channels": 8, "residual_blocks": 0}
    vqvae = VQVAE(Encoder(1, 2, **options), FiniteScalarQuantizer((5, 3)), Decoder(1, 2, **options)).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 20, 1), dtype=np.uint8)
    images = torch.from_numpy(pictures).movedim(-1, 1) / 255
    with torch.no_grad():
        vqvae.encoder.project.weight.mul_(40)
        latents = vqvae.encoder(images)
    sessions = Sessions.of(autoencoder_graphs(vqvae, shapes_of((1, 8, 20), 4, 2, any_size=False)))
    (found,) = sessions.run("encoder", images=pictures)
    np.testing.assert_allclose(found, latents.tanh().movedim(1, -1).numpy(), atol=1e-5)  # float32, in another order
    assert latents.abs().max() > 2
    (codes,) = sessions.run("encoder_quantizer", images=pictures)
    assert np.array_equal(codes, vqvae.encode(images).numpy())


def test_sides_have_names_where_any_size_fits_and_numbers_elsewhere() -> None:
    named = shapes_of((3, 16, 24), 4, 5, any_size=True)
    assert named == Shapes(("B", "H", "W", 3), ("B", "h", "w"), ("B", "h", "w", 5))
    assert shapes_of((3, 16, 24), 4, 5, any_size=False) == Shapes(("B", 16, 24, 3), ("B", 4, 6), ("B", 4, 6, 5))
