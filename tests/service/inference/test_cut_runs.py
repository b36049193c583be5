"""A request of many pictures is cut into runs: what the networks get at once is bounded, whatever is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from benchmarks.tiny_prior import tiny_model
from service.inference.batch_limits import BatchLimits
from service.inference.windows import CORE, MARGIN, run_in_parts
from service.prior.effort import MOST_TOGETHER, choose_codes
from service.stopping import Stopped, stoppable
from tests.conftest import Tiny
from tests.service import bad_inputs as bad
from tests.service.inference.test_engine import Shapes, Slow, engine_of
from tests.service.prior.test_effort import PixelLatents, noise
from tests.service.serving import busy, until
from tests.tiny_bundle import oracle_codes, oracle_pixels

NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
MakeClient = Callable[..., TestClient]


@pytest.mark.parametrize(("width", "most"), [(1, 4), (2, 4), (3, 2), (8, 1), (9, 1)])
def test_how_many_pictures_go_into_one_run(width: int, most: int) -> None:
    assert BatchLimits(max_batch=4, max_queued=9, max_batch_elements=8).most_pictures((1, width)) == most
    assert BatchLimits(max_batch=4, max_queued=9).most_pictures((1, width)) == 4


@pytest.mark.parametrize(("most", "parts"), [(2, [2, 2, 1]), (4, [4, 1]), (5, [5]), (6, [5])])
def test_parts_give_what_the_whole_gives(most: int, parts: list[int]) -> None:
    sizes: list[int] = []

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        sizes.append(len(batch))
        return batch.sum(axis=1).astype(np.int16)

    batch = np.arange(30, dtype=np.uint8).reshape(5, 2, 3)
    found = run_in_parts(run, batch, most)
    assert (sizes, found.dtype) == (parts, np.int16)
    assert np.array_equal(found, batch.sum(axis=1))


def test_a_run_is_given_up_between_two_parts() -> None:
    stop, sizes = threading.Event(), []

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        sizes.append(len(batch))
        stop.set()
        return batch

    with pytest.raises(Stopped):
        stoppable(lambda: run_in_parts(run, np.zeros((5, 2)), 2), stop)()
    assert sizes == [2]


@pytest.mark.parametrize(("side", "runs"), [(12, [4, 4, 2]), (16, [4, 4, 2]), (20, [2] * 5), (32, [1] * 10)])
def test_the_pictures_of_one_request_go_in_runs_of_max_batch(
    make_client: MakeClient, tiny: Tiny, side: int, runs: list[int]
) -> None:
    """256 pictures of 320x320 were one run, of 9.7 GB that onnxruntime then kept. The model's size is 16x16."""
    client = make_client(max_batch=4)
    engine = engine_of(client, "tiny_colour")
    engine._encoder, engine._decoder = encoder, decoder = Shapes(engine._encoder), Shapes(engine._decoder)
    pixels = np.random.default_rng(3).integers(0, 256, (10, side, side, 3), np.uint8)
    codes = client.post("/encode?model=tiny_colour", content=bad.npy(pixels), headers=NPY)
    expected = oracle_codes(pixels, tiny.colour_weights)
    assert codes.content == bad.npy(expected.astype(np.int32))
    decoded = client.post("/decode?model=tiny_colour", content=codes.content, headers=NPY)
    assert decoded.content == bad.npy(oracle_pixels(expected, tiny.colour_weights, 3))
    assert [shape[0] for shape in encoder.shapes] == runs
    assert [shape[0] for shape in decoder.shapes] == runs


def test_a_window_of_many_pictures_is_cut_too(make_client: MakeClient) -> None:
    """Of eight times 16x16 pixels, 4 x 288 go into one run once, and 4 x 176 twice."""
    client = make_client(max_batch=8)
    engine = engine_of(client, "tiny_colour")
    engine._encoder = encoder = Shapes(engine._encoder)
    pixels = np.zeros((3, 4, 400, 3), np.uint8)
    assert client.post("/encode?model=tiny_colour", content=bad.npy(pixels), headers=NPY).status_code == 200
    first, second = 4 * (CORE + MARGIN), 400 - 4 * (CORE - MARGIN)
    assert (first, second) == (288, 176)
    found = [(count, width) for count, _, width, _ in encoder.shapes]
    assert found == [(1, first)] * 3 + [(2, second), (1, second)]


@pytest.mark.parametrize("path", ["/encode", "/decode"])
def test_a_request_of_many_pictures_stops_at_its_deadline(make_client: MakeClient, path: str) -> None:
    """Its only run went on after the 504, and every other request waited for it."""
    client = make_client(inline_ms=0, max_batch=1, request_deadline_ms=100)
    engine = engine_of(client)
    batcher = {"/encode": engine._encode, "/decode": engine._decode}[path]
    runs = Shapes(engine._encoder if path == "/encode" else engine._decoder)
    engine._encoder = engine._decoder = slow = Slow(runs)
    given = {"/encode": np.zeros((3, 28, 28, 1), np.uint8), "/decode": np.zeros((3, 7, 7), np.uint8)}[path]
    assert client.post(path, content=bad.npy(given), headers=NPY).status_code == 504
    slow.gate.set()
    until(lambda: not busy(batcher))
    assert [shape[0] for shape in runs.shapes] == [1]
    assert client.post(path, content=bad.npy(given), headers=NPY).status_code == 200


def test_a_request_of_many_runs_is_no_stall(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a deadline of two minutes, for photographs, /readyz said 503 while one of them went through its windows."""
    client = make_client(inline_ms=0, max_batch=1, engine_stall_s=60)
    engine, now = engine_of(client), [0.0]
    for module in ("service.inference.engine", "service.inference.lane"):
        monkeypatch.setattr(f"{module}.perf_counter", lambda: now[0])
    begun, may_end, encoder = threading.Semaphore(0), threading.Semaphore(0), engine._encoder

    class OneByOne:
        def run(self, *arguments: Any) -> Any:
            begun.release()
            assert may_end.acquire(timeout=10)
            return encoder.run(*arguments)

    engine._encoder = OneByOne()
    given = bad.npy(np.zeros((3, 28, 28, 1), np.uint8))
    answers: list[int] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.post("/encode", content=given, headers=NPY).status_code)
    )
    asking.start()
    for _ in range(3):
        assert begun.acquire(timeout=10)
        now[0] += 50
        assert client.get("/readyz").status_code == 200
        if now[0] < 150:
            may_end.release()
    now[0] += 11
    assert "takes longer than 60" in client.get("/readyz").json()["detail"]
    may_end.release()
    asking.join(10)
    assert answers == [200]
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("shape", "runs"),
    [
        ((20, 12, 16, 1), [MOST_TOGETHER, MOST_TOGETHER, 4]),
        ((20, 12, 12, 1), [MOST_TOGETHER, MOST_TOGETHER, 4]),
        ((5, 24, 32, 1), [MOST_TOGETHER // 4] * 2 + [1]),
        ((2, 400, 12, 1), [1, 1] * 2),
    ],
)
def test_effort_gives_the_encoder_few_pictures_at_a_time(shape: tuple[int, ...], runs: list[int]) -> None:
    sizes: list[int] = []

    class Measured(PixelLatents):
        def latents(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            sizes.append(len(images))
            return super().latents(images)

    model = replace(tiny_model(), latents=Measured())
    assert model.native_size == (12, 16)
    pixels = noise(shape)
    codes = choose_codes(model, pixels, 0.0, np.full(len(pixels), 3))
    assert sizes == runs
    assert np.array_equal(codes, PixelLatents().distances(PixelLatents().latents(pixels)).argmin(-1))
