"""The asyncio client. In: Python values. Out: answers, or `ProblemError` when the service refuses for good."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, Unpack

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqserve import connection, operations
from vqserve.answers import Encoded, Generation, ModelInfo, Row, Score
from vqserve.events import Events
from vqserve.operations import Number, Operation, Packing, Picture, Wanted, WantedRows, Whole
from vqserve.problems import leave_compressed, problem_of
from vqserve.retries import RETRIED_ERRORS, Retries
from vqserve.scopes import in_scope

T = TypeVar("T")


async def _before_reading(response: httpx.Response) -> None:
    """Before httpx looks where a redirect leads, which may be no URL. Raises ProblemError."""
    leave_compressed(response)
    if response.has_redirect_location:
        await response.aread()
        raise problem_of(response)


@contextmanager
def _broken_tls(request: httpx.Request) -> Iterator[None]:
    """Around what a connection sends and receives: httpx's asyncio network lets the errors of `ssl` through, where the
    blocking one raises httpx's own."""
    try:
        yield
    except ssl.SSLError as error:
        raise httpx.ReadError(str(error), request=request) from error


class AsyncClient:
    """One connection pool to one service. `key` is an API key; `transport` replaces the network, for tests."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = connection.TIMEOUT_S,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base_url, auth = connection.base_url(url), connection.login(url)
        headers, timeout = connection.key_header(key, auth), connection.timeout(timeout_s)
        self._retries = connection.require_retries(retries)
        self._places = asyncio.Semaphore(connection.MOST_AT_ONCE)
        self._streams = asyncio.Semaphore(connection.MOST_AT_ONCE - 1)
        with connection.from_environment():
            self._http = httpx.AsyncClient(
                base_url=base_url,
                auth=auth,
                headers=connection.UNCOMPRESSED | headers,
                timeout=timeout,
                transport=transport,
                limits=connection.UNCOUNTED,
                event_hooks={"response": [_before_reading]},
            )

    async def encode(
        self, *pictures: Picture, model: str | None = None, fit: str | None = None, effort: Number | None = None
    ) -> list[Encoded]:
        """Picture files to codes. `fit`: exact (default), resize or pad, where the size differs from the model's.

        `effort` above 0 prefers codes that cost fewer bits.
        """
        return await self._run(operations.encode(pictures, model=model, fit=fit, effort=effort))

    async def encode_array(
        self, pixels: NDArray[np.uint8], *, model: str | None = None, effort: Number | None = None
    ) -> NDArray[np.int64]:
        """uint8 (B,H,W,C) -> codes (B,h,w)."""
        return await self._run(operations.encode_array(pixels, model=model, effort=effort))

    async def compress(
        self, *pictures: Picture, model: str | None = None, fit: str | None = None, **packing: Unpack[Packing]
    ) -> bytes:
        """Picture files of one size to one container."""
        return await self._run(operations.compress(pictures, model=model, fit=fit, **packing))

    async def compress_array(
        self, pixels: NDArray[np.uint8], *, model: str | None = None, **packing: Unpack[Packing]
    ) -> bytes:
        """uint8 (B,H,W,C) to one container."""
        return await self._run(operations.compress_array(pixels, model=model, **packing))

    async def decode(self, codes: ArrayLike, *, model: str | None = None) -> NDArray[np.uint8]:
        """Codes (h,w) or (B,h,w) -> uint8 (B,H,W,C)."""
        return await self._run(operations.decode(codes, model=model))

    async def decode_png(self, codes: ArrayLike, *, model: str | None = None) -> bytes:
        """Codes (h,w) -> a PNG file."""
        return await self._run(operations.decode_png(codes, model=model))

    async def decompress(
        self, container: bytes | Path, *, model: str | None = None, tile: Whole | None = None
    ) -> NDArray[np.uint8]:
        """A container -> uint8 (B,H,W,C); with `tile`, only that tile of an indexed one."""
        return await self._run(operations.decompress(container, model=model, tile=tile))

    async def generate(self, *, model: str | None = None, **wanted: Unpack[Wanted]) -> Generation:
        """New pictures: `n`, `label`, `seed`, `temperature`, `top_k`, `top_p`, `guidance`, `known`."""
        return await self._run(operations.generate(model, wanted))

    async def stream(
        self, *, model: str | None = None, **wanted: Unpack[WantedRows]
    ) -> AsyncGenerator[Row | Generation, None]:
        """As `generate`: a `Row` as soon as it is drawn, and at last the `Generation`. `preview=True` for the pictures
        so far with each row, whose codes that are not drawn yet are those that training saw most.

        A stream that has begun is not tried again: what ends it early is raised, as `ProblemError` where the service
        says why.
        """
        operation, events = operations.stream(model, wanted), Events()
        async with self._streams, self._places:
            response = await self._send(operation, stream=True)
            response.encoding = "utf-8"  # of every event stream, whatever its header says
            try:
                with _broken_tls(response.request):
                    lines = response.aiter_lines()
                    while (line := await in_scope(partial(anext, lines, None))) is not None:
                        for value in events.feed(line):
                            yield value
                events.finish()
            finally:
                await in_scope(response.aclose)

    async def score(
        self,
        *pictures: Picture,
        model: str | None = None,
        fit: str | None = None,
        label: Whole | None = None,
        by_label: bool | None = None,
    ) -> list[Score]:
        """How many bits the prior needs for each picture, under `label` or none; `by_label` adds each label in turn."""
        return await self._run(operations.score(pictures, model=model, fit=fit, label=label, by_label=by_label))

    async def models(self) -> list[ModelInfo]:
        return await self._run(operations.models())

    async def model(self, name: str) -> ModelInfo:
        return await self._run(operations.model(name))

    def __reduce__(self) -> NoReturn:
        """Raises TypeError, where pickle would name a lock inside of httpx."""
        raise TypeError(connection.OF_ONE_PROCESS)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, operation: Operation[T]) -> T:
        async with self._places:
            return operation.value(await self._send(operation))

    async def _send(self, operation: Operation[Any], stream: bool = False) -> httpx.Response:
        """The first answer that is a success, after the retries that the service or the network makes necessary."""
        attempt = 0
        while True:
            attempt += 1
            request = operation.request(self._http)
            try:
                response = await in_scope(partial(self._sent, request, stream), httpx.Response.aclose)
                if response.is_success:
                    return response
            except RETRIED_ERRORS:
                pause_s = self._retries.pause_s(attempt, None)
                if pause_s is None:
                    raise
            else:
                pause_s = self._retries.pause_s(attempt, response)
                if pause_s is None:
                    raise problem_of(response)
            await asyncio.sleep(pause_s)

    async def _sent(self, request: httpx.Request, stream: bool) -> httpx.Response:
        """The answer; one that is no success has been read."""
        with _broken_tls(request):
            response = await self._http.send(request, stream=stream)
            if not response.is_success:
                await response.aread()
        return response
