"""A service that answers what a test says, without a network."""

from __future__ import annotations

import httpx

ITEM = {"label": 3, "bits": 12.5, "codes": [[1, 2], [3, 4]], "image": "iVBORw=="}
DONE = {"model": "tiny", "version": "ab", "seed": 7, "items": [ITEM]}
MODELS = {"models": [{"name": "m", "version": "v", "labels": None}]}


def scripted(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = answers[len(seen) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle), seen
