"""What the systems of a comparison may cost: one device, and nearly the same number of parameters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.training.conftest import ROOT, tiny_config
from training import compare as comparison
from training.compare import count_parameters, on_one_device, variants
from training.config import AutoencoderConfig, load_config
from training.data import load_data
from training.models.building import build_autoencoder, build_prior
from training.models.prior import PixelCNN


@pytest.mark.parametrize("devices", ["auto", "1"])
def test_a_comparison_takes_one_device_of_several(devices: str) -> None:
    assert on_one_device(tiny_config(f"trainer.devices={devices}")).trainer.devices == 1


def test_no_other_width_is_nearer_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the widths on both sides; a VAE of this budget is as narrow as one may be."""
    config = tiny_config(
        "autoencoder.decoder_channels=24", "autoencoder.dimension=40", "autoencoder.channels=88", "prior.channels=24"
    )
    data, priors = load_data(config.data), []

    def told(*given: Any) -> PixelCNN:
        priors.append(given)
        return build_prior(*given)

    monkeypatch.setattr(comparison, "build_prior", told)
    found = variants(config, data)
    assert priors == [(config.prior, 16, 10)]
    assert all(variant.name == name for name, variant in found.items())
    kinds = ("gradient", "ema", "fsq")
    assert tuple(found[f"vqvae-{kind}"].autoencoder.quantizer.kind for kind in kinds) == kinds

    def size(variant: AutoencoderConfig) -> int:
        with torch.device("meta"):
            return count_parameters(build_autoencoder(variant, data.picture, 10))

    def is_nearest(name: str, budget: int, key: str, step: int) -> bool:
        section = found[name].autoencoder
        width: int = getattr(section, key)
        others = [other for other in (width - step, width + step) if other > 0]
        gaps = [abs(size(section.model_copy(update={key: other})) - budget) for other in (width, *others)]
        return gaps[0] == min(gaps)

    whole = size(found["vqvae-ema"].autoencoder)
    prior = count_parameters(build_prior(*priors[0]))
    assert size(found["vqvae-gradient"].autoencoder) == whole  # its codebook is a parameter, and counts once
    for name in ("ae", "vae", "cvae"):
        assert is_nearest(name, whole, "dimension", 4)
        assert found[name].autoencoder.decoder_channels == 24
    for name in ("vae-large", "cvae-large"):
        assert is_nearest(name, whole + prior, "channels", 8)
        assert found[name].autoencoder.decoder_channels is None  # it grows with the encoder
        assert found[name].trainer.autoencoder.steps == 50 + 30


def test_what_cannot_have_the_budget_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Of larger pictures the latent vectors of a VAE alone have more, and the page compared all the same."""
    config = load_config(ROOT / "training/configs/compare.yaml")
    small, large = (SimpleNamespace(picture=(1, side, side), label_names=["0", "1"]) for side in (28, 256))
    variants(config, cast(Any, small))
    expected = "vae of these pictures has"
    assert not any(expected in message for message in caplog.messages)
    variants(config, cast(Any, large))
    assert any(expected in message and message.endswith("not compared at one budget") for message in caplog.messages)
