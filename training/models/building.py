"""The models that a configuration names. In: its sections, the shape of a picture. Out: modules with fresh weights."""

from __future__ import annotations

from training.config import AutoencoderConfig, ConfigError, PriorConfig, QuantizerConfig
from training.models.autoencoders import VAE, VQVAE, Autoencoder
from training.models.networks import Decoder, Encoder
from training.models.prior import PixelCNN
from training.models.quantizers import EMAQuantizer, GradientQuantizer
from training.models.scalar_quantizer import FiniteScalarQuantizer

System = Autoencoder | VAE | VQVAE


def build_quantizer(
    config: QuantizerConfig, dimension: int
) -> EMAQuantizer | GradientQuantizer | FiniteScalarQuantizer:
    """The quantizer that `config` names, for vectors of `dimension` numbers; fsq has as many as it has levels."""
    if config.kind == "fsq":
        return FiniteScalarQuantizer(
            config.levels, usage_weight=config.usage_weight, context_rate_weight=config.context_rate_weight
        )
    quantizer = EMAQuantizer if config.kind == "ema" else GradientQuantizer
    return quantizer(
        config.codebook_size,
        dimension,
        commitment_cost=config.commitment_cost,
        rate_weight=config.rate_weight,
        usage_decay=config.usage_decay,
        start_step=config.start_step,
        restart_every=config.restart_every,
        restart_below=config.restart_below,
    )


def build_autoencoder(config: AutoencoderConfig, picture: tuple[int, int, int], label_count: int) -> System:
    """The system that `config` names, for pictures of (C, H, W).

    Raises:
        ConfigError: a CVAE without labels.
    """
    image_channels, height, width = picture
    fsq = config.system == "vqvae" and config.quantizer.kind == "fsq"
    dimension = len(config.quantizer.levels) if fsq else config.dimension
    shape = {"residual_blocks": config.residual_blocks, "downsampling": config.downsampling}
    encoder = Encoder(image_channels, dimension, channels=config.channels, **shape)
    decoder = Decoder(image_channels, dimension, channels=config.decoder_channels or config.channels, **shape)
    if config.system == "ae":
        return Autoencoder(encoder, decoder)
    if config.system == "vqvae":
        quantizer = build_quantizer(config.quantizer, dimension)
        return VQVAE(encoder, quantizer, decoder, data_variance=config.data_variance)
    if config.system == "cvae" and label_count == 0:
        raise ConfigError("autoencoder.system is cvae, but the data has no labels: choose vae, or label the data")
    grid = (dimension, height // config.downsampling, width // config.downsampling)
    labels = label_count if config.system == "cvae" else 0
    return VAE(encoder, decoder, grid=grid, latent_dimension=config.latent_dimension, label_count=labels)


def build_prior(config: PriorConfig, codebook_size: int, label_count: int) -> PixelCNN:
    """A prior over K codes; `label_count` is 0 for an unconditional one."""
    return PixelCNN(
        codebook_size,
        label_count,
        channels=config.channels,
        vertical_layers=config.vertical_layers,
        horizontal_layers=config.horizontal_layers,
        head_channels=config.head_channels,
    )
