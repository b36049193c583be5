"""Load with a shape, for the picture of the dashboard. In: the address of a service with mnist and photos. Out: how
many answers of each status there were.

Open loop: requests of every kind arrive at random at a rate that rises and falls. On the way there are mistakes,
streams that are left, a reload, more samples and photographs than can be done at once, and at the end photographs where
digits are expected.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx
import numpy as np

from benchmarks.contestants import multipart
from benchmarks.wrk import Request
from docs.images.draw import ROOT, held_out, png
from training.data.arrays import read_idx_folder

RATE = {0.0: 4, 0.2: 24, 0.4: 10, 0.65: 30, 0.85: 36, 1.0: 6}  # part of the run -> requests a second
DIGITS = 100
RELOAD_AT, SAMPLES_AT, PHOTOGRAPHS_AT = 0.06, 0.45, 0.62  # parts of the run
SETTINGS = {"max_queued_samples": 48, "max_generate_batch": 4}  # of the service: few, so that samples have to wait
_TICK_S = 0.05
_PNG, _JPEG, _JSON = ({"Content-Type": kind} for kind in ("image/png", "image/jpeg", "application/json"))
_EVENTS = {**_JSON, "Accept": "text/event-stream"}
_CONTAINER = "application/vnd.vqserve.codes"


@dataclass(frozen=True)
class Kind:
    """Requests of which one is taken at random, between two parts of the run."""

    share: float  # relative to the other kinds
    requests: Sequence[Request]
    during: tuple[float, float] = (0.0, 1.0)
    leaves: bool = False  # after the first piece of the answer


async def apply(url: str, seconds: float) -> Counter[int]:
    limits = httpx.Limits(max_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        return await _Load(client, await kinds(client), seconds).run()


async def kinds(client: httpx.AsyncClient) -> list[Kind]:
    """Codes and containers to send back come from the service itself."""
    test = read_idx_folder(ROOT / "tests" / "fixtures" / "mnist").test
    assert test is not None
    digits = [png(np.asarray(test.images[index])[0]) for index in range(DIGITS)]  # each of (H,W) uint8
    raw = [Request("/encode", digit, _PNG) for digit in digits]
    photographs = [Request("/encode?model=photos", path.read_bytes(), _JPEG) for path in held_out()]
    packing = [Request(one.path, one.body, {**one.headers, "Accept": _CONTAINER}) for one in raw[:10]]
    packed = [(await _send(client, one)).content for one in packing]
    return [
        Kind(30, raw),
        Kind(20, [Request("/encode", *multipart(digit)) for digit in digits]),
        Kind(15, [_decode("/decode", (await _send(client, one)).json()) for one in raw[:20]]),
        Kind(5, packing),
        Kind(5, [Request("/decode", body, {"Content-Type": _CONTAINER}) for body in packed]),
        Kind(3, [Request("/score", digit, _PNG) for digit in digits]),
        Kind(8, photographs),
        Kind(5, [_decode("/decode?model=photos", (await _send(client, one)).json()) for one in photographs]),
        Kind(10, [_json("/generate", {"n": 8, "label": label}) for label in range(10)]),
        Kind(4, [_json("/generate", {"n": 8}, _EVENTS)], leaves=True),
        Kind(2, [Request("/encode", digit[: len(digit) // 2], _PNG) for digit in digits]),
        Kind(8, [Request("/encode?model=faces", digits[0], _PNG)], (0.3, 0.4)),
        Kind(4, [Request("/encode", b"a,b", {"Content-Type": "text/csv"})], (0.35, 0.7)),
        Kind(120, [Request("/encode?fit=resize", one.body, _JPEG) for one in photographs], (0.7, 1.0)),
    ]


def moments(seconds: float) -> list[tuple[float, list[Kind]]]:
    """What arrives at which part of the run: a reload, ten requests for samples a second and now and then two at once,
    of which the queue has room for one, and many photographs at once."""
    samples = [Kind(0, [_json("/generate", {"n": 32})])]
    photographs = [Kind(0, [Request("/encode?model=photos", path.read_bytes(), _JPEG) for path in held_out()])] * 48
    return [
        (RELOAD_AT, [Kind(0, [_json("/models/photos/reload", {})])]),
        *((SAMPLES_AT + number / 10 / seconds, samples * (1 + (number % 5 == 0))) for number in range(100)),
        *((PHOTOGRAPHS_AT + number / seconds, photographs) for number in range(4)),
    ]


def _decode(path: str, encoded: Mapping[str, Any]) -> Request:
    return _json(path, {"codes": encoded["codes"]})


def _json(path: str, value: Mapping[str, Any], headers: Mapping[str, str] = _JSON) -> Request:
    return Request(path, json.dumps(value).encode(), headers)


async def _send(client: httpx.AsyncClient, request: Request) -> httpx.Response:
    answer = await client.post(request.path, content=request.body, headers=request.headers)
    return answer.raise_for_status()


class _Load:
    def __init__(self, client: httpx.AsyncClient, mix: Sequence[Kind], seconds: float) -> None:
        self._client, self._mix, self._seconds = client, mix, seconds
        self._random, self._arrivals = random.Random(0), np.random.default_rng(0)
        self._statuses: Counter[int] = Counter()

    async def run(self) -> Counter[int]:
        later = moments(self._seconds)
        started = monotonic()
        async with asyncio.TaskGroup() as tasks:
            while (part := (monotonic() - started) / self._seconds) < 1:
                due = self._arriving(part)
                while later and part >= later[0][0]:
                    due += later.pop(0)[1]
                for kind in due:
                    tasks.create_task(self._ask(kind))
                await asyncio.sleep(_TICK_S)
        return self._statuses

    def _arriving(self, part: float) -> list[Kind]:
        """What arrives in this tick."""
        rate = np.interp(part, list(RATE), list(RATE.values()))
        mix = [kind for kind in self._mix if kind.during[0] <= part <= kind.during[1]]
        return self._random.choices(mix, [kind.share for kind in mix], k=self._arrivals.poisson(rate * _TICK_S))

    async def _ask(self, kind: Kind) -> None:
        request = self._random.choice(kind.requests)
        async with self._client.stream("POST", request.path, content=request.body, headers=request.headers) as answer:
            self._statuses[answer.status_code] += 1
            async for _ in answer.aiter_raw():
                if kind.leaves:
                    return
