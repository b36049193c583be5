"""POST /encode. Pictures in (a form, a raw picture, or an npy batch), their codes out (JSON, npy, or a container)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, cast

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.errors import (
    BodyTooLarge,
    DeadlinePassed,
    InvalidParameter,
    MalformedRequest,
    NotAcceptable,
    NotAPicture,
    PictureTooLarge,
    TooManyItems,
    UnknownModel,
    UnsupportedMediaType,
    WrongPictureSize,
)
from service.inference import containers
from service.pictures import images
from service.pictures.images import Picture
from service.prior.draws import Codes
from service.prior.effort import LARGEST_EFFORT, choose_codes
from service.registry.model import Model
from service.routes.endpoints import BINARY, Endpoint
from service.routes.requests import finish, read_body, read_query
from service.routes.service import Service, service_of
from service.routes.uploads import FORM, Upload, fit_of, read_upload
from service.wire import npy
from service.wire.multipart import FIELD
from service.wire.negotiate import JSON, answer_type
from service.wire.schemas import EncodeAnswer, EncodeManyAnswer

ANSWERS = (JSON, npy.MEDIA_TYPE, containers.MEDIA_TYPE)
# `float` also reads Arabic digits, and 0_1. As in every pattern for what strangers send, no two repeats in succession
# match the same characters: the time would grow with the square of their number.
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


async def encode(request: Request) -> Response:
    service = service_of(request)
    query = read_query(request, ("model", "fit", "effort", "label", "indexed"))
    model = service.models.get(query.get("model"))
    media_type = answer_type(request, ANSWERS)
    packing, effort = _packing(model, query, media_type), _effort(model, query.get("effort", "0"))
    if not effort:
        model.engine.refuse_early()
    observe_stage = model.metrics.observe_stage
    started = perf_counter()
    body = await read_body(request, service, observe_stage)
    read = perf_counter()
    upload = await read_upload(request, service, model, body, fit_of(query.get("fit")))
    decoded = perf_counter()
    _check_answer(service, model, upload.pictures, media_type)
    if effort:
        codes = await choose_with_effort(request, service, model, upload.pictures, effort, packing.label)
        observe_stage("run", decoded, perf_counter())
    else:
        codes = await encode_pictures(request, model, upload.pictures)
    ran = perf_counter()
    response = await _answer(request, service, model, upload, codes, media_type, packing)
    observe_stage("read", started, read)
    observe_stage("decode_picture", read, decoded)
    observe_stage("encode_answer", ran, perf_counter())
    return response


@dataclass(frozen=True, slots=True)
class Packing:
    """What a request asks of a container: the label that its prior may use, and an index of tiles."""

    label: int | None
    indexed: bool


def _packing(model: Model, query: Mapping[str, str], media_type: str) -> Packing:
    packing = Packing(label_of(model, query.get("label")), flag_of("indexed", query.get("indexed", "false")))
    asked = "indexed" if packing.indexed else "label" if packing.label is not None else None
    if asked and media_type != containers.MEDIA_TYPE:
        raise InvalidParameter(f"{asked}: needs Accept: {containers.MEDIA_TYPE}.")
    if packing.indexed and packing.label is not None:
        raise InvalidParameter("label: an indexed container has no place for one; leave one of the two out.")
    return packing


def _effort(model: Model, text: str) -> float:
    effort = float(text) if _NUMBER.fullmatch(text) else -1.0
    if not 0 <= effort <= LARGEST_EFFORT:
        raise InvalidParameter(f"effort must be a number in 0..{LARGEST_EFFORT:g}, not {text[:40]!r}.")
    if effort and model.codec.latents is None:
        name = model.manifest.name
        raise InvalidParameter(f"effort: model {name!r} was exported without a prior or without its distances graph.")
    return effort


def label_of(model: Model, text: str | None) -> int | None:
    count = model.manifest.prior.label_count if model.manifest.prior else 0
    if text is not None and (not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) >= count):
        if not count:
            raise InvalidParameter(f"label is {text[:40]!r}, but there are no labels: leave it out.")
        raise InvalidParameter(
            f"label must be a whole number in 0..{count - 1}, not {text[:40]!r}: GET /models lists the labels' names "
            "in this order."
        )
    return None if text is None else int(text)


def flag_of(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise InvalidParameter(f"{name} must be true or false, not {text[:40]!r}.")
    return text == "true"


async def encode_pictures(request: Request, model: Model, pictures: Sequence[Picture]) -> list[Codes]:
    """The codes (h,w) of each picture, in order; pictures of one size travel together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for position, picture in enumerate(pictures):
        by_shape.setdefault(picture.pixels.shape, []).append(position)
    groups = [[pictures[position].pixels for position in positions] for positions in by_shape.values()]
    arrays = [np.stack(same) if len(same) > 1 else same[0][None] for same in groups]
    results = await finish(model.engine.encode_all(arrays), request)
    for picture in pictures:
        model.metrics.picture_pixels.observe(picture.pixels.shape[0] * picture.pixels.shape[1])
    ordered: list[Codes] = [np.empty(0, np.int64)] * len(pictures)
    for positions, codes in zip(by_shape.values(), results, strict=True):
        for position, one in zip(positions, codes, strict=True):
            ordered[position] = one
    return ordered


async def choose_with_effort(
    request: Request, service: Service, model: Model, pictures: Sequence[Picture], effort: float, label: int | None
) -> list[Codes]:
    """As `encode_pictures`, but codes that cost fewer bits, chosen in a thread; pictures of one size go together."""
    assert model.codec.prior is not None
    pixels = [picture.pixels for picture in pictures]
    together = [np.stack(pixels)] if len({one.shape for one in pixels}) == 1 else [one[None] for one in pixels]
    used = model.codec.prior.no_label if label is None else label

    def choose() -> list[Codes]:
        batches = (choose_codes(model.codec, batch, effort, np.full(len(batch), used)) for batch in together)
        return [codes for batch in batches for codes in batch]

    size = sum(one[..., 0].size for one in pixels)
    (found,) = await finish([service.in_thread(choose, size, prior=True)], request)
    codes = cast(list[Codes], found)
    for picture, grid in zip(pixels, codes, strict=True):
        model.metrics.picture_pixels.observe(picture.shape[0] * picture.shape[1])
        model.metrics.traffic.add(grid)
    return codes


def _check_answer(service: Service, model: Model, pictures: Sequence[Picture], media_type: str) -> None:
    """Before the codes are made: whether such an answer can hold them, and whether there is room for its making.

    Raises:
        WrongPictureSize, InvalidParameter: it cannot. QueueFull: too much waits for a thread.
    """
    if media_type == containers.MEDIA_TYPE:
        _only_size(pictures)
        service.require_room(sum(picture.pixels[..., 0].size for picture in pictures), prior=True)
    elif media_type == npy.MEDIA_TYPE and len({picture.pixels.shape for picture in pictures}) > 1:
        raise InvalidParameter(f"The codes differ in shape, which one array cannot hold; accept {JSON}.")


async def _answer(
    request: Request,
    service: Service,
    model: Model,
    upload: Upload,
    codes: Sequence[Codes],
    media_type: str,
    packing: Packing,
) -> Response:
    if media_type == JSON:
        return Response(_json(model, upload, codes), media_type=JSON)
    if media_type == npy.MEDIA_TYPE:
        array = np.stack(codes).astype(np.int32)
        return Response(npy.write_npy(array if upload.several else array[0]), media_type=npy.MEDIA_TYPE)
    size = _only_size(upload.pictures)
    grids = np.stack(codes)
    pack = partial(containers.pack, model.codec, grids, size, packing.label, packing.indexed)
    pixels = grids.size * model.codec.multiple_of**2
    (content,) = await finish([service.in_thread(pack, pixels, prior=True, late=True)], request)
    return Response(content, media_type=containers.MEDIA_TYPE)


def _only_size(pictures: Sequence[Picture]) -> tuple[int, int]:
    """Height and width of all of them. Raises WrongPictureSize where one differs from the first."""
    first = pictures[0]
    for number, picture in enumerate(pictures, 1):
        if (picture.height, picture.width) != (first.height, first.width):
            raise WrongPictureSize(
                f"Picture {number} of {len(pictures)}: it is {picture.width}x{picture.height}, the first one "
                f"{first.width}x{first.height}, and one container holds pictures of one size."
            )
    return first.height, first.width


def _json(model: Model, upload: Upload, codes: Sequence[Codes]) -> bytes:
    manifest = model.manifest
    head = {"model": manifest.name, "version": manifest.version}
    items = [
        {
            **head,  # in each, so that none is decoded by another model
            "width": picture.width,
            "height": picture.height,
            "shape": one.shape,
            "codes": np.ascontiguousarray(one),
            "codebook_size": manifest.codes.codebook_size,
        }
        for picture, one in zip(upload.pictures, codes, strict=True)
    ]
    answer = {**head, "items": items} if upload.several else items[0]
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


MODEL_QUERY: dict[str, dict[str, Any]] = {
    "model": {"type": "string", "description": "Name of the model; the default one without it."}
}
_FIT_SCHEMA: dict[str, Any] = {"type": "string", "enum": list(images.FITS), "default": images.FITS[0]}
_FORM_SCHEMA = {
    "type": "object",
    "required": [FIELD],
    "properties": {FIELD: {"type": "array", "minItems": 1, "items": BINARY}},
    "additionalProperties": False,
}

_EFFORT_SCHEMA = {
    "type": "number",
    "minimum": 0,
    "maximum": LARGEST_EFFORT,
    "default": 0,
    "description": "How much a bit weighs against distortion when codes are chosen; 0 takes those of the quantizer.",
}
PICTURE_QUERY = {**MODEL_QUERY, "fit": _FIT_SCHEMA}
_LABEL_SCHEMA = {
    "type": "integer",
    "minimum": 0,
    "description": "Container only: the label of all pictures; it is stored where it makes the container shorter. "
    "Not with `indexed`.",
}
_INDEXED_SCHEMA = {
    "type": "boolean",
    "default": False,
    "description": "Container only: every tile can be decoded alone (/decode?tile=), for about 6 bytes a tile.",
}

ENCODE = Endpoint(
    method="POST",
    path="/encode",
    handler=encode,
    summary="Pictures to codes",
    query={**PICTURE_QUERY, "effort": _EFFORT_SCHEMA, "label": _LABEL_SCHEMA, "indexed": _INDEXED_SCHEMA},
    request={FORM: _FORM_SCHEMA, **dict.fromkeys((*images.MEDIA_TYPES, npy.MEDIA_TYPE), BINARY)},
    answer={JSON: (EncodeAnswer, EncodeManyAnswer), npy.MEDIA_TYPE: BINARY, containers.MEDIA_TYPE: BINARY},
    problems=(
        *(MalformedRequest, UnknownModel, NotAcceptable, BodyTooLarge, PictureTooLarge, TooManyItems),
        *(UnsupportedMediaType, NotAPicture, WrongPictureSize, InvalidParameter, DeadlinePassed),
    ),
)
