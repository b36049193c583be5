"""A tiny bundle with random weights, made by hand: the smallest real thing that the service can serve.

Out: `write_tiny_bundle(folder)`, 28x28x1 -> 7x7 codes of K = 16, and `write_tiny_bundle(folder, any_size=True)`, any
multiple of 4 with 3 channels. `oracle_codes` and `oracle_pixels` compute in numpy what its graphs must give. With
`prior=tiny_prior()` the graphs of a small PixelCNN with random weights come from `export`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graphs.prior_graphs import PriorGraphWriter
from service.bundle import MANIFEST_FILE, sha256_file
from service.bundle.fields import GraphName, GraphSpec, PriorSpec
from service.bundle.manifest import FORMAT_VERSION, version_of
from training.models.exactness import prove_exact
from training.models.frequencies import frequency_table
from training.models.prior import HORIZONTAL_TAPS, PixelCNN

PATCH, CODEBOOK_SIZE, DIMENSION = 4, 16, 8
OPSET = 17
_DTYPES = {
    int(TensorProto.UINT8): "uint8",
    int(TensorProto.INT32): "int32",
    int(TensorProto.INT64): "int64",
    int(TensorProto.FLOAT): "float32",
    int(TensorProto.BOOL): "bool",
}


@dataclass(frozen=True)
class Weights:
    """Analysis and synthesis of one 4x4xC patch, and the codebook."""

    encode: NDArray[np.float32]  # (16 C, D)
    codebook: NDArray[np.float32]  # (K, D)
    decode: NDArray[np.float32]  # (D, 16 C)


def tiny_weights(channels: int, seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)
    size = PATCH * PATCH * channels
    encode = random.normal(size=(size, DIMENSION)).astype(np.float32)
    # Latents of random patches, so that every code is the nearest of some picture.
    codebook = (random.random((CODEBOOK_SIZE, size)) @ encode).astype(np.float32)
    decode = random.normal(size=(DIMENSION, size), scale=0.1).astype(np.float32)
    return Weights(encode, codebook, decode)


def oracle_codes(pixels: NDArray[np.uint8], weights: Weights) -> NDArray[np.int64]:
    """uint8 (B,H,W,C) -> int64 (B,h,w), the nearest vector of each patch."""
    b, height, width, channels = pixels.shape
    h, w = height // PATCH, width // PATCH
    patches = pixels.reshape(b, h, PATCH, w, PATCH, channels).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
    latents = (patches / np.float64(255)) @ weights.encode
    distances = ((latents[..., None, :] - weights.codebook) ** 2).sum(-1)
    codes: NDArray[np.int64] = distances.argmin(-1)
    return codes


def oracle_pixels(codes: NDArray[np.int64], weights: Weights, channels: int) -> NDArray[np.uint8]:
    """int64 (B,h,w) -> uint8 (B,H,W,C)."""
    b, h, w = codes.shape
    patches = (weights.codebook.astype(np.float64) @ weights.decode)[codes] + 0.5
    patches = patches.reshape(b, h, w, PATCH, PATCH, channels).transpose(0, 1, 3, 2, 4, 5)
    pixels = np.clip(np.round(patches * 255), 0, 255).astype(np.uint8)
    return pixels.reshape(b, h * PATCH, w * PATCH, channels)


def tiny_prior(label_count: int = 3, seed: int = 0, channels: int = 8, vertical_layers: int = 2) -> PixelCNN:
    """A PixelCNN over the 16 codes whose weights are random, the labels' too, so that every label matters. With one
    vertical layer a grid of 7 columns is wide enough for `prior_diagonal`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = PixelCNN(
            CODEBOOK_SIZE,
            label_count,
            channels=channels,
            vertical_layers=vertical_layers,
            horizontal_layers=2,
            head_channels=16,
        )
        torch.nn.init.normal_(prior.label_bias, std=0.5)
    return prior.requires_grad_(False)


def write_tiny_bundle(
    folder: Path, name: str = "tiny", any_size: bool = False, seed: int = 0, prior: PixelCNN | None = None
) -> Weights:
    """Write graphs and manifest into `folder` and return the weights for the oracles."""
    folder.mkdir(parents=True, exist_ok=True)
    channels, side = (3, 16) if any_size else (1, 28)
    weights = tiny_weights(channels, seed)
    sizes = ("H", "W", "h", "w") if any_size else (side, side, side // PATCH, side // PATCH)
    graphs: dict[GraphName, GraphSpec] = {}
    models = {graph_name: _model(graph) for graph_name, graph in _graphs(weights, channels, sizes).items()}
    if prior is not None:
        models |= _prior_models(prior, side // PATCH) | {"distances": _model(_distances(weights))}
    for graph_name, model in models.items():
        path = folder / f"{graph_name}.onnx"
        onnx.save(model, path)
        graphs[graph_name] = GraphSpec(
            file=path.name,
            sha256=sha256_file(path),
            opset=model.opset_import[0].version,
            inputs=tuple(_spec(value) for value in model.graph.input),
            outputs=tuple(_spec(value) for value in model.graph.output),
        )
    manifest = _manifest(name, channels, side, any_size, graphs)
    if prior is not None:
        manifest |= {"prior": _prior_spec(prior, side // PATCH).model_dump(mode="json")}
        manifest |= {"labels": [f"label {n}" for n in range(prior.label_count)] or None}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return weights


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _prior_models(prior: PixelCNN, width: int) -> dict[GraphName, onnx.ModelProto]:
    return PriorGraphWriter(prior).all(width, frequency_table(CODEBOOK_SIZE).numpy())


def _prior_spec(prior: PixelCNN, width: int) -> PriorSpec:
    layers = len(prior.horizontal)
    return PriorSpec(
        frequency_table=tuple(int(frequency) for frequency in frequency_table(CODEBOOK_SIZE)),
        label_count=prior.label_count,
        cache_shape=(len(prior.vertical) + 1, width, prior.channels),
        pixel_cache_shape=(layers, HORIZONTAL_TAPS - 1, prior.channels),
        context_channels=2 * prior.channels * layers,
        largest_partial_sum=prove_exact(prior),
    )


def _graphs(weights: Weights, channels: int, sizes: tuple[int | str, ...]) -> dict[GraphName, onnx.GraphProto]:
    height, width, h, w = sizes
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", height, width, channels])
    latents = helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["B", h, w, DIMENSION])
    codes = helper.make_tensor_value_info("codes", TensorProto.INT64, ["B", h, w])
    encoder, quantizer = _encoder(weights, channels), _quantizer(weights)
    decoder = _decoder(weights, channels)
    return {
        "encoder": helper.make_graph(encoder[0], "encoder", [images], [latents], encoder[1]),
        "quantizer": helper.make_graph(quantizer[0], "quantizer", [latents], [codes], quantizer[1]),
        "encoder_quantizer": helper.make_graph(
            encoder[0] + quantizer[0], "encoder_quantizer", [images], [codes], encoder[1] + quantizer[1]
        ),
        "decoder": helper.make_graph(decoder[0], "decoder", [codes], [images], decoder[1]),
    }


Part = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _kernel(matrix: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """(16 C, D) in patch order -> (D, C, 4, 4), the layout of Conv and of ConvTranspose alike."""
    return matrix.T.reshape(DIMENSION, PATCH, PATCH, channels).transpose(0, 3, 1, 2).copy()


def _constant(name: str, value: object, dtype: type) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def _encoder(weights: Weights, channels: int) -> Part:
    nodes = [
        helper.make_node("Cast", ["images"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["as_float", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "analysis"], ["features"], strides=[PATCH, PATCH]),
        helper.make_node("Transpose", ["features"], ["latents"], perm=[0, 2, 3, 1]),
    ]
    kernel = numpy_helper.from_array(_kernel(weights.encode, channels), "analysis")
    return nodes, [_constant("scale", 255, np.float32), kernel]


def _quantizer(weights: Weights) -> Part:
    """|x - e|^2 without |x|^2, which is the same for every e."""
    nodes = [
        helper.make_node("MatMul", ["latents", "minus_two_codebook"], ["products"]),
        helper.make_node("Add", ["products", "norms"], ["distances"]),
        helper.make_node("ArgMin", ["distances"], ["codes"], axis=3, keepdims=0),
    ]
    book = weights.codebook
    tensors = [
        numpy_helper.from_array((-2 * book.T).copy(), "minus_two_codebook"),
        _constant("norms", (book**2).sum(1), np.float32),
    ]
    return nodes, tensors


def _distances(weights: Weights) -> onnx.GraphProto:
    """|x - e|^2 = |x|^2 + |e|^2 - 2 x.e."""
    nodes, tensors = _quantizer(weights)
    nodes = [
        nodes[0],
        helper.make_node("Add", ["products", "norms"], ["without_own"]),
        helper.make_node("ReduceSumSquare", ["latents"], ["own"], axes=[3], keepdims=1),
        helper.make_node("Add", ["without_own", "own"], ["distances"]),
    ]
    latents = helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["B", "h", "w", DIMENSION])
    distances = helper.make_tensor_value_info("distances", TensorProto.FLOAT, ["B", "h", "w", CODEBOOK_SIZE])
    return helper.make_graph(nodes, "distances", [latents], [distances], tensors)


def _decoder(weights: Weights, channels: int) -> Part:
    nodes = [
        helper.make_node("Gather", ["codebook", "codes"], ["vectors"]),
        helper.make_node("Transpose", ["vectors"], ["vector_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("ConvTranspose", ["vector_planes", "synthesis"], ["patches"], strides=[PATCH, PATCH]),
        helper.make_node("Add", ["patches", "half"], ["unit_planes"]),
        helper.make_node("Mul", ["unit_planes", "to_byte"], ["byte_planes"]),
        helper.make_node("Round", ["byte_planes"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "zero", "to_byte"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["images"], perm=[0, 2, 3, 1]),
    ]
    constants = [_constant(name, value, np.float32) for name, value in (("half", 0.5), ("to_byte", 255), ("zero", 0))]
    kernel = numpy_helper.from_array(_kernel(weights.decode.T.copy(), channels), "synthesis")
    return nodes, [numpy_helper.from_array(weights.codebook, "codebook"), kernel, *constants]


def _spec(value: onnx.ValueInfoProto) -> dict[str, object]:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": _DTYPES[tensor.elem_type], "shape": tuple(shape)}


def _manifest(
    name: str, channels: int, side: int, any_size: bool, graphs: dict[GraphName, GraphSpec]
) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "version": version_of(graphs),
        "family": "vqvae",
        "picture": {
            "height": side,
            "width": side,
            "channels": channels,
            "any_size": any_size,
            "multiple_of": PATCH,
        },
        "codes": {
            "height": side // PATCH,
            "width": side // PATCH,
            "codebook_size": CODEBOOK_SIZE,
            "dimension": DIMENSION,
        },
        "labels": None,
        "graphs": {key: spec.model_dump(mode="json") for key, spec in graphs.items()},
        "prior": None,
        "code_histogram": [1] * CODEBOOK_SIZE,
        "quality": {"split": "none", "pictures": 0, "mse": 0.0, "psnr_db": 0.0, "perplexity": 0.0},
        "parity": {"pictures": 0, "codes_compared": 0, "codes_different": 0, "largest_pixel_difference": 0},
        "provenance": {
            "config": {},
            "data_digest": "none",
            "data_licence": "none",
            "commit": None,
            "libraries": {},
        },
    }
