"""Every key of a configuration reaches the part of the model that it is about; damaged files are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from torch import nn

from tests.training.conftest import numbered
from training.config import AutoencoderConfig, ConfigError, PriorConfig, QuantizerConfig
from training.data import DataSet
from training.models.autoencoders import VAE, VQVAE
from training.models.building import build_autoencoder, build_prior, build_quantizer
from training.models.quantizers import EMAQuantizer, GradientQuantizer
from training.models.scalar_quantizer import FiniteScalarQuantizer
from training.runs import begin_progress, load_run, load_weights, read_json, save_weights, write_json, write_seconds

PICTURE = (3, 16, 24)
DATA = DataSet(numbered(3), numbered(1), numbered(1), (), (), PICTURE, "d")


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "it is no JSON object"),
        ("[" * 100_000, ""),
        ('{"seconds": {}}', "digest: Field required"),
        ('{"digest": 1, "seconds": {}}', "digest: Input should be a valid string"),
        ('{"digest": "d", "picture": null, "seconds": {}}', "picture: Input should be a valid list"),
        ('{"digest": "d", "seconds": null}', "seconds: Input should be a valid dictionary"),
        ('{"digest": "d", "seconds": {"autoencoder": null}}', "seconds.autoencoder: Input should be a valid number"),
    ],
)
def test_a_damaged_progress_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "progress.json").write_text(text)
    for use in (lambda: begin_progress(tmp_path, DATA), lambda: write_seconds(tmp_path, "prior", 1.0)):
        with pytest.raises(ConfigError, match=rf"progress\.json is damaged: .*{said}"):
            use()
    assert (tmp_path / "progress.json").read_text() == text


def test_seconds_of_a_stage_are_added_to_those_of_the_others(tmp_path: Path) -> None:
    begin_progress(tmp_path, DATA)
    write_seconds(tmp_path, "autoencoder", 2)
    write_seconds(tmp_path, "prior", 1.5)
    seconds = {"autoencoder": 2, "prior": 1.5}
    assert read_json(tmp_path / "progress.json") == {"digest": "d", "picture": [3, 16, 24], "seconds": seconds}


def test_pictures_of_another_shape_are_others_where_it_is_known(tmp_path: Path) -> None:
    turned = replace(DATA, picture=(3, 24, 16))
    begin_progress(tmp_path, DATA)
    with pytest.raises(ConfigError, match="was begun with other pictures"):
        begin_progress(tmp_path, turned)
    write_json(tmp_path / "progress.json", {"digest": "d", "seconds": {}})  # of an earlier version
    begin_progress(tmp_path, turned)
    with pytest.raises(ConfigError, match="was begun with other pictures"):
        begin_progress(tmp_path, replace(turned, digest="e"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, "data: Input should be a valid dictionary"),
        ({"picture": None}, "data.picture: Input should be a valid list"),
        ({"picture": [28, 28]}, "data.picture: List should have at least 3 items"),
        ({"picture": [1, "28", 28]}, "data.picture.1: Input should be a valid integer"),
        ({"picture": [1, 0, 28]}, "data.picture.1: Input should be greater than 0"),
        ({"labels": None}, "data.labels: Input should be a valid list"),
        ({"labels": [1]}, "data.labels.0: Input should be a valid string"),
        ({"digest": None}, "data.digest: Input should be a valid string"),
    ],
    ids=str,
)
def test_damaged_metrics_are_named(tmp_path: Path, damage: dict[str, Any] | None, said: str) -> None:
    data = {"picture": [1, 28, 28], "labels": ["zero"], "digest": "d", "more": None}
    write_json(tmp_path / "config.json", {"name": "tiny"})
    write_json(tmp_path / "metrics.json", {"data": None if damage is None else data | damage})
    with pytest.raises(
        ConfigError, match=rf"metrics\.json is damaged: {said}.*: delete it, and .* --resume` writes it again$"
    ):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "is damaged: .*: bring it back from a copy, or begin anew"),
        (
            {"trainer": None, "autoencoder": {"channels": "many"}},
            "is damaged, or of another release: .* take the release",
        ),
    ],
    ids=["no object", "other values"],
)
def test_a_damaged_config_is_named(tmp_path: Path, config: Any, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"config\.json {said}"):
        load_run(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    """The export ended in an AssertionError or an OverflowError."""
    module = nn.Linear(2, 2)
    nn.init.constant_(module.bias, value)
    save_weights(module, tmp_path / "prior.safetensors")
    with pytest.raises(ConfigError, match=r"prior\.safetensors has weights that are no numbers: delete it"):
        load_weights(nn.Linear(2, 2), tmp_path / "prior.safetensors")
