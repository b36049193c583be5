"""Minutes of everything at once: does anything grow? Encode, decode, generate, bad bodies, clients that leave, scrapes.

Memory, threads and descriptors at the end are compared with those after the first tenth.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.abuse.common import DIGIT, batch_request
from benchmarks.contestants import multipart
from benchmarks.report import goal
from benchmarks.server_process import Server, Usage, our_server

SIZES = {"minutes": (0.25, 20.0), "clients": (8, 16)}
WHAT = "A mix of encode (raw, form, npy), decode, generate (JSON and streams that are left), bad bodies and scrapes."
CONTAINER = "application/vnd.vqserve.codes"
MAX_MEMORY_RATIO = 1.03
_QUIET_S = 1.5  # before a comparison, so that requests in flight do not count
_LOOK_EVERY_S = 5.0


def run(bundle: Path, minutes: float, clients: int) -> dict[str, Any]:
    with our_server(bundle) as server:
        found = asyncio.run(_soak(server, bundle, minutes * 60, clients))
    first, last = found.pop("first"), found.pop("last")
    bad = sum(n for name, n in found["statuses"].items() if name.split()[-1] not in ("200", "expected", "left"))
    return {
        "what": WHAT,
        **found,
        "first": _shown(first),
        "last": _shown(last),
        "goals": [
            goal(
                "memory at the end / after the first tenth", last.rss_bytes / first.rss_bytes, at_most=MAX_MEMORY_RATIO
            ),
            goal("threads more than after the first tenth", last.threads - first.threads, at_most=0),
            goal("descriptors more than after the first tenth", last.descriptors - first.descriptors, at_most=0),
            goal("answers that were not expected", bad, at_most=0),
        ],
    }


def _shown(usage: Usage) -> dict[str, float]:
    return {"rss_mb": round(usage.rss_bytes / 1e6, 1), "threads": usage.threads, "descriptors": usage.descriptors}


async def _soak(server: Server, bundle: Path, seconds: float, clients: int) -> dict[str, Any]:
    started, statuses = time.monotonic(), Counter[str]()
    first = await _until(server, bundle, started + seconds / 10, clients, statuses, [])
    track: list[float] = []
    last = await _until(server, bundle, started + seconds, clients, statuses, track)
    return {"first": first, "last": last, "statuses": dict(sorted(statuses.items())), "rss_mb": track}


async def _until(
    server: Server, bundle: Path, end: float, clients: int, statuses: Counter[str], track: list[float]
) -> Usage:
    """Mixed load until `end`, then a quiet moment, and what the server uses in it. The clients' sockets are closed."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, trust_env=False) as client:
        mix = await Mix.open(client, bundle)
        work = [asyncio.create_task(_ask(mix, end, number, statuses)) for number in range(clients)]
        while time.monotonic() < end:
            await asyncio.sleep(min(_LOOK_EVERY_S, max(0.1, end - time.monotonic())))
            track.append(round(server.usage().rss_bytes / 1e6, 1))
        await asyncio.gather(*work)
    await asyncio.sleep(_QUIET_S)
    return server.usage()


async def _ask(mix: Mix, end: float, seed: int, statuses: Counter[str]) -> None:
    source = random.Random(seed)
    while time.monotonic() < end:
        name = source.choices(mix.names, mix.weights)[0]
        try:
            outcome = await getattr(mix, name)()
        except httpx.TransportError as error:
            outcome = type(error).__name__
        statuses[f"{name} {outcome}"] += 1
        await asyncio.sleep(source.expovariate(1 / 0.005))


class Mix:
    """One method a kind of request; each returns the status, or "expected" for a refusal that is the right answer."""

    def __init__(self, client: httpx.AsyncClient, bundle: Path, codes: list[list[int]], container: bytes, prior: bool):
        self._client = client
        self._form, self._form_headers = multipart(DIGIT.body)
        self._batch = batch_request(bundle)
        self._codes, self._container = codes, container
        self._first: dict[str, bytes] = {}  # answers, by what was asked
        weights = {"raw": 30, "form": 20, "batch": 3, "decode": 15, "compressed": 5, "bad": 10, "scrape": 2}
        if prior:
            weights |= {"generate": 2, "stream": 2, "left_stream": 2}
        self.names, self.weights = list(weights), list(weights.values())

    @classmethod
    async def open(cls, client: httpx.AsyncClient, bundle: Path) -> Mix:
        """Codes and a container to send back come from the server itself."""
        headers = dict(DIGIT.headers)
        codes = (await client.post("/encode", content=DIGIT.body, headers=headers)).raise_for_status().json()["codes"]
        packed = await client.post("/encode", content=DIGIT.body, headers={**headers, "Accept": CONTAINER})
        models = (await client.get("/models")).raise_for_status().json()["models"]
        return cls(client, bundle, codes, packed.raise_for_status().content, models[0]["prior"])

    async def raw(self) -> str:
        return await self._post("/encode", DIGIT.body, dict(DIGIT.headers))

    async def form(self) -> str:
        return await self._post("/encode", self._form, self._form_headers)

    async def batch(self) -> str:
        return await self._post("/encode", self._batch.body, dict(self._batch.headers))

    async def decode(self) -> str:
        """The same picture each time."""
        body = json.dumps({"codes": self._codes}).encode()
        return self._same("decode", await self._client.post("/decode", content=body, headers=_JSON))

    async def compressed(self) -> str:
        headers = {"Content-Type": CONTAINER}
        return self._same("compressed", await self._client.post("/decode", content=self._container, headers=headers))

    async def generate(self) -> str:
        return await self._post("/generate", b'{"n": 4}', _JSON)

    async def stream(self) -> str:
        """Whole: one that fails on its way has the status 200 too."""
        headers = {**_JSON, "Accept": "text/event-stream"}
        answer = await self._client.post("/generate", content=b'{"n": 2}', headers=headers)
        return str(answer.status_code) if "event: done" in answer.text or answer.status_code != 200 else "broken"

    async def left_stream(self) -> str:
        """Reads the first event and goes."""
        headers = {**_JSON, "Accept": "text/event-stream"}
        async with self._client.stream("POST", "/generate", content=b'{"n": 8}', headers=headers) as answer:
            async for _ in answer.aiter_raw():
                return "left"
        return str(answer.status_code)

    async def bad(self) -> str:
        answer = await self._client.post(
            "/encode", content=DIGIT.body[: len(DIGIT.body) // 2], headers=dict(DIGIT.headers)
        )
        return "expected" if answer.status_code == 422 else str(answer.status_code)

    async def scrape(self) -> str:
        return str((await self._client.get("/metrics")).status_code)

    def _same(self, name: str, answer: httpx.Response) -> str:
        if answer.status_code != 200:
            return str(answer.status_code)
        return "200" if answer.content == self._first.setdefault(name, answer.content) else "another answer"

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> str:
        return str((await self._client.post(path, content=body, headers=headers)).status_code)


_JSON = {"Content-Type": "application/json"}
