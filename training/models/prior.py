"""The prior: a Gated PixelCNN over code grids (arXiv:1606.05328) whose arithmetic is exact on every machine.

In: codes int64 (B,h,w), labels int64 (B,). Out: integer logits float32 (B,h,w,K) for each position, given the codes
before it in raster order; one unit is 1/64 nat.

Every activation is an integer held in float32, or behind a gate a multiple of 1/64; every weight is a multiple of 2^-7
of magnitude below 1. Products and sums
are then multiples of a power of two, and while they stay below 2^24 of those units float32 adds them without rounding,
so in any order: any batch, thread count, device or library gives the same bits (integer networks: Balle, Johnston and
Minnen, ICLR 2019; `training.models.exactness` proves the bound for trained weights). Rounding happens only where
`round_half_even` says so. Two stacks without a blind spot:

    codes above --shift down--> [vertical layer] x V --context, once a row--+
    codes to the left --------------------------------------------> [horizontal layer] x N --> head --> logits

The deep vertical stack sees V + 1 rows above and V columns to each side, and runs once a row; the short horizontal
stack sees 2N + 1 codes to the left and runs once a pixel. A sampler therefore pays the depth h times and not h * w
times.
`export.graphs.prior_graphs` writes the same computation as ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.config import PriorConfig

DEFAULTS = PriorConfig()
WEIGHT_SCALE = 128  # weights are n / 128, n in [-127, 127]
UNITS_PER_NAT = 64  # activations and logits are integers; 64 of them are 1.0 (or 1 nat)
STREAM_LIMIT = 1023  # residual streams stay in [-1023, 1023]
GATE_LIMIT = 64  # hard tanh in [-64, 64], hard sigmoid in [0, 64]
EMBEDDING_LIMIT = 127
HEAD_LIMIT = 255
VERTICAL_TAPS = ((0, -1), (0, 0), (0, 1), (-1, -1), (-1, 0), (-1, 1))  # (row, column) offsets into the shifted rows
HORIZONTAL_TAPS = 3  # columns j, j-1, j-2 of the shifted row
EXACT_LIMIT = 1 << 24  # float32 holds every integer up to here


class _RoundHalfEven(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def round_half_even(x: Tensor) -> Tensor:
    """Nearest integer, ties to even, as ONNX Round; the gradient passes straight through."""
    rounded: Tensor = _RoundHalfEven.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def quantized_bias(bias: Tensor) -> Tensor:
    """Real units -> activation units, multiples of 1/128: the grid of an accumulator over integer activations."""
    return round_half_even(bias * UNITS_PER_NAT * WEIGHT_SCALE) / WEIGHT_SCALE


def guided_logits(labelled: Tensor, unlabelled: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598, eq. 6 with w = guidance - 1) on integer logits of one shape.

    1 gives the logits with the label back, more moves them further from those without it; a multiple of 1/16.
    """
    return round_half_even(unlabelled + guidance * (labelled - unlabelled))


class FixedPointLinear(nn.Module):
    """y = x @ W + b, exact and not yet rounded. W and b are multiples of 1/128, so y is one of 1/128 where x is
    integers, and of 1/8192 for the gates of 1/64 that `GatedLayer.out` takes.

    `weight` and `bias` are the float shadows that the optimiser moves, in real units (1.0 is 64 activation units).
    Most layers take their bias from the label instead.
    """

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * gain / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def quantized_weight(self) -> Tensor:
        """(inputs, outputs) float32, multiples of 1/128 in [-127/128, 127/128]."""
        return round_half_even(self.weight * WEIGHT_SCALE).clamp(-127, 127) / WEIGHT_SCALE

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.quantized_weight()
        return y if self.bias is None else y + quantized_bias(self.bias)


def gate(x: Tensor) -> Tensor:
    """(..., 2C) multiples of 1/128 -> (..., C) integers in [-4096, 4096]: hard tanh times hard sigmoid (eq. 2).

    sigmoid(b) ~ clip(b / 4 + 1/2, 0, 1). Both factors are integers of at most 64, so the product needs no rounding.
    """
    tanh_half, sigmoid_half = x.chunk(2, dim=-1)
    tanh = round_half_even(tanh_half).clamp(-GATE_LIMIT, GATE_LIMIT)
    sigmoid = round_half_even(sigmoid_half / 4 + GATE_LIMIT / 2).clamp(0, GATE_LIMIT)
    return tanh * sigmoid


class GatedLayer(nn.Module):
    """stream + round(out(gate(taps(stream) + conditioning) / 64)), clipped to the stream's range."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.taps = FixedPointLinear(taps * channels, 2 * channels)
        self.out = FixedPointLinear(channels, channels, gain=0.5)

    def forward(self, stream: Tensor, gathered: Tensor, conditioning: Tensor) -> Tensor:
        """stream (...,C), gathered (...,taps*C) integers, conditioning (...,2C) multiples of 1/128 -> (...,C)."""
        update = self.out(gate(self.taps(gathered) + conditioning) / GATE_LIMIT)
        return (stream + round_half_even(update)).clamp(-STREAM_LIMIT, STREAM_LIMIT)


def shift(x: Tensor, rows: int, columns: int) -> Tensor:
    """y[:, i, j] = x[:, i + rows, j + columns], zero outside; x is (B,h,w,C)."""
    height, width = x.shape[1:3]
    padded = nn.functional.pad(x, (0, 0, max(-columns, 0), max(columns, 0), max(-rows, 0), max(rows, 0)))
    top, left = max(rows, 0), max(columns, 0)
    return padded[:, top : top + height, left : left + width]


class StateShapes(NamedTuple):
    """What a sampler or an entropy decoder keeps between its calls, without B; the fields are those of `PriorSpec`."""

    cache_shape: tuple[int, int, int]  # (V + 1, w, C): a row of the codes and of each vertical layer's input
    pixel_cache_shape: tuple[int, int, int]  # (N, taps - 1, C): the last inputs of each horizontal layer
    context_channels: int  # N * 2C: what the vertical stack says to the horizontal one at a column


def state_shapes(channels: int, vertical_layers: int, horizontal_layers: int, width: int) -> StateShapes:
    """Of a prior with C channels, V vertical and N horizontal layers, for grids `width` codes wide."""
    return StateShapes(
        (vertical_layers + 1, width, channels),
        (horizontal_layers, HORIZONTAL_TAPS - 1, channels),
        2 * channels * horizontal_layers,
    )


class PixelCNN(nn.Module):
    """Class-conditional Gated PixelCNN with integer arithmetic.

    Args:
        codebook_size: K.
        label_count: number of classes, 0 for an unconditional prior. Label `label_count` means "no label".
        channels: C of both streams.
        vertical_layers, horizontal_layers: depth of the stacks.
        head_channels: width of the layer before the logits.
    """

    def __init__(
        self,
        codebook_size: int,
        label_count: int = 0,
        *,
        channels: int = DEFAULTS.channels,
        vertical_layers: int = DEFAULTS.vertical_layers,
        horizontal_layers: int = DEFAULTS.horizontal_layers,
        head_channels: int = DEFAULTS.head_channels,
    ) -> None:
        super().__init__()
        self.codebook_size, self.label_count, self.channels = codebook_size, label_count, channels
        self.embedding = nn.Parameter(torch.randn(codebook_size, channels) * 0.5)
        self.vertical = nn.ModuleList(GatedLayer(channels, len(VERTICAL_TAPS)) for _ in range(vertical_layers))
        self.context = FixedPointLinear(channels, 2 * channels * horizontal_layers)
        self.horizontal = nn.ModuleList(GatedLayer(channels, HORIZONTAL_TAPS) for _ in range(horizontal_layers))
        gates = 2 * channels * (vertical_layers + horizontal_layers)
        self.label_bias = nn.Parameter(torch.zeros(label_count + 1, gates))  # added to the taps of every layer
        self.hidden = FixedPointLinear(channels, head_channels, bias=True)
        self.head = FixedPointLinear(head_channels, codebook_size, gain=0.5, bias=True)

    def quantized_embedding(self) -> Tensor:
        """(K,C) integers in [-127, 127]."""
        return round_half_even(self.embedding * UNITS_PER_NAT).clamp(-EMBEDDING_LIMIT, EMBEDDING_LIMIT)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Codes int64 (B,h,w) in [0,K), labels int64 (B,) in [0,label_count] -> integer logits float32 (B,h,w,K)."""
        embedded = self.quantized_embedding()[codes]  # (B,h,w,C)
        biases = self.label_biases(labels)
        return self.along_rows(embedded, self.down_rows(embedded, biases), biases)

    def label_biases(self, labels: Tensor) -> tuple[Tensor, ...]:
        """(B,) -> one (B,1,1,2C) a layer, those of the vertical stack first."""
        layers = len(self.vertical) + len(self.horizontal)
        return quantized_bias(self.label_bias)[labels][:, None, None].chunk(layers, -1)

    def down_rows(self, embedded: Tensor, biases: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The vertical stack: (B,h,w,C) -> what the rows above say to each horizontal layer, (B,h,w,2C) each."""
        above = shift(embedded, -1, 0)
        for layer, bias in zip(self.vertical, biases, strict=False):
            above = layer(above, torch.cat([shift(above, *tap) for tap in VERTICAL_TAPS], dim=-1), bias)
        contexts: tuple[Tensor, ...] = self.context(above).chunk(len(self.horizontal), -1)
        return contexts

    def along_rows(self, embedded: Tensor, contexts: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        """The horizontal stack and the head: (B,h,w,C) -> logits (B,h,w,K). Rows do not see each other here."""
        left = shift(embedded, 0, -1)
        for layer, context, bias in zip(self.horizontal, contexts, biases[len(self.vertical) :], strict=True):
            gathered = torch.cat([shift(left, 0, -tap) for tap in range(HORIZONTAL_TAPS)], dim=-1)
            left = layer(left, gathered, context + bias)
        hidden = round_half_even(self.hidden(left)).clamp(0, HEAD_LIMIT)
        return round_half_even(self.head(hidden))

    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy in nats per code."""
        logits = self.forward(codes, labels) / UNITS_PER_NAT
        return nn.functional.cross_entropy(logits.flatten(0, -2), codes.flatten())
