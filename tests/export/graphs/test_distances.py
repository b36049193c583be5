"""The optional distances graph of a real run against the definition, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from export.cuda_coverage import uncovered
from export.graphs.autoencoder_graphs import distances_graph
from training.models.autoencoders import VQVAE
from training.runs import load_run


def test_distances_are_squared_distances_to_the_codebook(finished_run: Path) -> None:
    vqvae = load_run(finished_run).autoencoder
    assert isinstance(vqvae, VQVAE)
    model = distances_graph(vqvae)
    assert not list(uncovered(model))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    codebook = vqvae.quantizer.codebook.detach().numpy().astype(np.float64)
    random = np.random.default_rng(0)
    for shape in ((2, 7, 7), (5, 1, 1)):
        latents = random.normal(size=(*shape, codebook.shape[1])).astype(np.float32)
        (found,) = session.run(None, {"latents": latents})
        expected = ((latents[..., None, :] - codebook) ** 2).sum(-1)
        # |z|^2 + |e|^2 - 2 z.e cancels: the error is that of float32 at the size of the largest term.
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.max()))
