"""AE -> VAE -> CVAE -> VQ-VAE, the systems of the lecture notes that this project implements, on one encoder and
decoder; "the lecture" below means these notes.

In: images float32 (B,C,H,W) in [0,1], labels int64 (B,) where the system is conditional. Out: `AutoencoderOutput`.
The reconstruction loss of every system is derived from the mean squared error over pixels on [0,1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.models.networks import DEFAULTS, Decoder, Encoder
from training.models.quantizers import VectorQuantizer
from training.models.scalar_quantizer import FiniteScalarQuantizer

Quantizer = VectorQuantizer | FiniteScalarQuantizer


@dataclass
class AutoencoderOutput:
    """What `forward` of every system gives a training step; `metrics` are for the log and carry no gradient."""

    loss: Tensor  # (): what training minimises
    reconstruction: Tensor  # (B,C,H,W), not clamped
    metrics: dict[str, Tensor] = field(default_factory=dict)


def mean_squared_error(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean over pixels on [0,1]."""
    return nn.functional.mse_loss(reconstruction.float(), images.float())


class Autoencoder(nn.Module):
    """AE: x -> z -> x', trained on ||x - x'||^2 alone. Its latents have no distribution to sample from."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor, labels: Tensor | None = None) -> AutoencoderOutput:
        """Images (B,C,H,W) in [0,1]; labels are not looked at."""
        reconstruction = self.decoder(self.encoder(images))
        mse = mean_squared_error(images, reconstruction)
        return AutoencoderOutput(mse, reconstruction, {"mse": mse.detach()})


class VQVAE(nn.Module):
    """VQ-VAE (arXiv:1711.00937): L = -log p(x|z_q(x)) + ||sg[z_e] - e||^2 + beta ||z_e - sg[e]||^2 (eq. 3, which is
    printed without the minus).

    The reconstruction term is the MSE divided by `data_variance`, so that beta and the quantizer's losses mean the
    same on dark digits and on photographs.
    """

    def __init__(
        self, encoder: Encoder, quantizer: Quantizer, decoder: Decoder, *, data_variance: float = DEFAULTS.data_variance
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.data_variance = data_variance

    def forward(self, images: Tensor, labels: Tensor | None = None) -> AutoencoderOutput:
        """Images (B,C,H,W) in [0,1]; labels are not looked at."""
        quantized = self.quantizer(self.encoder(images))
        reconstruction = self.decoder(quantized.vectors)
        mse = mean_squared_error(images, reconstruction)
        loss = mse / self.data_variance + quantized.loss
        return AutoencoderOutput(loss, reconstruction, {"mse": mse.detach()} | quantized.metrics)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0,1] -> codes (B,h,w) int64 in [0,K)."""
        codes: Tensor = self.quantizer.assign(self.encoder(images))
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) int64 -> images (B,C,H,W) clamped to [0,1]."""
        images: Tensor = self.decoder(self.quantizer.lookup(codes)).clamp(0, 1)
        return images


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """z = mu + sigma * epsilon, epsilon ~ N(0, I) (the lecture's reparameterization trick)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, I)) in nats, (B,d) -> (B,): sum_j (-1 + sigma_j^2 + mu_j^2 - log sigma_j^2) / 2."""
    return 0.5 * (-1 + log_variance.exp() + mean.square() - log_variance).sum(1)


def gaussian_log_likelihood(images: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mu', sigma'^2 I) in nats, (B,C,H,W) -> (B,): the lecture's second term, one sigma' for all pixels."""
    squares = (images - mean).square().flatten(1)  # (B, C*H*W)
    return -0.5 * (squares / log_variance.exp() + log_variance + math.log(2 * math.pi)).sum(1)


class VAE(nn.Module):
    """VAE (arXiv:1312.6114): maximises the ELBO = E_q[log p(x|z)] - KL(q(z|x) || N(0, I)); a vector latent of size d.

    With `label_count` it is the lecture's simplified CVAE: the label enters encoder and decoder, the prior stays
    N(0, I), and the bound is on log p(x|c). The decoder's variance sigma'^2 is one learned number (arXiv:2006.13202).
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        grid: tuple[int, int, int],
        latent_dimension: int,
        label_count: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.grid = encoder, decoder, grid  # grid: (D, h, w) of encoder and decoder
        self.latent_dimension, self.label_count = latent_dimension, label_count
        features = math.prod(grid)
        self.to_posterior = nn.Linear(features + label_count, 2 * latent_dimension)
        self.from_latent = nn.Linear(latent_dimension + label_count, features)
        self.log_variance = nn.Parameter(torch.tensor(-3.0))  # log sigma'^2 of p(x|z)

    def _with_label(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if self.label_count == 0:
            return x
        if labels is None:
            raise ValueError("a CVAE needs labels")
        return torch.cat([x, nn.functional.one_hot(labels, self.label_count).to(x.dtype)], dim=1)

    def posterior(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q(z|x,c): mean and log variance, each (B,d)."""
        features = self._with_label(self.encoder(images).flatten(1), labels)
        mean, log_variance = self.to_posterior(features).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (B,d) -> the mean mu' of p(x|z,c), (B,C,H,W)."""
        features: Tensor = self.from_latent(self._with_label(latent, labels))
        images: Tensor = self.decoder(features.reshape(-1, *self.grid))
        return images

    def forward(self, images: Tensor, labels: Tensor | None = None) -> AutoencoderOutput:
        """Images (B,C,H,W) in [0,1], labels int64 (B,) of a CVAE, one z drawn: the loss is -ELBO / (C*H*W), in nats."""
        mean, log_variance = self.posterior(images, labels)
        reconstruction = self.decode(reparameterise(mean, log_variance), labels).float()
        kl = gaussian_kl(mean, log_variance)
        elbo = gaussian_log_likelihood(images, reconstruction, self.log_variance) - kl
        metrics = {
            "mse": mean_squared_error(images, reconstruction).detach(),
            "kl": kl.mean().detach(),
            "elbo": elbo.mean().detach(),
        }
        return AutoencoderOutput(-elbo.mean() / images[0].numel(), reconstruction, metrics)

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        """`count` pictures (B,C,H,W) in [0,1] from z ~ N(0, I)."""
        latent = torch.randn(count, self.latent_dimension, device=self.log_variance.device)
        return self.decode(latent, labels).clamp(0, 1)
