"""Work that has been done is not thrown away: the last steps of a request are refused by no queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from service import containers, events, npy
from service.encoding import JSON
from service.threads import LARGE, SMALL, SMALL_PIXELS
from tests.service.serving import until

NPY = {"Content-Type": npy.MEDIA_TYPE}


def test_what_an_engine_has_done_finds_room_where_others_wait(make_generator: Callable[..., TestClient]) -> None:
    """All of these got 429 after their last row or run, and a stream of rows ended with an error."""
    client = make_generator(max_queued_pictures=2)
    digit = npy.write_npy(np.zeros((1, 28, 28, 1), np.uint8))
    codes = npy.write_npy(np.zeros((32, 32), np.int32))
    last_steps: list[Callable[[], Any]] = [
        partial(client.post, "/generate", json={"n": 1}, headers={"Accept": JSON}),
        partial(client.post, "/generate", json={"n": 1}, headers={"Accept": events.MEDIA_TYPE}),
        partial(client.post, "/encode", content=digit, headers={**NPY, "Accept": containers.MEDIA_TYPE}),
        partial(client.post, "/decode?model=colour", content=codes, headers=NPY),
    ]
    service, going_on = client.app.state.service, threading.Event()  # type: ignore[attr-defined]
    assert client.portal is not None
    for pixels in (1, SMALL_PIXELS + 1):
        client.portal.call(service.in_threads, [partial(going_on.wait, 10)] * 5, pixels)

    def waiting() -> float:
        return float(sum(service.metrics.queued_work.labels(size)._value.get() for size in (SMALL, LARGE)))

    held = 4 + 3  # one thread for the small, two for the large
    until(lambda: waiting() == held)
    with ThreadPoolExecutor(len(last_steps)) as threads:
        answers = [threads.submit(step) for step in last_steps]
        try:
            until(lambda: waiting() == held + len(last_steps))
        finally:
            going_on.set()
        assert [answer.result().status_code for answer in answers] == [200] * len(last_steps)
    assert "event: done" in answers[1].result().text
