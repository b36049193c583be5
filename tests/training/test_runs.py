"""Every key of a configuration reaches the part of the model that it is about."""

from __future__ import annotations

from typing import Any, cast

import pytest
from torch import nn

from training.autoencoders import VAE, VQVAE
from training.config import AutoencoderConfig, ConfigError, PriorConfig, QuantizerConfig
from training.quantizers import EMAQuantizer, FiniteScalarQuantizer, GradientQuantizer
from training.runs import build_autoencoder, build_prior, build_quantizer

PICTURE = (3, 16, 24)


@pytest.mark.parametrize(("kind", "made"), [("ema", EMAQuantizer), ("gradient", GradientQuantizer)])
def test_a_quantizer_is_what_its_section_says(kind: Any, made: type[nn.Module]) -> None:
    values = {
        "codebook_size": 7,
        "commitment_cost": 0.5,
        "rate_weight": 0.75,
        "usage_decay": 0.875,
        "start_step": 3,
        "restart_every": 11,
        "restart_below": 0.125,
    }
    quantizer = build_quantizer(QuantizerConfig(kind=kind, **values), 5)
    assert type(quantizer) is made
    assert {name: getattr(quantizer, name) for name in values} == values
    assert quantizer.codebook.shape == (7, 5)


def test_fsq_has_the_levels_of_its_section_and_as_many_dimensions() -> None:
    section = QuantizerConfig(kind="fsq", levels=(5, 3))
    model = build_autoencoder(AutoencoderConfig(dimension=64, quantizer=section), PICTURE, 0)
    assert isinstance(model, VQVAE) and isinstance(model.quantizer, FiniteScalarQuantizer)
    assert model.quantizer.levels.tolist() == [5, 3]
    assert model.encoder.project.out_channels == 2 == model.decoder.mix.in_channels


@pytest.mark.parametrize(("decoder_channels", "wide"), [(None, 16), (40, 40)])
def test_an_autoencoder_is_what_its_section_says(decoder_channels: int | None, wide: int) -> None:
    config = AutoencoderConfig(
        channels=16,
        decoder_channels=decoder_channels,
        residual_blocks=3,
        downsampling=8,
        dimension=9,
        data_variance=0.3,
    )
    model = build_autoencoder(config, PICTURE, 0)
    assert isinstance(model, VQVAE) and model.data_variance == 0.3
    encoder, decoder = model.encoder, model.decoder
    assert (encoder.mix.out_channels, decoder.mix.out_channels) == (16, wide)
    assert (len(encoder.blocks), len(decoder.blocks)) == (3, 3)
    assert (len(encoder.down), len(decoder.up)) == (3, 3)
    assert encoder.project.out_channels == 9 == decoder.mix.in_channels
    assert cast(nn.Conv2d, encoder.down[0]).in_channels == 3


@pytest.mark.parametrize(("system", "labels"), [("vae", 0), ("cvae", 4)])
def test_a_vae_has_the_latents_of_its_section_and_labels_where_it_is_conditional(system: Any, labels: int) -> None:
    model = build_autoencoder(AutoencoderConfig(system=system, channels=8, latent_dimension=6), PICTURE, 4)
    assert isinstance(model, VAE)
    assert (model.latent_dimension, model.label_count) == (6, labels)
    if labels:
        with pytest.raises(ConfigError, match="the data has no labels"):
            build_autoencoder(AutoencoderConfig(system=system), PICTURE, 0)


def test_a_prior_is_what_its_section_says() -> None:
    config = PriorConfig(channels=8, vertical_layers=4, horizontal_layers=2, head_channels=12)
    prior = build_prior(config, codebook_size=7, label_count=3)
    assert (prior.codebook_size, prior.label_count, prior.channels) == (7, 3, 8)
    assert (len(prior.vertical), len(prior.horizontal)) == (4, 2)
    assert prior.embedding.shape == (7, 8)
    assert 12 in prior.hidden.weight.shape and 12 in prior.head.weight.shape
