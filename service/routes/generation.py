"""POST /generate. Settings in (JSON), new pictures out: a PNG sheet, JSON, npy, or a stream of rows."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TypeVar

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.errors import (
    BodyTooLarge,
    DeadlinePassed,
    InvalidParameter,
    MalformedRequest,
    NoPrior,
    NotAcceptable,
    UnknownModel,
    UnsupportedMediaType,
)
from service.pictures import images
from service.prior.draws import Codes
from service.prior.generator import generator_of
from service.prior.likelihood import bits_of
from service.prior.scheduler import Scheduler
from service.registry.model import Model
from service.routes import events
from service.routes.encoding import MODEL_QUERY
from service.routes.endpoints import BINARY, PNG_BY_DEFAULT, Endpoint
from service.routes.generation_request import GenerateRequest, Wanted, read_wanted
from service.routes.requests import finish, read_body, read_query
from service.routes.service import Service, service_of
from service.routes.uploads import INLINE_PIXELS
from service.wire import npy
from service.wire.generation_schemas import GenerateAnswer
from service.wire.negotiate import JSON, answer_type, bare_type, unsupported
from service.wire.schemas import LARGE

PNG = "image/png"
SEED_HEADER = "x-vqserve-seed"
ANSWERS = (PNG, JSON, npy.MEDIA_TYPE, events.MEDIA_TYPE)

T = TypeVar("T")


async def generate(request: Request) -> Response:
    service = service_of(request)
    model = service.models.get(read_query(request, ("model",)).get("model"))
    generator = generator_of(model)
    media_type = answer_type(request, ANSWERS)
    wanted = await read_request(request, service, model)
    _require_room(service, model, len(wanted.draws), media_type)
    if media_type == events.MEDIA_TYPE:
        rows = RowStream(service, model, generator, wanted)
        return events.EventStream(request, rows.events(), _headers(wanted), rows.leave)
    if wanted.preview:
        raise InvalidParameter(f"preview: needs Accept: {events.MEDIA_TYPE}.")
    (codes,) = await finish([generator.submit(wanted.draws)], request)
    if media_type == JSON:
        (answer,) = await finish([asyncio.ensure_future(_answer(service, model, wanted, codes))], request)
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), 200, _headers(wanted), JSON)
    (pixels,) = await finish([model.engine.decode(codes, late=True)], request)  # (n,H,W,C) uint8
    if media_type == npy.MEDIA_TYPE:
        return Response(npy.write_npy(pixels), 200, _headers(wanted), media_type)
    content = await _in_thread_if_large(service, pixels, partial(images.write_picture, sheet(pixels)))
    return Response(content, 200, _headers(wanted), media_type)


def _require_room(service: Service, model: Model, count: int, media_type: str) -> None:
    """For what is done with `count` samples, so that none is drawn in vain. Raises QueueFull, NotReady."""
    model.engine.require_alive()
    codes, picture = model.manifest.codes, model.manifest.picture
    pixels = count * codes.height * codes.width * picture.multiple_of**2
    if media_type in (JSON, events.MEDIA_TYPE):
        service.require_room(pixels, prior=True)
    if media_type != npy.MEDIA_TYPE and pixels * picture.channels > INLINE_PIXELS:
        service.require_room(pixels)


async def read_request(request: Request, service: Service, model: Model) -> Wanted:
    body = await read_body(request, service)
    media_type = bare_type(request.headers.get("content-type", ""))
    if media_type != JSON:
        raise unsupported(media_type, (JSON,))
    return read_wanted(body, model.manifest, service.settings.max_samples_per_request)


class RowStream:
    """A job that is read row by row: it is queued at once, so that a full queue is still an answer with a status."""

    def __init__(self, service: Service, model: Model, generator: Scheduler, wanted: Wanted) -> None:
        self._service, self._model, self._wanted = service, model, wanted
        self._rows: asyncio.Queue[tuple[int, Codes] | None] = asyncio.Queue()
        self._drawn = generator.submit(wanted.draws, lambda row, codes: self._rows.put_nowait((row, codes)))
        self._drawn.add_done_callback(lambda _: self._rows.put_nowait(None))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """One a row, as soon as all samples have it, and at last the answer."""
        grids = _fill(self._model, len(self._wanted.draws))
        while (next_row := await self._rows.get()) is not None:
            row, grids[:, next_row[0]] = next_row
            yield events.event("row", {"row": row, "items": await self._items(grids, row)})
        answer = await _answer(self._service, self._model, self._wanted, await self._drawn)
        yield events.event("done", answer)

    def leave(self) -> None:
        """Give up what is not drawn yet."""
        self._drawn.cancel()

    async def _items(self, grids: Codes, row: int) -> list[dict[str, object]]:
        if not self._wanted.preview:
            return [{"codes": codes} for codes in grids[:, row].copy()]
        pictures = await _pictures(self._service, self._model, grids)
        return [{"codes": codes, "image": one} for codes, one in zip(grids[:, row].copy(), pictures, strict=True)]


def _fill(model: Model, count: int) -> Codes:
    """(n,h,w) of the code that training saw most: what a preview shows where nothing is drawn yet."""
    spec = model.manifest.codes
    return np.full((count, spec.height, spec.width), int(np.argmax(model.manifest.code_histogram)), np.int64)


async def _answer(service: Service, model: Model, wanted: Wanted, codes: Codes) -> dict[str, object]:
    pixels = codes.size * model.codec.multiple_of**2
    bits = await service.in_thread(partial(bits_of, model.codec, codes, wanted.labels), pixels, prior=True, late=True)
    items = [
        {"label": wanted.label, "bits": float(bit), "codes": one, "image": picture}
        for bit, one, picture in zip(bits, codes, await _pictures(service, model, codes), strict=True)
    ]
    manifest = model.manifest
    return {"model": manifest.name, "version": manifest.version, "seed": wanted.seed, "items": items}


async def _pictures(service: Service, model: Model, codes: Codes) -> list[str]:
    """codes (n,h,w) -> n PNG files in base64."""
    pixels = await model.engine.decode(codes, late=True)

    def write() -> list[str]:
        return [base64.b64encode(images.write_picture(one)).decode() for one in pixels]

    return await _in_thread_if_large(service, pixels, write)


async def _in_thread_if_large(service: Service, pixels: images.Pixels, write: Callable[[], T]) -> T:
    if pixels.size <= INLINE_PIXELS:
        return write()
    return await service.in_thread(write, pixels[..., 0].size, late=True)


def sheet(pixels: images.Pixels) -> images.Pixels:
    """(n,H,W,C) -> one picture of ceil(sqrt(n)) columns, row by row from the top left; what is left over is black."""
    count, height, width, channels = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = pixels
    grid = cells.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)


def _headers(wanted: Wanted) -> dict[str, str]:
    return {SEED_HEADER: str(wanted.seed)}


GENERATE = Endpoint(
    method="POST",
    path="/generate",
    handler=generate,
    summary="New pictures from the prior",
    description=PNG_BY_DEFAULT,
    query=MODEL_QUERY,
    request={JSON: GenerateRequest},
    answer={PNG: BINARY, JSON: GenerateAnswer, npy.MEDIA_TYPE: BINARY, events.MEDIA_TYPE: {"type": "string"}},
    problems=(
        *(MalformedRequest, UnknownModel, NotAcceptable, BodyTooLarge, UnsupportedMediaType),
        *(InvalidParameter, NoPrior, DeadlinePassed),
    ),
    headers={
        "X-Vqserve-Seed": {
            "description": "The seed that reproduces the answer.",
            "schema": {"type": "integer", **LARGE},
        }
    },
    tag="generation",
)
