"""Both clients against a real server, and their retries and streams against a scripted one."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.errors import DeadlinePassed, NotReady, Problem, problem_body, problem_type
from tests.client.conftest import KEY
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import oracle_codes, oracle_pixels
from vqserve import (
    AsyncClient,
    Client,
    Generation,
    ProblemError,
    Retries,
    Row,
    UnexpectedAnswerError,
    VqserveError,
    connection,
    operations,
)

DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]
ITEM = {"label": 3, "bits": 12.5, "codes": [[1, 2], [3, 4]], "image": "iVBORw=="}
DONE = {"model": "tiny", "version": "ab", "seed": 7, "items": [ITEM]}


def pixels_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(path))[..., None]


@pytest.mark.parametrize("codes", [[[1.7, 2.2]], [["3"]], [[True]]])
def test_codes_that_are_no_whole_numbers_are_refused_and_not_converted(codes: object) -> None:
    for call in (operations.decode, operations.decode_png):
        with pytest.raises(ValueError, match="pass whole numbers"):
            call(codes)  # type: ignore[arg-type]
    (body,) = (operations.decode([[2**32 + 5]]).content,)
    assert body is not None and np.load(io.BytesIO(body)).tolist() == [[[2**32 + 5]]]  # which the service refuses


def test_keys_and_urls_that_cannot_be_used_say_so() -> None:
    assert connection.key_header("") == connection.key_header(None) == {}
    with pytest.raises(VqserveError, match="write http://localhost:8000"):
        Client("localhost:8000")
    with pytest.raises(VqserveError, match="printable ASCII"):
        AsyncClient(key="clé")


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, np.zeros(1))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (operations.decode([[1]]), b""),
        (operations.decode([[1]]), archive()),
        (operations.decode([[1]]), archive()[:20]),  # it was a BadZipFile
        (operations.models(), b"[]"),
        (operations.compress([b"x"]), b"<!DOCTYPE html>"),  # it was written as the container
        (operations.compress_array(np.zeros((1, 2, 2, 1), np.uint8)), b""),
        (operations.decode_png([[1]]), b"<!DOCTYPE html>"),
    ],
)
def test_an_answer_of_another_shape_is_unexpected(call: operations.Operation[object], body: bytes) -> None:
    with pytest.raises(UnexpectedAnswerError):
        call.value(httpx.Response(200, content=body))


def test_pictures_go_there_and_back(server_url: str, tiny: Tiny) -> None:
    pixels = np.stack([pixels_of(path) for path in DIGITS])
    codes = oracle_codes(pixels, tiny.grey_weights)
    decoded = oracle_pixels(codes, tiny.grey_weights, 1)
    with Client(server_url, key=KEY) as client:
        assert all(np.array_equal(one.codes, grid) for one, grid in zip(client.encode(*DIGITS), codes, strict=True))
        assert np.array_equal(client.encode_array(pixels), codes)
        assert np.array_equal(client.decode(codes), decoded)
        assert np.array_equal(client.decode(codes[0]), decoded[:1])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(client.decode_png(codes[0])))), decoded[0, :, :, 0])
        assert np.array_equal(client.decompress(client.compress(*DIGITS)), decoded)
        assert np.array_equal(client.decompress(client.compress(DIGITS[0].read_bytes())), decoded[:1])
        assert client.compress_array(pixels) == client.compress(*DIGITS)


def test_models_describe_themselves(server_url: str) -> None:
    with Client(server_url, key=KEY) as client:
        names = [model.name for model in client.models()]
        assert names == ["tiny", "tiny_colour"]
        assert client.model("tiny_colour").details["picture"]["any_size"] is True
        (encoded,) = client.encode(PICTURES / "ladybird_crop.jpg", model="tiny_colour")
        assert (encoded.width, encoded.height, encoded.codes.shape) == (96, 64, (16, 24))


def test_a_refusal_is_a_problem(server_url: str) -> None:
    with Client(server_url, key=KEY) as client:
        with pytest.raises(ProblemError, match="none of them") as raised:
            client.encode(b"not a picture")
        assert (raised.value.status, raised.value.type) == (422, "urn:vqserve:problem:not-a-picture")
        assert raised.value.request_id
    with Client(server_url) as stranger, pytest.raises(ProblemError, match="401"):
        stranger.models()


def test_a_path_as_text_is_refused_before_it_is_sent(server_url: str) -> None:
    path: Any = str(PICTURES / "digit_7.png")
    with Client(server_url, key=KEY) as client, pytest.raises(TypeError, match="or its Path, not str"):
        client.encode(path)


@pytest.mark.parametrize("other", [bytearray(b"x"), [b"x"], np.zeros((28, 28), np.uint8)])
def test_what_is_no_file_is_refused_before_it_is_sent(server_url: str, other: Any) -> None:
    """It was an AttributeError of `read`, or the service's word on bytes that nobody had meant to send."""
    with Client(server_url, key=KEY) as client:
        for call in (client.encode, client.compress, client.decompress):
            with pytest.raises(TypeError, match=f"or its Path, not {type(other).__name__}"):
                call(other)


def test_a_container_may_be_named_by_its_path(server_url: str, tmp_path: Path) -> None:
    with Client(server_url, key=KEY) as client:
        container = client.compress(DIGITS[0])
        (tmp_path / "x.vqc").write_bytes(container)
        assert np.array_equal(client.decompress(tmp_path / "x.vqc"), client.decompress(container))
        with pytest.raises(TypeError, match="not str"):
            client.decompress(str(tmp_path / "x.vqc"))  # type: ignore[arg-type]


def test_codes_are_passed_without_what_surrounds_them(server_url: str) -> None:
    with Client(server_url, key=KEY) as client:
        (encoded,) = client.encode(DIGITS[0])
        assert client.decode(encoded.codes).shape == (1, 28, 28, 1)
        with pytest.raises(TypeError, match=r"encoded\.codes"):
            client.decode(encoded)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tiny?x=/../", "../healthz", "a/b"])
def test_the_name_of_a_model_is_one_part_of_a_path(server_url: str, name: str) -> None:
    """It asked for another route, and gave what that answers."""
    with Client(server_url, key=KEY) as client, pytest.raises(ProblemError, match="404"):
        client.model(name)


def test_the_asynchronous_client_gives_the_same(server_url: str) -> None:
    async def together() -> list[bytes]:
        async with AsyncClient(server_url, key=KEY) as client:
            return await asyncio.gather(*(client.compress(path) for path in DIGITS))

    with Client(server_url, key=KEY) as client:
        assert asyncio.run(together()) == [client.compress(path) for path in DIGITS]


def test_both_clients_have_the_same_methods() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(AsyncClient, name)).parameters == inspect.signature(method).parameters


def scripted(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = answers[len(seen) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle), seen


MODELS = {"models": [{"name": "m", "version": "v", "labels": None}]}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    # The names in these two modules only: the server of other tests sleeps too.
    monkeypatch.setattr("vqserve.synchronous.time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr("vqserve.asynchronous.asyncio", SimpleNamespace(sleep=sleep))
    return slept


def run_models(transport: httpx.MockTransport, asynchronous: bool, retries: Retries) -> Any:
    if not asynchronous:
        with Client("http://x", transport=transport, retries=retries) as client:
            return client.models()

    async def call() -> Any:
        async with AsyncClient("http://x", transport=transport, retries=retries) as client:
            return await client.models()

    return asyncio.run(call())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_retry_after_is_honoured(asynchronous: bool, pauses: list[float]) -> None:
    full = httpx.Response(429, headers={"Retry-After": "3"})
    transport, seen = scripted(
        full, httpx.Response(503, headers={"Retry-After": "1"}), httpx.Response(200, json=MODELS)
    )
    (model,) = run_models(transport, asynchronous, Retries())
    assert (model.name, len(seen), pauses) == ("m", 3, [3.0, 1.0])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_without_retry_after_the_pause_doubles(asynchronous: bool, pauses: list[float]) -> None:
    lost = httpx.ConnectError("refused")
    transport, seen = scripted(lost, httpx.Response(502), lost, httpx.Response(200, json=MODELS))
    run_models(transport, asynchronous, Retries(first_pause_s=1.0))
    assert len(seen) == 4
    assert all(low <= pause <= 2 * low for pause, low in zip(pauses, (0.5, 1.0, 2.0), strict=True))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_gives_up(asynchronous: bool, pauses: list[float]) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "1"})
    for answers, attempts in (
        ([busy] * 4, 4),
        ([httpx.Response(503, headers={"Retry-After": "31"})], 1),  # longer than the longest pause
        ([httpx.Response(404)], 1),  # would not help
        ([httpx.Response(504)], 1),  # the service took its time once already
    ):
        transport, seen = scripted(*answers)
        with pytest.raises(ProblemError):
            run_models(transport, asynchronous, Retries())
        assert len(seen) == attempts
    transport, seen = scripted(*[httpx.ConnectError("refused")] * 4)
    with pytest.raises(httpx.ConnectError):
        run_models(transport, asynchronous, Retries())
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("nonsense", 0.1, 0.3), ("", 0.1, 0.3), ("0", 0, 0)]
    + [(f"Wed, 21 Oct {year} 07:28:00 GMT", 0.1, 0.3) for year in ("10000", "99999999999999999999")],
)
def test_retry_after_may_be_a_date(value: str, low: float, high: float) -> None:
    pause = Retries().pause_s(1, httpx.Response(429, headers={"Retry-After": value}))
    assert pause is not None and low <= pause <= high


def events(*parts: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in parts)


ROWS = [("row", {"row": row, "items": [{"codes": [row, row + 1]}]}) for row in range(2)]


def stream(text: str, asynchronous: bool) -> list[Row | Generation]:
    transport, seen = scripted(httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"}))
    if asynchronous:

        async def call() -> list[Row | Generation]:
            async with AsyncClient("http://x", transport=transport) as client:
                return [value async for value in client.stream(n=1, seed=7)]

        values = asyncio.run(call())
    else:
        with Client("http://x", transport=transport) as client:
            values = list(client.stream(n=1, seed=7))
    assert json.loads(seen[0].content) == {"n": 1, "seed": 7}
    return values


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_gives_rows_and_then_the_generation(asynchronous: bool) -> None:
    first, second, last = stream(": hello\n\n" + events(*ROWS, ("done", DONE)), asynchronous)
    assert isinstance(first, Row) and isinstance(second, Row) and isinstance(last, Generation)
    assert (second.row, second.codes.tolist()) == (1, [[1, 2]])
    assert (last.seed, last.items[0].bits, last.items[0].png) == (7, 12.5, b"\x89PNG")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_that_breaks_off_is_an_error(asynchronous: bool) -> None:
    with pytest.raises(UnexpectedAnswerError, match="before its last event"):
        stream(events(*ROWS), asynchronous)
    for unknown in ({"detail": "half a problem"}, ["no problem"]):
        with pytest.raises(UnexpectedAnswerError, match=r"unknown error: .*problem"):
            stream(events(*ROWS, ("error", unknown)), asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("problem", [NotReady("The service is shutting down."), DeadlinePassed("It took too long.")])
def test_a_stream_that_the_service_ends_is_a_problem(problem: Problem, asynchronous: bool) -> None:
    """It used to be an UnexpectedAnswerError, which says that this is another server or another version of it."""
    with pytest.raises(ProblemError) as raised:
        stream(events(*ROWS, ("error", problem_body(problem, "an-id"))), asynchronous)
    error = raised.value
    assert (error.status, error.type) == (problem.status, problem_type(problem.slug))
    assert (error.title, error.detail, error.request_id) == (problem.title, problem.detail, "an-id")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.models(),
        lambda client: client.encode(b"x"),
        lambda client: client.decode([[1]]),
        lambda client: client.generate(),
        lambda client: client.score(b"x"),
    ],
)
def test_an_unknown_answer_is_an_error(call: Callable[[Client], Any]) -> None:
    transport, _ = scripted(httpx.Response(200, json={"unknown": 1}))
    with Client("http://x", transport=transport) as client, pytest.raises(UnexpectedAnswerError):
        call(client)
