"""The lecture's formulas against torch.distributions and finite arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from service.inference.windows import MARGIN
from training.config import AutoencoderConfig
from training.models.autoencoders import (
    VAE,
    VQVAE,
    Autoencoder,
    gaussian_kl,
    gaussian_log_likelihood,
    reparameterise,
)
from training.models.networks import Decoder, Encoder
from training.models.quantizers import EMAQuantizer


def networks(channels: int = 1, downsampling: int = 4) -> tuple[Encoder, Decoder]:
    options = {"channels": 32, "residual_blocks": 1, "downsampling": downsampling}
    return Encoder(channels, 4, **options), Decoder(channels, 4, **options)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_no_code_sees_beyond_the_margin_of_a_window(downsampling: int) -> None:
    """By gradients, with as many residual blocks as a configuration may have."""
    most = next(rule.le for rule in AutoencoderConfig.model_fields["residual_blocks"].metadata if hasattr(rule, "le"))
    options = {"channels": 32, "residual_blocks": most, "downsampling": downsampling}
    side, middle = 31, 15  # codes; the one whose surroundings are looked at
    own = slice(middle * downsampling, (middle + 1) * downsampling)  # its pixels
    torch.manual_seed(0)
    pixels = torch.rand(1, 1, side * downsampling, side * downsampling, dtype=torch.float64, requires_grad=True)
    Encoder(1, 4, **options).double()(pixels)[..., middle, middle].abs().sum().backward()
    latents = torch.rand(1, 4, side, side, dtype=torch.float64, requires_grad=True)
    Decoder(1, 4, **options).double()(latents)[..., own, own].abs().sum().backward()
    for seen, scale in ((pixels.grad, downsampling), (latents.grad, 1)):
        assert seen is not None
        rows = seen.abs().sum((0, 1, 3)).nonzero().flatten() // scale
        assert middle - MARGIN <= rows.min() and rows.max() <= middle + MARGIN


def test_kl_is_the_closed_form() -> None:
    mean, log_variance = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))
    expected = kl_divergence(
        Independent(Normal(mean, torch.exp(log_variance / 2)), 1), Independent(Normal(torch.zeros(7, 6), 1.0), 1)
    )
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)


def test_log_likelihood_is_the_gaussians() -> None:
    x, mean = images(3, 1, 4, 4), images(3, 1, 4, 4).flip(0)
    log_variance = torch.tensor(-1.3)
    expected = Independent(Normal(mean, torch.exp(log_variance / 2)), 3).log_prob(x)
    torch.testing.assert_close(gaussian_log_likelihood(x, mean, log_variance), expected)


def test_reparameterised_samples_have_the_posteriors_moments() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.full((20000, 1), 2.0), torch.full((20000, 1), -1.0)
    z = reparameterise(mean, log_variance)
    # standard errors of 20,000 samples: 0.004 for the mean, 0.01 for the relative variance; five of them
    assert z.mean().item() == pytest.approx(2.0, abs=0.022)
    assert z.var().item() == pytest.approx(0.3679, rel=0.05)


def test_the_vaes_loss_is_the_negative_elbo_a_pixel() -> None:
    torch.manual_seed(0)
    vae = VAE(*networks(), grid=(4, 7, 7), latent_dimension=3)
    x = images(5, 1, 28, 28)
    with torch.random.fork_rng():
        output = vae(x)
    mean, log_variance = vae.posterior(x)
    reconstruction = vae.decode(reparameterise(mean, log_variance))  # of the same noise
    elbo = gaussian_log_likelihood(x, reconstruction, vae.log_variance) - gaussian_kl(mean, log_variance)
    torch.testing.assert_close(output.metrics["elbo"], elbo.mean().detach())
    torch.testing.assert_close(output.loss * 784, -output.metrics["elbo"])


def test_a_posterior_of_extreme_features_stays_finite() -> None:
    """Without the clamp exp(log_variance) of one picture far from all others ends a training."""
    vae = VAE(*networks(), grid=(4, 7, 7), latent_dimension=3)
    with torch.no_grad():
        vae.to_posterior.weight.zero_()
        vae.to_posterior.bias.copy_(torch.tensor([5.0, -300.0, 0.5, -1e4, 1e4, -2.5]))  # means, log variances
    mean, log_variance = vae.posterior(images(1, 1, 28, 28))
    assert mean.tolist() == [[5.0, -300.0, 0.5]]
    assert log_variance.tolist() == [[-20.0, 10.0, -2.5]]
    assert vae(images(1, 1, 28, 28)).loss.isfinite()


def test_a_cvae_needs_its_label_and_uses_it() -> None:
    torch.manual_seed(0)
    cvae = VAE(*networks(), grid=(4, 7, 7), latent_dimension=3, label_count=10)
    with pytest.raises(ValueError, match="needs labels"):
        cvae(images(2, 1, 28, 28))
    z = torch.zeros(2, 3)
    one, two = cvae.decode(z, torch.tensor([1, 2]))
    assert not torch.equal(one, two)


def test_vqvae_loss_is_reconstruction_plus_commitment() -> None:
    torch.manual_seed(0)
    encoder, decoder = networks()
    vqvae = VQVAE(encoder, EMAQuantizer(16, 4, start_step=0), decoder, data_variance=0.1)
    x = images(4, 1, 28, 28)
    output = vqvae(x)
    torch.testing.assert_close(output.loss.detach(), output.metrics["mse"] / 0.1 + 0.25 * output.metrics["commitment"])
    assert vqvae.encode(x).shape == (4, 7, 7)
    decoded = vqvae.decode(vqvae.encode(x))
    assert decoded.shape == x.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@pytest.mark.parametrize(("downsampling", "side"), [(2, 6), (4, 20), (8, 40)])
def test_networks_take_any_multiple_of_the_downsampling(downsampling: int, side: int) -> None:
    encoder, decoder = networks(3, downsampling)
    x = images(2, 3, side, 2 * side)
    z = encoder(x)
    assert z.shape == (2, 4, side // downsampling, 2 * side // downsampling)
    assert decoder(z).shape == x.shape
    assert Autoencoder(encoder, decoder)(x).loss.ndim == 0


def test_an_unknown_downsampling_is_refused() -> None:
    with pytest.raises(ValueError, match="downsampling is 3"):
        Encoder(1, 4, downsampling=3)


def test_one_picture_never_depends_on_its_batch() -> None:
    """No layer normalises over the batch: the same picture gives the same latents among strangers."""
    encoder, _ = networks()
    x = images(3, 1, 28, 28)
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))
