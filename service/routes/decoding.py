"""POST /decode. Codes in (JSON, npy, or a container), pictures out (PNG, WebP, npy, or JSON with PNGs in base64)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from time import perf_counter
from typing import cast

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from service.errors import (
    BodyTooLarge,
    DeadlinePassed,
    InvalidCodes,
    InvalidContainer,
    InvalidParameter,
    MalformedRequest,
    NotAcceptable,
    PictureTooLarge,
    TooManyItems,
    UnknownModel,
    UnsupportedMediaType,
)
from service.inference import containers
from service.pictures import images
from service.pictures.images import Pixels
from service.prior.draws import Codes
from service.registry.model import Model
from service.routes.encoding import MODEL_QUERY
from service.routes.endpoints import BINARY, PNG_BY_DEFAULT, Endpoint
from service.routes.requests import finish, read_body, read_json_here_or_in_thread, read_query
from service.routes.service import Service, service_of
from service.routes.uploads import INLINE_PIXELS, check_count, check_pixels
from service.wire import npy
from service.wire.negotiate import JSON, answer_type, bare_type, unsupported
from service.wire.schemas import DecodeAnswer, DecodeRequest, excess_of

PICTURE_ANSWERS = ("image/png", "image/webp")
ONE_ANSWERS = (*PICTURE_ANSWERS, npy.MEDIA_TYPE, JSON)
SEVERAL_ANSWERS = (JSON, npy.MEDIA_TYPE)
REQUESTS = (JSON, npy.MEDIA_TYPE, containers.MEDIA_TYPE)
_AGAIN = "encode them again"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks to decode: codes (B,h,w), and the rows and columns of pixels that are wanted of them."""

    codes: Codes
    several: bool
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))
    unpacked: bool = False  # of a container, code by code, which is far more work than to decode them

    def size(self, scale: int) -> tuple[int, int]:
        """Height and width of what is wanted, where a code spans `scale` pixels."""
        _, h, w = self.codes.shape
        return len(range(h * scale)[self.rows]), len(range(w * scale)[self.columns])


async def decode(request: Request) -> Response:
    service = service_of(request)
    query = read_query(request, ("model", "tile"))
    model = service.models.get(query.get("model"))
    started = perf_counter()
    body = await read_body(request, service, model.metrics.observe_stage)
    came = perf_counter()
    if bare_type(request.headers.get("content-type", "")) == containers.MEDIA_TYPE:
        model = _model_of_container(service, body, model, chosen="model" in query)
    wanted = await read_codes(request, service, model, body, _tile(query.get("tile")))
    read = perf_counter()
    observe_stage = model.metrics.observe_stage
    observe_stage("read", started, came if wanted.unpacked else read)
    if wanted.unpacked:  # most of the time of a container, and the prior's
        observe_stage("run", came, read)
    media_type = _answer_type(request, wanted.several)
    height, width = wanted.size(model.manifest.picture.multiple_of)
    images.check_can_hold(media_type, height, width)
    if not wanted.unpacked:
        _require_room(service, model, media_type, len(wanted.codes) * height * width)
    (pixels,) = await finish([model.engine.decode(wanted.codes, late=wanted.unpacked)], request)
    ran = perf_counter()
    response = await _answer(request, service, wanted, pixels[:, wanted.rows, wanted.columns], media_type)
    observe_stage("encode_answer", ran, perf_counter())
    return response


def _answer_type(request: Request, several: bool) -> str:
    if several:
        return answer_type(request, SEVERAL_ANSWERS, "several pictures, or a list of one, are no picture file")
    return answer_type(request, ONE_ANSWERS)


def _require_room(service: Service, model: Model, media_type: str, pixels: int) -> None:
    """Raises QueueFull where there is none to write so many pixels, before the work that would be done for them."""
    if _in_thread(media_type, pixels * model.manifest.picture.channels):
        service.require_room(pixels)


def _in_thread(media_type: str, size: int) -> bool:
    """Whether so many samples of pixels are written as `media_type` in a thread."""
    return media_type != npy.MEDIA_TYPE and size > INLINE_PIXELS


def _model_of_container(service: Service, body: bytes, model: Model, *, chosen: bool) -> Model:
    """The model that made it, if it is served; else `model`, which says what it is not. Raises InvalidContainer."""
    prefix = containers.model_prefix(body)
    made = model if model.codec.prefix == prefix else service.models.of_prefix(prefix) or model
    if chosen and made is not model:
        names = made.manifest.name, model.manifest.name
        raise InvalidContainer("Model {!r} made the container, not {!r}: leave ?model= out.".format(*names))
    return made


def _tile(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidParameter(f"tile must be a whole number from 0 to 999999999, not {text[:40]!r}.")
    return int(text)


async def read_codes(request: Request, service: Service, model: Model, body: bytes, tile: int | None) -> Wanted:
    media_type = bare_type(request.headers.get("content-type", ""))
    if media_type == containers.MEDIA_TYPE:
        announced = containers.announced(model.codec, body, service.settings)
        pixels = announced.pictures * prod(announced.grid) * model.codec.multiple_of**2
        wanted_type = _answer_type(request, tile is None and announced.pictures > 1)  # before codes are read in vain
        if tile is None:
            images.check_can_hold(wanted_type, *announced.size)
            read = partial(_read_container, service, model, body)
        else:  # of which a tile and its neighbours are decoded
            read = partial(_read_tile, service, model, body, tile)
            pixels = min(pixels, 9 * model.manifest.picture.height * model.manifest.picture.width)
        _require_room(service, model, wanted_type, pixels)
        (wanted,) = await finish([service.in_thread(read, pixels, prior=True)], request)
        return cast(Wanted, wanted)
    if tile is not None:
        raise InvalidParameter(f"tile: only a body of {containers.MEDIA_TYPE} has tiles.")
    if media_type == JSON:
        read = partial(_read_json, service, model, body)
        return await read_json_here_or_in_thread(read, len(body), request, service)
    if media_type == npy.MEDIA_TYPE:
        return checked(service, model, npy.read_npy(body))
    raise unsupported(media_type, REQUESTS)


def _read_json(service: Service, model: Model, body: bytes) -> Wanted:
    sent, manifest = request_of_json(body), model.manifest
    served = sent.model != manifest.name and any(one.manifest.name == sent.model for one in service.models)
    _require_same("model", sent.model, manifest.name, f"pass ?model={sent.model}" if served else _AGAIN)
    _require_same("version", sent.version, manifest.version)
    _require_same("codebook_size", sent.codebook_size, manifest.codes.codebook_size)
    wanted = checked(service, model, grids(sent))
    h, w = wanted.codes.shape[1:]
    _require_same("shape", sent.shape, [h, w])
    full = h * manifest.picture.multiple_of, w * manifest.picture.multiple_of
    height, width = sent.height or full[0], sent.width or full[1]
    if height > full[0] or width > full[1]:
        raise InvalidCodes(f"height and width are {(height, width)}, the codes give {full}.")
    return replace(wanted, rows=slice(height), columns=slice(width))


def _require_same(name: str, given: object, expected: object, fix: str = _AGAIN) -> None:
    if given is not None and given != expected:
        short = given[:70] if isinstance(given, str) else given  # of 32 MB it would take the event loop's time
        was = f"{short!r:.70}"  # a version has 66 characters
        raise InvalidCodes(f"{name} is {was}, the codes would be decoded with {expected!r}: {fix}.")


def _read_container(service: Service, model: Model, body: bytes) -> Wanted:
    decoded = containers.unpack(model.codec, body, service.settings)
    height, width = decoded.size
    return Wanted(decoded.codes, len(decoded.codes) > 1, slice(height), slice(width), unpacked=True)


def _read_tile(service: Service, model: Model, body: bytes, tile: int) -> Wanted:
    found = containers.unpack_tile(model.codec, body, tile, service.settings)
    return Wanted(found.codes, False, *containers.tile_pixels(model.codec, found), unpacked=True)


def request_of_json(body: bytes) -> DecodeRequest:
    """The parsed body.

    Raises:
        TooManyItems: more than is parsed. MalformedRequest: not JSON. InvalidCodes: not `{"codes": [[...], ...]}`.
    """
    if excess := excess_of(body):
        raise TooManyItems(f"The JSON has {excess}; send {npy.MEDIA_TYPE}, a container, or several requests.")
    try:
        return DecodeRequest.model_validate_json(body)
    except ValidationError as error:
        first = _telling(error.errors(include_url=False, include_input=False))
        if first["type"] == "json_invalid":
            raise MalformedRequest(f"The body is not JSON: {first['msg']}.") from error
        name, *rest = first["loc"] or ("the body",)
        if first["type"] == "extra_forbidden":
            known = ", ".join(DecodeRequest.model_fields)
            raise InvalidCodes(f"Unknown field {str(name)[:40]!r}; there are {known}.") from error
        where = ".".join(map(str, (name, *(part for part in rest if isinstance(part, int)))))
        raise InvalidCodes(
            f'Send {{"codes": rows of whole numbers from 0}}, or several of them; {where}: {first["msg"]}.'
        ) from error


def _telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first one. Where codes were read as one grid and as several: that of the reading which came further."""
    of_first_field = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
    return max(of_first_field, key=lambda one: [part for part in one["loc"] if isinstance(part, int)])


def grids(sent: DecodeRequest) -> Codes:
    try:
        return np.array(sent.codes, np.int64)
    except ValueError as error:
        raise InvalidCodes("All rows must have the same length, and all grids the same shape.") from error


def checked(service: Service, model: Model, codes: NDArray[np.generic]) -> Wanted:
    """Codes (h,w) or (B,h,w) that this model can decode, as int64 (B,h,w).

    Raises:
        InvalidCodes: not integers, another shape, or out of [0, K). TooManyItems, PictureTooLarge: over a limit.
    """
    manifest, several = model.manifest, codes.ndim == 3
    if codes.dtype.kind not in "iu" or codes.ndim not in (2, 3) or 0 in codes.shape:
        raise InvalidCodes(f"Send integer codes (h,w) or (B,h,w), not {codes.dtype} {codes.shape}.")
    batch = codes if several else codes[None]
    count, height, width = batch.shape
    native = (manifest.codes.height, manifest.codes.width)
    if not manifest.picture.any_size and (height, width) != native:
        raise InvalidCodes(f"The model takes grids of {native} codes (h,w), not {(height, width)}.")
    check_count(service, count)
    scale = manifest.picture.multiple_of
    check_pixels(service, count, height * scale, width * scale)
    largest = manifest.codes.codebook_size - 1
    if batch.min() < 0 or batch.max() > largest:
        raise InvalidCodes(f"Codes must lie in 0..{largest}; these span {batch.min()}..{batch.max()}.")
    return Wanted(np.ascontiguousarray(batch, np.int64), several)


async def _answer(request: Request, service: Service, wanted: Wanted, pixels: Pixels, media_type: str) -> Response:
    if media_type == npy.MEDIA_TYPE:
        array = np.ascontiguousarray(pixels if wanted.several else pixels[0])
        return Response(npy.write_npy(array), media_type=media_type)
    write = partial(_write, pixels, media_type)
    if not _in_thread(media_type, pixels.size):
        return Response(write(), media_type=media_type)
    (content,) = await finish([service.in_thread(write, pixels[..., 0].size, late=True)], request)
    return Response(content, media_type=media_type)


def _write(pixels: Pixels, media_type: str) -> bytes:
    if media_type != JSON:
        return images.write_picture(pixels[0], media_type)
    files = [base64.b64encode(images.write_picture(one)).decode() for one in pixels]
    return orjson.dumps({"items": [{"image": file} for file in files]})


_TILE_SCHEMA = {
    "type": "integer",
    "minimum": 0,
    "description": "Only this tile of an indexed container, counted picture by picture and row by row.",
}

DECODE = Endpoint(
    method="POST",
    path="/decode",
    handler=decode,
    summary="Codes to pictures",
    description=PNG_BY_DEFAULT,
    query={**MODEL_QUERY, "tile": _TILE_SCHEMA},
    request={JSON: DecodeRequest, npy.MEDIA_TYPE: BINARY, containers.MEDIA_TYPE: BINARY},
    answer={**dict.fromkeys((*PICTURE_ANSWERS, npy.MEDIA_TYPE), BINARY), JSON: DecodeAnswer},
    problems=(
        *(MalformedRequest, UnknownModel, NotAcceptable, BodyTooLarge, PictureTooLarge, TooManyItems),
        *(UnsupportedMediaType, InvalidCodes, InvalidContainer, InvalidParameter, DeadlinePassed),
    ),
)
