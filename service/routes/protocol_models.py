"""The models of the Open Inference Protocol as data: what each takes, what it gives, and the call that does it.

A protocol model has one set of inputs, so each bundle is up to three of them: `mnist.encode` (images -> codes),
`mnist.decode` (codes -> images), and with a prior `mnist.generate` (labels -> codes and images; what `SAMPLING` names
are request parameters, label -1 means none). `service.routes.openinference` has the routes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from service.bundle.manifest import Manifest
from service.errors import InvalidCodes, InvalidParameter
from service.prior.generator import generator_of
from service.registry.model import Model
from service.routes.decoding import checked
from service.routes.generation_request import read_wanted
from service.routes.requests import finish
from service.routes.service import Service
from service.routes.uploads import checked_pictures
from service.wire.inference_protocol import BINARY_OUTPUT, InferRequest, check_json_size

Arrays = Mapping[str, NDArray[Any]]
SAMPLING = ("seed", "temperature", "top_k", "top_p", "guidance")
# The protocol's own, which its clients may send to any model; nothing here depends on the order of requests. MLServer's
# say how they have made the arrays, of the request as of each tensor.
PROTOCOL_PARAMETERS = (
    *(BINARY_OUTPUT, "priority", "timeout", "sequence_id", "sequence_start", "sequence_end"),
    "content_type",
)


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]  # without the batch; -1 where it is free

    def metadata(self) -> dict[str, object]:
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.shape]}

    def config(self) -> dict[str, object]:
        return {"name": self.name, "data_type": f"TYPE_{self.datatype}", "dims": list(self.shape)}


@dataclass(frozen=True)
class Operation:
    """What one protocol model takes, gives and does."""

    inputs: Callable[[Manifest], tuple[Tensor, ...]]
    outputs: Callable[[Manifest], tuple[Tensor, ...]]
    run: Callable[[Request, Service, Model, InferRequest], Awaitable[Arrays]]
    needs_prior: bool = False
    parameters: tuple[str, ...] = ()

    def check(self, asked: InferRequest, manifest: Manifest) -> None:
        """Raises InvalidParameter: the request has a parameter that would be ignored, or asks for another output."""
        unknown = next((name for name in asked.parameters if name not in self.parameters + PROTOCOL_PARAMETERS), None)
        if unknown is not None:
            there_are = f"there are {', '.join(self.parameters)}" if self.parameters else "this model has none"
            raise InvalidParameter(f"Unknown parameter {unknown[:40]!r}; {there_are}.")
        outputs = [output.name for output in self.outputs(manifest)]
        other = next((name for name in asked.wanted if name not in outputs), None)
        if other is not None:
            raise InvalidParameter(f"There is no output {other[:40]!r}; there are {', '.join(outputs)}.")


def _images(manifest: Manifest) -> Tensor:
    spec = manifest.picture
    size = (-1, -1) if spec.any_size else (spec.height, spec.width)
    return Tensor("images", "UINT8", (*size, spec.channels))


def _codes(manifest: Manifest) -> Tensor:
    spec = manifest.codes
    return Tensor("codes", "INT64", (-1, -1) if manifest.picture.any_size else (spec.height, spec.width))


def _labels(manifest: Manifest) -> Tensor:
    return Tensor("labels", "INT64", ())


async def _encode(request: Request, service: Service, model: Model, asked: InferRequest) -> Arrays:
    pictures = checked_pictures(_input(asked, "images"), service, model)
    count, height, width, _ = pictures.shape
    (codes,) = await finish([model.engine.encode(pictures)], request)
    for _ in range(count):
        model.metrics.picture_pixels.observe(height * width)
    return {"codes": codes}


async def _decode(request: Request, service: Service, model: Model, asked: InferRequest) -> Arrays:
    codes = _input(asked, "codes")
    if codes.ndim != 3:
        raise InvalidCodes(f"codes must be (B,h,w), not {codes.shape}.")
    codes, picture = checked(service, model, codes).codes, model.manifest.picture
    check_json_size(asked, "images", codes.size * picture.multiple_of**2 * picture.channels)
    (images,) = await finish([model.engine.decode(codes)], request)
    return {"images": images}


async def _generate(request: Request, service: Service, model: Model, asked: InferRequest) -> Arrays:
    generator, most = generator_of(model), service.settings.max_samples_per_request
    asked_for = _input(asked, "labels")
    if (count := len(asked_for)) > most:  # before each is looked at
        raise InvalidParameter(f"labels: at most {most} samples a request, not {count}; send several requests.")
    labels = [_label(model.manifest, int(label)) for label in asked_for]
    body = {"n": len(labels), **{name: given for name in SAMPLING if (given := asked.parameters.get(name)) is not None}}
    if (lowest := min(labels)) != _label(model.manifest, -1):
        body["label"] = lowest  # one is enough to allow guidance, which does nothing to samples without a label
    wanted = read_wanted(json.dumps(body).encode(), model.manifest, most)
    picture = model.manifest.picture
    check_json_size(asked, "images", len(labels) * picture.height * picture.width * picture.channels)
    draws = [replace(draw, label=label) for draw, label in zip(wanted.draws, labels, strict=True)]
    model.engine.require_alive()  # before they are drawn in vain
    (codes,) = await finish([generator.submit(draws)], request)
    (images,) = await finish([model.engine.decode(codes, late=True)], request)
    return {"codes": codes, "images": images, "seed": np.full(len(codes), wanted.seed, np.uint64)}


def _label(manifest: Manifest, label: int) -> int:
    assert manifest.prior is not None
    count = manifest.prior.label_count
    if label >= 0 and not count:
        raise InvalidParameter(f"labels has a {label}, but there are no labels: send -1 for each sample.")
    if not -1 <= label < count:
        raise InvalidParameter(f"labels must lie in -1..{count - 1}, not {label}; -1 means none.")
    return count if label == -1 else label


OPERATIONS: Mapping[str, Operation] = {
    "encode": Operation(lambda m: (_images(m),), lambda m: (_codes(m),), _encode),
    "decode": Operation(lambda m: (_codes(m),), lambda m: (_images(m),), _decode),
    "generate": Operation(
        lambda m: (_labels(m),),
        lambda m: (_codes(m), _images(m), Tensor("seed", "UINT64", ())),
        _generate,
        needs_prior=True,
        parameters=SAMPLING,
    ),
}


def _input(asked: InferRequest, name: str) -> NDArray[Any]:
    if set(asked.inputs) != {name}:
        raise InvalidParameter(f"The only input is {name!r}, not {sorted(asked.inputs)}.")
    array = asked.inputs[name]
    expected = 1 if name == "labels" else 3 if name == "codes" else 4
    if array.ndim != expected or array.dtype.kind not in "iu":
        raise InvalidParameter(f"{name} must be whole numbers with {expected} axes, not {array.dtype} {array.shape}.")
    if array.size == 0:
        raise InvalidParameter(f"{name} has the shape {array.shape} and no element; send at least one.")
    return array
