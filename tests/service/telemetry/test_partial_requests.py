"""What metrics say of requests that did not go to their end: bodies in part, pictures without codes, clients gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.service import bad_inputs as bad
from tests.service.inference.test_engine import Slow, engine_of
from tests.service.serving import until

NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
DIGITS = np.zeros((2, 28, 28, 1), np.uint8)
LEFT = None  # the client has
DEADLINE_MS = 300
MakeClient = Callable[..., TestClient]


def value(client: TestClient, name: str, **labels: str) -> float:
    registry = client.app.state.service.metrics.registry  # type: ignore[attr-defined]
    return float(registry.get_sample_value(f"vqserve_{name}", labels) or 0.0)


def ask(client: TestClient, path: str, chunks: Sequence[bytes | None]) -> tuple[int, bytes]:
    """Send these parts of a body, of which another is always to come. Out: the status and the body of the answer."""
    coming, sent = list(chunks), list[Any]()

    async def receive() -> dict[str, object]:
        if not coming:
            await asyncio.Event().wait()
        chunk = coming.pop(0)
        if chunk is LEFT:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/x-npy")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)  # type: ignore[arg-type]
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("path", ["/encode", "/decode"])
@pytest.mark.parametrize(("chunks", "status"), [([b"a" * 60] * 2, 413), ([b"a" * 60], 504), ([b"a" * 60, LEFT], 499)])
def test_a_body_that_is_not_read_whole_is_counted(
    make_client: MakeClient, path: str, chunks: list[bytes | None], status: int
) -> None:
    """Neither its bytes were nor the time of its reading, which a slow upload spends its whole deadline with."""
    client = make_client(max_body_bytes=100, request_deadline_ms=DEADLINE_MS)
    answered, body = ask(client, path, chunks)
    assert answered == status
    assert value(client, "received_bytes_total") == sum(len(chunk or b"") for chunk in chunks)
    stage = {"model": "tiny", "stage": "read"}
    assert value(client, "stage_duration_seconds_count", **stage) == 1
    waited_s = value(client, "stage_duration_seconds_sum", **stage)
    assert (waited_s >= DEADLINE_MS / 1e3 - 0.02) == (status == 504)
    assert value(client, "sent_bytes_total") == (0 if status == 499 else len(body))  # to nobody, else as it was sent


@pytest.mark.parametrize("path", ["/encode", "/v2/models/tiny.encode/infer"])
def test_pictures_that_were_not_encoded_are_not_counted(make_client: MakeClient, path: str) -> None:
    """Those of a request that was refused, or not answered in time, were."""
    client = make_client(inline_ms=0, max_batch=1, request_deadline_ms=DEADLINE_MS)
    engine = engine_of(client)
    engine._encoder = slow = Slow(engine._encoder)
    tensor = {"name": "images", "shape": DIGITS.shape, "datatype": "UINT8", "data": DIGITS.ravel().tolist()}

    def send() -> int:
        if path == "/encode":
            return client.post(path, content=bad.npy(DIGITS), headers=NPY).status_code
        return client.post(path, json={"inputs": [tensor]}).status_code

    assert send() == 504
    assert value(client, "picture_pixels_count", model="tiny") == 0
    slow.gate.set()
    until(lambda: send() == 200)
    assert value(client, "picture_pixels_count", model="tiny") == len(DIGITS)
