"""Encoder, quantizer and decoder as ONNX, with pixel scaling inside: uint8 pictures in, uint8 pictures out.

In: a trained `training.models.autoencoders.VQVAE`. Out: ONNX models as docs/bundle-format.md lists them, batch dynamic,
height and width dynamic where `any_size`. Pictures are (B,H,W,C) outside and (B,C,H,W) inside. Each function mirrors
the forward pass of the module it takes, line by line; `export.verify` compares what both compute.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from torch import nn

from export.graphs.onnx_builder import GraphBuilder
from export.graphs.prior_parts import as_array
from service.bundle.fields import GraphName
from training.models.autoencoders import VQVAE
from training.models.networks import Decoder, Encoder, ResidualBlock
from training.models.scalar_quantizer import FiniteScalarQuantizer

TO_CHANNELS_FIRST, TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


@dataclass(frozen=True)
class Shapes:
    """The named shapes of a bundle's tensors; strings are dynamic axes."""

    images: tuple[int | str, ...]  # (B,H,W,C)
    codes: tuple[int | str, ...]  # (B,h,w)
    latents: tuple[int | str, ...]  # (B,h,w,D)


def shapes_of(picture: tuple[int, int, int], downsampling: int, dimension: int, *, any_size: bool) -> Shapes:
    """`picture` is (C, H, W)."""
    channels, height, width = picture
    sides: tuple[int | str, ...] = ("H", "W") if any_size else (height, width)
    grid: tuple[int | str, ...] = ("h", "w") if any_size else (height // downsampling, width // downsampling)
    return Shapes(("B", *sides, channels), ("B", *grid), ("B", *grid, dimension))


def _conv(graph: GraphBuilder, conv: nn.Module, x: str) -> str:
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    weight, bias = graph.constant(as_array(conv.weight)), graph.constant(as_array(conv.bias))
    return graph.op("Conv", x, weight, bias, pads=[*conv.padding, *conv.padding], strides=list(conv.stride))


def _residual(graph: GraphBuilder, block: nn.Module, x: str) -> str:
    assert isinstance(block, ResidualBlock)
    hidden = _conv(graph, block.conv3x3, graph.op("Relu", x))
    return graph.op("Add", x, _conv(graph, block.conv1x1, graph.op("Relu", hidden)))


def encode(graph: GraphBuilder, encoder: Encoder, images: str) -> str:
    """images uint8 (B,H,W,C) -> latents float32 (B,D,h,w)."""
    x = graph.op("Transpose", graph.cast(images, "float32"), perm=TO_CHANNELS_FIRST)
    x = graph.op("Sub", graph.op("Mul", graph.op("Div", x, graph.scalar(255)), graph.scalar(2)), graph.scalar(1))
    for conv in encoder.down:
        x = graph.op("Relu", _conv(graph, conv, x))
    x = _conv(graph, encoder.mix, x)
    for block in encoder.blocks:
        x = _residual(graph, block, x)
    return _conv(graph, encoder.project, graph.op("Relu", x))


def quantize(graph: GraphBuilder, vqvae: VQVAE, latents: str) -> str:
    """latents (B,h,w,D) -> codes int64 (B,h,w): argmin of ||e||^2 / 2 + offset / 2 - z.e, ties to the lowest index."""
    quantizer = vqvae.quantizer
    offsets = None if isinstance(quantizer, FiniteScalarQuantizer) else quantizer.offsets()
    norms = quantizer.codebook.square().sum(1)
    half = 0.5 * (norms if offsets is None else norms + offsets)
    products = graph.op("MatMul", latents, graph.constant(as_array(quantizer.codebook.T)))
    distances = graph.op("Sub", graph.constant(as_array(half)), products)  # (B,h,w,K)
    return graph.op("ArgMin", distances, axis=-1, keepdims=0, select_last_index=0)


def decode(graph: GraphBuilder, vqvae: VQVAE, codes: str) -> str:
    """codes int64 (B,h,w) -> images uint8 (B,H,W,C), rounded to the nearest of 256 levels."""
    vectors = graph.op("Gather", graph.constant(as_array(vqvae.quantizer.codebook)), codes, axis=0)
    x = _decode_vectors(graph, vqvae.decoder, graph.op("Transpose", vectors, perm=TO_CHANNELS_FIRST))
    x = graph.op("Clip", x, graph.scalar(0), graph.scalar(1))
    levels = graph.op("Round", graph.op("Mul", x, graph.scalar(255)))
    return graph.op("Transpose", graph.cast(levels, "uint8"), perm=TO_CHANNELS_LAST)


def _decode_vectors(graph: GraphBuilder, decoder: Decoder, vectors: str) -> str:
    x = _conv(graph, decoder.mix, vectors)
    for block in decoder.blocks:
        x = _residual(graph, block, x)
    for conv in decoder.up:
        x = graph.op("DepthToSpace", _conv(graph, conv, graph.op("Relu", x)), blocksize=2, mode="CRD")
    return graph.op("Div", graph.op("Add", x, graph.scalar(1)), graph.scalar(2))


def autoencoder_graphs(vqvae: VQVAE, shapes: Shapes) -> dict[GraphName, onnx.ModelProto]:
    """The graphs encoder, quantizer, encoder_quantizer (both in one session) and decoder."""
    return {
        "encoder": _encoder(vqvae, shapes),
        "quantizer": _quantizer(vqvae, shapes),
        "encoder_quantizer": _encoder_quantizer(vqvae, shapes),
        "decoder": _decoder(vqvae, shapes),
    }


def _latents(graph: GraphBuilder, vqvae: VQVAE, shapes: Shapes) -> str:
    latents = encode(graph, vqvae.encoder, graph.input("images", "uint8", shapes.images))
    if isinstance(vqvae.quantizer, FiniteScalarQuantizer):
        latents = graph.op("Tanh", latents)  # `FiniteScalarQuantizer.bounded`
    return graph.op("Transpose", latents, perm=TO_CHANNELS_LAST)


def _encoder(vqvae: VQVAE, shapes: Shapes) -> onnx.ModelProto:
    graph = GraphBuilder("encoder")
    graph.output(_latents(graph, vqvae, shapes), "latents", "float32", shapes.latents)
    return graph.model()


def _quantizer(vqvae: VQVAE, shapes: Shapes) -> onnx.ModelProto:
    graph = GraphBuilder("quantizer")
    latents = graph.input("latents", "float32", shapes.latents)
    graph.output(quantize(graph, vqvae, latents), "codes", "int64", shapes.codes)
    return graph.model()


def distances_graph(vqvae: VQVAE) -> onnx.ModelProto:
    """latents (B,h,w,D) -> squared distances float32 (B,h,w,K) to the codebook, without the quantizer's offsets.

    h and w are always dynamic: an encoder that weighs bits asks for one position of many grids at a time.
    """
    codebook = vqvae.quantizer.codebook
    graph = GraphBuilder("distances")
    latents = graph.input("latents", "float32", ("B", "h", "w", codebook.shape[1]))
    own = graph.op("ReduceSum", graph.op("Mul", latents, latents), graph.integers(-1), keepdims=1)  # (B,h,w,1)
    products = graph.op("MatMul", latents, graph.constant(as_array(-2 * codebook.T)))
    norms = graph.op("Add", own, graph.constant(as_array(codebook.square().sum(1))))
    distances = graph.op("Add", norms, products)
    graph.output(distances, "distances", "float32", ("B", "h", "w", codebook.shape[0]))
    return graph.model()


def _encoder_quantizer(vqvae: VQVAE, shapes: Shapes) -> onnx.ModelProto:
    graph = GraphBuilder("encoder_quantizer")
    graph.output(quantize(graph, vqvae, _latents(graph, vqvae, shapes)), "codes", "int64", shapes.codes)
    return graph.model()


def _decoder(vqvae: VQVAE, shapes: Shapes) -> onnx.ModelProto:
    graph = GraphBuilder("decoder")
    codes = graph.input("codes", "int64", shapes.codes)
    graph.output(decode(graph, vqvae, codes), "images", "uint8", shapes.images)
    return graph.model()
