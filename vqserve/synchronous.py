"""The blocking client. In: Python values. Out: answers, or `ProblemError` when the service refuses for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
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

T = TypeVar("T")


def _before_reading(response: httpx.Response) -> None:
    """Before httpx looks where a redirect leads, which may be no URL. Raises ProblemError."""
    leave_compressed(response)
    if response.has_redirect_location:
        response.read()
        raise problem_of(response)


class Client:
    """One connection pool to one service. `key` is an API key; `transport` replaces the network, for tests."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = connection.TIMEOUT_S,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base_url, auth = connection.base_url(url), connection.login(url)
        headers, timeout = connection.key_header(key, auth), connection.timeout(timeout_s)
        self._retries = connection.require_retries(retries)
        self._streams = threading.Semaphore(connection.MOST_AT_ONCE - 1)
        limits = httpx.Limits(max_connections=connection.MOST_AT_ONCE, max_keepalive_connections=connection.KEPT_ALIVE)
        with connection.from_environment():
            self._http = httpx.Client(
                base_url=base_url,
                auth=auth,
                headers=connection.UNCOMPRESSED | headers,
                timeout=timeout,
                transport=transport,
                limits=limits,
                event_hooks={"response": [_before_reading]},
            )

    def encode(
        self, *pictures: Picture, model: str | None = None, fit: str | None = None, effort: Number | None = None
    ) -> list[Encoded]:
        """Picture files to codes. `fit`: exact (default), resize or pad, where the size differs from the model's.

        `effort` above 0 prefers codes that cost fewer bits.
        """
        return self._run(operations.encode(pictures, model=model, fit=fit, effort=effort))

    def encode_array(
        self, pixels: NDArray[np.uint8], *, model: str | None = None, effort: Number | None = None
    ) -> NDArray[np.int64]:
        """uint8 (B,H,W,C) -> codes (B,h,w)."""
        return self._run(operations.encode_array(pixels, model=model, effort=effort))

    def compress(
        self, *pictures: Picture, model: str | None = None, fit: str | None = None, **packing: Unpack[Packing]
    ) -> bytes:
        """Picture files of one size to one container."""
        return self._run(operations.compress(pictures, model=model, fit=fit, **packing))

    def compress_array(
        self, pixels: NDArray[np.uint8], *, model: str | None = None, **packing: Unpack[Packing]
    ) -> bytes:
        """uint8 (B,H,W,C) to one container."""
        return self._run(operations.compress_array(pixels, model=model, **packing))

    def decode(self, codes: ArrayLike, *, model: str | None = None) -> NDArray[np.uint8]:
        """Codes (h,w) or (B,h,w) -> uint8 (B,H,W,C)."""
        return self._run(operations.decode(codes, model=model))

    def decode_png(self, codes: ArrayLike, *, model: str | None = None) -> bytes:
        """Codes (h,w) -> a PNG file."""
        return self._run(operations.decode_png(codes, model=model))

    def decompress(
        self, container: bytes | Path, *, model: str | None = None, tile: Whole | None = None
    ) -> NDArray[np.uint8]:
        """A container -> uint8 (B,H,W,C); with `tile`, only that tile of an indexed one."""
        return self._run(operations.decompress(container, model=model, tile=tile))

    def generate(self, *, model: str | None = None, **wanted: Unpack[Wanted]) -> Generation:
        """New pictures: `n`, `label`, `seed`, `temperature`, `top_k`, `top_p`, `guidance`, `known`."""
        return self._run(operations.generate(model, wanted))

    def stream(
        self, *, model: str | None = None, **wanted: Unpack[WantedRows]
    ) -> Generator[Row | Generation, None, None]:
        """As `generate`: a `Row` as soon as it is drawn, and at last the `Generation`. `preview=True` for the pictures
        so far with each row, whose codes that are not drawn yet are those that training saw most.

        A stream that has begun is not tried again: what ends it early is raised, as `ProblemError` where the service
        says why.
        """
        operation, events = operations.stream(model, wanted), Events()
        with self._streams:
            response = self._send(operation, stream=True)
            response.encoding = "utf-8"  # of every event stream, whatever its header says
            try:
                for line in response.iter_lines():
                    yield from events.feed(line)
                events.finish()
            finally:
                response.close()

    def score(
        self,
        *pictures: Picture,
        model: str | None = None,
        fit: str | None = None,
        label: Whole | None = None,
        by_label: bool | None = None,
    ) -> list[Score]:
        """How many bits the prior needs for each picture, under `label` or none; `by_label` adds each label in turn."""
        return self._run(operations.score(pictures, model=model, fit=fit, label=label, by_label=by_label))

    def models(self) -> list[ModelInfo]:
        return self._run(operations.models())

    def model(self, name: str) -> ModelInfo:
        return self._run(operations.model(name))

    def __reduce__(self) -> NoReturn:
        """Raises TypeError, where pickle would name a lock inside of httpx."""
        raise TypeError(connection.OF_ONE_PROCESS)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, operation: Operation[T]) -> T:
        return operation.value(self._send(operation))

    def _send(self, operation: Operation[Any], stream: bool = False) -> httpx.Response:
        """The first answer that is a success, after the retries that the service or the network makes necessary."""
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._http.send(operation.request(self._http), stream=stream)
                if response.is_success:
                    return response
                response.read()
            except RETRIED_ERRORS:
                pause_s = self._retries.pause_s(attempt, None)
                if pause_s is None:
                    raise
            else:
                pause_s = self._retries.pause_s(attempt, response)
                if pause_s is None:
                    raise problem_of(response)
            time.sleep(pause_s)
