"""What a code costs after the codes before it: a small causal model that is trained beside an autoencoder.

In: code vectors (B,D,h,w). Out: log-probabilities of each code's digits, given the codes before it in raster order. The
autoencoder learns from them which codes are predictable (arXiv:1801.04260; there a causal CNN in 3D). Export
leaves the model out: what compresses codes is the prior, a better model of the same that is trained afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

REACH = 2  # codes above and to each side that a code is predicted from
CHANNELS = 64
HIDDEN_CHANNELS = 32


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The value of x, and its gradient times `factor`."""
    return x.detach() + factor * (x - x.detach())


class CausalConv(nn.Conv2d):
    """A convolution over the neighbours before a position in raster order, without it: mask A of arXiv:1601.06759."""

    mask: Tensor  # (side,side) of 0 and 1

    def __init__(self, inputs: int, outputs: int, reach: int) -> None:
        side = 2 * reach + 1
        super().__init__(inputs, outputs, side, padding=reach)
        before = torch.arange(side * side) < side * side // 2
        self.register_buffer("mask", before.reshape(side, side).float())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class ContextModel(nn.Module):
    """p(code) as a product over its digits d = 0..D-1, each given the codes before and the digits before it.

    Args:
        levels: how many values each digit has.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.neighbours = CausalConv(len(levels) + 1, CHANNELS, REACH)  # a plane of ones more: it marks the border
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.hidden = nn.ModuleList(nn.Conv2d(CHANNELS + d, HIDDEN_CHANNELS, 1) for d in range(len(levels)))
        self.heads = nn.ModuleList(nn.Conv2d(HIDDEN_CHANNELS, level, 1) for level in levels)

    def forward(self, vectors: Tensor) -> list[Tensor]:
        """(B,D,h,w) in [-1,1] -> for each digit its log-probabilities in nats, (B,levels[d],h,w)."""
        with torch.autocast(vectors.device.type, enabled=False):
            x = torch.relu(self.neighbours(torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)))
            x = torch.relu(x + self.mix(x))
            found = []
            for d, (hidden, head) in enumerate(zip(self.hidden, self.heads, strict=True)):
                logits = head(torch.relu(hidden(torch.cat([x, vectors[:, :d]], 1))))
                found.append(torch.log_softmax(logits, 1))
            return found
