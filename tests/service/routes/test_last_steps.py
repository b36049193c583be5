"""The last steps of a request run in threads. Whether there is room is asked before the work that they need is done;
after it no queue refuses them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.inference import containers
from service.pictures.images import write_picture
from service.routes import events
from service.routes.encoding import JSON
from service.routes.service import Service
from service.threads import LARGE, PRIOR, SMALL, SMALL_PIXELS
from service.wire import npy
from tests.service.inference.test_engine import Slow, engine_of
from tests.service.serving import until

NPY = {"Content-Type": npy.MEDIA_TYPE}
HELD = 3 * 3  # calls that wait, three for each pool


def last_steps(client: TestClient) -> list[Callable[[], Any]]:
    """Requests that end in a thread: bits, a container, a large picture file, a score."""
    digit = npy.write_npy(np.zeros((1, 28, 28, 1), np.uint8))
    codes = npy.write_npy(np.zeros((32, 32), np.int32))
    return [
        partial(client.post, "/generate", json={"n": 1}, headers={"Accept": JSON}),
        partial(client.post, "/generate", json={"n": 1}, headers={"Accept": events.MEDIA_TYPE}),
        partial(client.post, "/encode", content=digit, headers={**NPY, "Accept": containers.MEDIA_TYPE}),
        partial(client.post, "/decode?model=colour", content=codes, headers=NPY),
        partial(client.post, "/score", content=digit, headers=NPY),
    ]


def waiting(client: TestClient) -> float:
    gauge = client.app.state.service.metrics.queued_work  # type: ignore[attr-defined]
    return float(sum(gauge.labels(size)._value.get() for size in (SMALL, LARGE, PRIOR)))


@contextmanager
def full_pools(client: TestClient) -> Iterator[None]:
    service, going_on = client.app.state.service, threading.Event()  # type: ignore[attr-defined]
    assert client.portal is not None
    for pixels, prior, calls in ((1, False, 4), (SMALL_PIXELS + 1, False, 5), (SMALL_PIXELS + 1, True, 5)):
        client.portal.call(partial(service.in_threads, [partial(going_on.wait, 10)] * calls, pixels, prior=prior))
    try:
        until(lambda: waiting(client) == HELD)
        yield
    finally:
        going_on.set()


def runs(client: TestClient) -> float:
    """Of engines and of the sampler, in pictures and rows."""
    lines = client.get("/metrics").text.splitlines()
    names = ("vqserve_batch_pictures_sum", "vqserve_generate_rows_total")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


def test_what_an_engine_has_done_finds_room_where_others_wait(
    make_generator: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of these got 429 after their last row or run, and a stream of rows ended with an error."""
    monkeypatch.setattr(Service, "require_room", lambda *_, **__: None)  # the pools have been filled since
    client = make_generator(max_queued_pictures=2)
    steps = last_steps(client)
    with ThreadPoolExecutor(len(steps)) as threads:
        with full_pools(client):
            answers = [threads.submit(step) for step in steps]
            until(lambda: waiting(client) == HELD + len(steps))
        assert [answer.result().status_code for answer in answers] == [200] * len(steps)
    assert "event: done" in answers[1].result().text


def test_without_room_for_the_last_step_nothing_is_done(make_generator: Callable[..., TestClient]) -> None:
    """Else engines and sampler would go on making what waits for a thread without a bound."""
    client = make_generator(max_queued_pictures=2)
    steps = last_steps(client)
    with full_pools(client):
        before = runs(client)
        assert [step().status_code for step in steps] == [429] * len(steps)
        assert runs(client) == before
    until(lambda: waiting(client) == 0)
    assert [step().status_code for step in steps] == [200] * len(steps)
    assert runs(client) > before


def test_a_container_is_not_unpacked_where_its_picture_could_not_be_written(
    make_generator: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes seconds of a photograph; it was done, and then refused with 429."""
    client = make_generator(max_queued_pictures=2)
    service = client.app.state.service  # type: ignore[attr-defined]
    digits = npy.write_npy(np.zeros((100, 28, 28, 1), np.uint8))
    packed = client.post("/encode", content=digits, headers={**NPY, "Accept": containers.MEDIA_TYPE}).content
    unpacked: list[str] = []
    unpack = containers.unpack
    monkeypatch.setattr(containers, "unpack", lambda *given: (unpacked.append("once"), unpack(*given))[1])
    headers = {"Content-Type": containers.MEDIA_TYPE, "Accept": JSON}
    going_on = threading.Event()
    assert client.portal is not None
    client.portal.call(partial(service.in_threads, [partial(going_on.wait, 10)] * 5, SMALL_PIXELS + 1))
    until(lambda: waiting(client) == 3)
    assert client.post("/decode", content=packed, headers=headers).status_code == 429
    assert not unpacked
    going_on.set()
    until(lambda: waiting(client) == 0)
    assert client.post("/decode", content=packed, headers=headers).status_code == 200
    assert unpacked == ["once"]


def test_a_container_that_is_unpacked_is_decoded_however_many_wait(make_generator: Callable[..., TestClient]) -> None:
    client = make_generator(max_queued_pictures=2, inline_ms=0)
    engine = engine_of(client, "digits")
    digit, codes = npy.write_npy(np.zeros((1, 28, 28, 1), np.uint8)), npy.write_npy(np.zeros((7, 7), np.int32))
    packed = client.post("/encode", content=digit, headers={**NPY, "Accept": containers.MEDIA_TYPE}).content
    engine._decoder = slow = Slow(engine._decoder)
    decode = partial(client.post, "/decode", content=codes, headers=NPY)
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(decode)]
        until(lambda: slow.runs == 1)
        answers += [threads.submit(decode) for _ in range(2)]
        until(lambda: engine._decode.queued == 2)
        assert decode().status_code == 429
        answers.append(threads.submit(decode, content=packed, headers={"Content-Type": containers.MEDIA_TYPE}))
        until(lambda: engine._decode.queued == 3)
        slow.gate.set()
    assert {answer.result().status_code for answer in answers} == {200}


def test_pictures_of_several_sizes_are_refused_before_they_are_encoded(
    make_generator: Callable[..., TestClient],
) -> None:
    client = make_generator()
    files = [("img", write_picture(np.zeros((side, side, 3), np.uint8))) for side in (16, 32)]
    before = runs(client)
    for accept, status in ((containers.MEDIA_TYPE, 422), (npy.MEDIA_TYPE, 422)):
        assert client.post("/encode?model=colour", files=files, headers={"Accept": accept}).status_code == status
    assert runs(client) == before


def test_several_pictures_of_a_container_are_refused_as_one_before_they_are_read(
    make_generator: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_generator()
    digits = npy.write_npy(np.zeros((2, 28, 28, 1), np.uint8))
    packed = client.post("/encode", content=digits, headers={**NPY, "Accept": containers.MEDIA_TYPE}).content
    monkeypatch.setattr(containers, "unpack", None)  # would be called
    headers = {"Content-Type": containers.MEDIA_TYPE, "Accept": "image/png"}
    assert client.post("/decode", content=packed, headers=headers).status_code == 406


def test_a_container_whose_picture_is_too_long_for_the_format_is_not_unpacked(
    make_generator: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds were spent on its codes before the 422. The border that the codes have and the picture has not is no part
    of its size."""
    monkeypatch.setattr("service.pictures.images.LARGEST_WEBP_SIDE", 39)
    client = make_generator()
    headers = {"Content-Type": containers.MEDIA_TYPE, "Accept": "image/webp"}
    for side, status in ((38, 200), (40, 422)):
        picture = {"img": write_picture(np.zeros((side, 16, 3), np.uint8))}
        asked = {"files": picture, "headers": {"Accept": containers.MEDIA_TYPE}}
        packed = client.post("/encode?model=colour&fit=pad", **asked).content
        if status != 200:
            monkeypatch.setattr(containers, "unpack", None)  # would be called
        assert client.post("/decode", content=packed, headers=headers).status_code == status


@pytest.mark.parametrize("accept", ["image/png", JSON, events.MEDIA_TYPE, None])
def test_nothing_is_drawn_where_no_engine_could_decode_it(
    make_generator: Callable[..., TestClient], accept: str | None
) -> None:
    """While a failed engine was opened again each request drew all of its samples, and then got 503; a stream began
    with 200 and ended with an error."""
    client = make_generator()
    client.app.state.service.models.get("digits").engine.close("it has failed")  # type: ignore[attr-defined]
    before = runs(client)
    if accept is None:
        labels = {"name": "labels", "shape": [1], "datatype": "INT64", "data": [-1]}
        answer = client.post("/v2/models/digits.generate/infer", json={"inputs": [labels]})
    else:
        answer = client.post("/generate", json={"n": 1}, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert runs(client) == before


@pytest.mark.parametrize("operation", ["decode", "generate"])
def test_what_is_too_much_for_json_is_not_made(
    make_generator: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """All samples were drawn, and then refused."""
    monkeypatch.setattr("service.wire.inference_protocol.MOST_VALUES", 28 * 28 - 1)
    client = make_generator()
    inputs = {
        "decode": {"name": "codes", "shape": [1, 7, 7], "datatype": "INT64", "data": [0] * 49},
        "generate": {"name": "labels", "shape": [1], "datatype": "INT64", "data": [-1]},
    }
    before = runs(client)
    refused = client.post(f"/v2/models/digits.{operation}/infer", json={"inputs": [inputs[operation]]})
    assert refused.status_code == 413 and "ask for binary_data" in refused.json()["error"]
    assert runs(client) == before
