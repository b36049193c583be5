"""The encoder and the decoder that every autoencoder here shares, so that a comparison compares one thing.

In: images float32 (B,C,H,W) in [0,1], H and W multiples of `downsampling`. Out: latents float32 (B,D,h,w) and back.
Fully convolutional and without normalisation layers: any size works, and one picture never depends on its batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from training.config import AutoencoderConfig, Downsampling

DEFAULTS = AutoencoderConfig()
DOWNSAMPLING_CHOICES: tuple[int, ...] = get_args(Downsampling)


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), as in the VQ-VAE paper (arXiv:1711.00937, section 4.1)."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.conv1x1 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv3x3(torch.relu(x))
        update: Tensor = self.conv1x1(torch.relu(hidden))
        return x + update


def _halvings(downsampling: int) -> int:
    if downsampling not in DOWNSAMPLING_CHOICES:
        raise ValueError(f"downsampling is {downsampling}, choose one of {DOWNSAMPLING_CHOICES}")
    return downsampling.bit_length() - 1


class Encoder(nn.Module):
    """Images (B,C,H,W) in [0,1] -> latents (B,D,h,w), h = H / downsampling.

    Each halving is a strided 4x4 convolution. The widest layers run on the smallest grid, where they are cheap, if
    `channels` is 32 or more: no halving has fewer.
    """

    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        *,
        channels: int = DEFAULTS.channels,
        residual_blocks: int = DEFAULTS.residual_blocks,
        downsampling: int = DEFAULTS.downsampling,
    ) -> None:
        super().__init__()
        self.downsampling = downsampling
        halvings = _halvings(downsampling)
        widths = [image_channels] + [max(channels >> (halvings - 1 - i), 32) for i in range(halvings)]
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.mix = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(channels, channels // 2) for _ in range(residual_blocks))
        self.project = nn.Conv2d(channels, latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = 2 * images - 1  # (B,C,H,W) in [-1,1]
        for conv in self.down:
            x = torch.relu(conv(x))
        x = self.mix(x)  # (B,channels,h,w)
        for block in self.blocks:
            x = block(x)
        latents: Tensor = self.project(torch.relu(x))
        return latents


class Decoder(nn.Module):
    """Latents (B,D,h,w) -> images (B,C,H,W), nominally in [0,1], not clamped (the loss must see how far outside).

    Each doubling is a 3x3 convolution and a pixel shuffle (sub-pixel convolution, arXiv:1609.05158), which on a CPU
    costs less than a transposed convolution.
    """

    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        *,
        channels: int = DEFAULTS.channels,
        residual_blocks: int = DEFAULTS.residual_blocks,
        downsampling: int = DEFAULTS.downsampling,
    ) -> None:
        super().__init__()
        doublings = _halvings(downsampling)
        self.mix = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(channels, channels // 2) for _ in range(residual_blocks))
        widths = [channels] + [max(channels >> (i + 1), 32) for i in range(doublings - 1)] + [image_channels]
        self.up = nn.ModuleList(nn.Conv2d(before, 4 * after, 3, padding=1) for before, after in pairwise(widths))

    def forward(self, latents: Tensor) -> Tensor:
        x: Tensor = self.mix(latents)  # (B,channels,h,w)
        for block in self.blocks:
            x = block(x)
        for conv in self.up:
            x = nn.functional.pixel_shuffle(conv(torch.relu(x)), 2)
        return (x + 1) / 2
