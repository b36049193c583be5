"""Height and width are never confused: a run whose pictures, codes and channels all have different sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export.build import build_bundle
from export.reference_sampler import Controls
from export.sessions import Sessions
from export.verify import to_torch
from export.verify_prior import sample_diagonally, sample_rows
from service.bundle import Bundle, load_bundle
from training.config import RunConfig
from training.models.autoencoders import VQVAE
from training.runs import load_run


@pytest.fixture(scope="module")
def bundle(oblong_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "oblong"
    build_bundle(oblong_run, folder)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def opened(bundle: Bundle) -> Sessions:
    return Sessions.of({name: onnx.load(bundle.graph_path(name)) for name in bundle.manifest.graphs})


def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize(("downsampling", "grid"), [(2, (4, 8)), (4, (2, 4)), (8, (1, 2))])
def test_the_grid_is_height_then_width(downsampling: int, grid: tuple[int, int]) -> None:
    config = RunConfig.model_validate({"autoencoder": {"downsampling": downsampling}})
    assert config.grid((3, 8, 16)) == grid


def test_the_manifest_tells_the_sides_apart(bundle: Bundle) -> None:
    picture, codes, prior = bundle.manifest.picture, bundle.manifest.codes, bundle.manifest.prior
    assert (picture.height, picture.width, picture.channels, picture.multiple_of) == (8, 12, 3, 2)
    assert (codes.height, codes.width, codes.codebook_size, codes.dimension) == (4, 6, 10, 7)
    assert prior is not None
    assert prior.cache_shape == (1 + 1, 6, 5)  # the codes and one vertical layer, w, channels
    assert prior.pixel_cache_shape == (3, 2, 5)  # horizontal layers, columns to the left, channels
    assert prior.context_channels == 3 * 2 * 5
    assert prior.label_count == 3


def test_the_graphs_take_pictures_of_that_shape_only(bundle: Bundle) -> None:
    shapes = {
        (graph, tensor.name): tensor.shape
        for graph, spec in bundle.manifest.graphs.items()
        for tensor in (*spec.inputs, *spec.outputs)
    }
    assert shapes["encoder", "images"] == shapes["decoder", "images"] == ("B", 8, 12, 3)
    assert shapes["encoder", "latents"] == shapes["quantizer", "latents"] == ("B", 4, 6, 7)
    assert shapes["encoder_quantizer", "codes"] == shapes["decoder", "codes"] == ("B", 4, 6)
    assert shapes["prior_row", "uniforms"] == ("B", 6)
    assert shapes["prior_row", "caches"] == ("B", 2, 6, 5)
    assert shapes["prior_row_guided", "caches"] == ("B", 4, 6, 5)


def test_pictures_pass_through_the_graphs_as_through_the_modules(oblong_run: Path, opened: Sessions) -> None:
    vqvae = load_run(oblong_run).autoencoder
    assert isinstance(vqvae, VQVAE)
    (codes,), (latents,) = (opened.run(name, images=pictures()) for name in ("encoder_quantizer", "encoder"))
    assert codes.shape == (5, 4, 6)
    assert np.array_equal(codes, vqvae.encode(to_torch(pictures())).numpy())
    assert np.array_equal(codes, opened.run("quantizer", latents=latents)[0])
    (decoded,) = opened.run("decoder", codes=codes)
    assert decoded.shape == (5, 8, 12, 3)
    expected = vqvae.decode(torch.from_numpy(codes)).permute(0, 2, 3, 1).numpy() * 255
    np.testing.assert_allclose(decoded.astype(np.float64), expected, atol=0.501)  # the rounding to levels


def test_rows_and_bands_draw_grids_of_that_shape(opened: Sessions) -> None:
    uniforms = (np.random.default_rng(2).integers(0, 1 << 24, (4, 4, 6)) / (1 << 24)).astype(np.float32)
    labels, off = np.array([0, 1, 2, 3]), Controls.off(4, 10)
    drawn = sample_rows(opened, "prior_row_unfiltered", uniforms, labels, off)
    assert drawn.shape == (4, 4, 6)
    assert np.array_equal(drawn, sample_diagonally(opened, "prior_diagonal", uniforms, labels, off))
    assert opened.run("decoder", codes=drawn)[0].shape == (4, 8, 12, 3)


def test_the_sheets_of_the_run_show_pictures_of_that_shape(oblong_run: Path) -> None:
    """With a gap of 2 around each: 8 samples of each of 3 labels; 5 test pictures, each above what is made of it."""
    for name, rows, columns in (("samples", 3, 8), ("reconstructions", 2, 5)):
        with Image.open(oblong_run / f"{name}.png") as picture:
            assert picture.size == (columns * (12 + 2) + 2, rows * (8 + 2) + 2)
