"""Every limit of the settings below, at and above it; then drain, keys and headers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from service.call import Call, remember
from service.codec.container import MEDIA_TYPE
from service.errors import BodyTooLarge, problem_type
from service.pictures import images
from service.pictures.images import LARGEST_SIDE
from service.routes.requests import read_optional_body
from service.setting_values import parse_api_keys
from service.settings import Settings
from service.wire.inference_protocol import HEADER_LENGTH
from tests.conftest import PICTURES
from tests.service import bad_inputs as bad

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PNG = {"content-type": "image/png"}
NPY = {"content-type": "application/x-npy"}
MakeClient = Callable[..., TestClient]
AROUND = pytest.mark.parametrize(("over", "status"), [(-1, 200), (0, 200), (1, 413)])


def slug_of(response) -> str:  # type: ignore[no-untyped-def]
    return str(response.json()["type"])


@AROUND
def test_body_bytes(make_client: MakeClient, over: int, status: int) -> None:
    client = make_client(max_body_bytes=len(DIGIT) - over)
    response = client.post("/encode", content=DIGIT, headers=PNG)
    assert response.status_code == status
    if status == 413:
        assert slug_of(response) == problem_type("body-too-large")


@AROUND
def test_body_bytes_without_content_length(make_client: MakeClient, over: int, status: int) -> None:
    """A chunked upload announces nothing: the bytes are counted as they come."""

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(DIGIT), 50):
            yield DIGIT[start : start + 50]

    client = make_client(max_body_bytes=len(DIGIT) - over)
    assert client.post("/encode", content=chunks(), headers=PNG).status_code == status


def test_a_body_without_end_is_not_read_beyond_the_limit(make_client: MakeClient) -> None:
    client, pieces = make_client(max_body_bytes=100), 0

    async def receive() -> Message:
        nonlocal pieces
        pieces += 1
        return {"type": "http.request", "body": bytes(50), "more_body": pieces < 10}

    scope: dict[str, Any] = {"type": "http", "headers": []}
    remember(scope, Call("id", None, 0.0, cast(asyncio.Timeout, None)))
    with pytest.raises(BodyTooLarge):
        client.portal.call(read_optional_body, Request(scope, receive), client.app.state.service)  # type: ignore
    assert pieces == 3


@AROUND
def test_pixels_of_an_uploaded_picture(make_client: MakeClient, over: int, status: int) -> None:
    client = make_client(max_pixels=28 * 28 - over)
    assert client.post("/encode", content=DIGIT, headers=PNG).status_code == status


@AROUND
def test_pixels_of_a_decoded_picture(make_client: MakeClient, over: int, status: int) -> None:
    client = make_client(max_pixels=8 * 12 - over)
    response = client.post("/decode?model=tiny_colour", json={"codes": [[0] * 3] * 2})
    assert response.status_code == status


@AROUND
def test_pixels_a_request(make_client: MakeClient, over: int, status: int) -> None:
    client = make_client(max_pixels_per_request=2 * 28 * 28 - over)
    assert client.post("/encode", files=[("img", DIGIT)] * 2).status_code == status
    assert client.post("/decode", json={"codes": [[[0] * 7] * 7] * 2}).status_code == status


@AROUND
@pytest.mark.parametrize(("name", "most"), [("max_pixels", 8 * 12), ("max_pixels_per_request", 2 * 8 * 12)])
def test_pixels_of_a_container(
    client: TestClient, make_client: MakeClient, over: int, status: int, name: str, most: int
) -> None:
    """`max_pixels` was not looked at, and too many pixels were called too many items."""
    codes = {"codes": [[[0] * 3] * 2] * 2}
    pixels = client.post("/decode?model=tiny_colour", json=codes, headers={"accept": NPY["content-type"]}).content
    headers = {**NPY, "accept": MEDIA_TYPE}
    container = client.post("/encode?model=tiny_colour", content=pixels, headers=headers).content
    limited = make_client(**{name: most - over * scale_of(name)})
    answer = limited.post("/decode?model=tiny_colour", content=container, headers={"content-type": MEDIA_TYPE})
    assert answer.status_code == status
    if status == 413:
        assert slug_of(answer) == problem_type("picture-too-large")


@AROUND
@pytest.mark.parametrize("fit", ["pad", "resize"])
@pytest.mark.parametrize(
    ("name", "count", "most"),
    [("max_pixels", 1, 4 * 16), ("max_pixels_per_request", 2, 2 * 4 * 16), ("max_pixels_per_request", 1, 4 * 16)],
)
def test_pixels_of_a_picture_that_fit_enlarges(
    make_client: MakeClient, over: int, status: int, fit: str, name: str, count: int, most: int
) -> None:
    """A strip of 1x16,000,000 became four times as many, which /decode then refused."""
    client = make_client(**{name: most - over})
    strip = bad.saved(Image.new("RGB", (1, 16)))
    answer = client.post(f"/encode?model=tiny_colour&fit={fit}", files=[("img", strip)] * count)
    assert answer.status_code == status
    if status == 413:
        assert slug_of(answer) == problem_type("picture-too-large")
        assert name == "max_pixels_per_request" or f"1x16 becomes 4x16 with ?fit={fit}" in answer.json()["detail"]
        return
    codes = [item["codes"] for item in answer.json()["items"]] if count > 1 else answer.json()["codes"]
    assert client.post("/decode?model=tiny_colour", json={"codes": codes}).status_code == 200


@AROUND
@pytest.mark.parametrize("name", ["max_pixels", "max_pixels_per_request"])
def test_pixels_of_a_picture_that_fit_shrinks(make_client: MakeClient, over: int, status: int, name: str) -> None:
    client = make_client(**{name: 40 * 50 - over})
    answer = client.post("/encode?fit=resize", content=bad.saved(Image.new("L", (40, 50))), headers=PNG)
    assert answer.status_code == status


@AROUND
@pytest.mark.parametrize("upright", [True, False])
def test_the_side_of_an_uploaded_picture(client: TestClient, over: int, status: int, upright: bool) -> None:
    """Shrinking a strip of 16 million pixels took 528 MiB."""
    longest = LARGEST_SIDE + over
    strip = bad.saved(Image.new("L", (1, longest) if upright else (longest, 1)))
    answer = client.post("/encode?fit=resize", content=strip, headers=PNG)
    assert answer.status_code == status
    if status == 413:
        assert slug_of(answer) == problem_type("picture-too-large")


@AROUND
@pytest.mark.parametrize("upright", [True, False])
def test_the_side_of_an_array(client: TestClient, over: int, status: int, upright: bool) -> None:
    """It had no limit, and /encode refused the PNG that came back."""
    longest = (LARGEST_SIDE + over) // 4 * 4  # what the model takes
    pixels = np.zeros((1, longest, 4, 3) if upright else (1, 4, longest, 3), np.uint8)
    tensor = {"name": "images", "shape": pixels.shape, "datatype": "UINT8"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.size}}]}).encode()
    of_tensors = {HEADER_LENGTH: str(len(head))}
    for answer in (
        client.post("/encode?model=tiny_colour", content=bad.npy(pixels), headers=NPY),
        client.post("/v2/models/tiny_colour.encode/infer", content=head + pixels.tobytes(), headers=of_tensors),
    ):
        assert answer.status_code == status
        if status == 413:
            assert slug_of(answer) == problem_type("picture-too-large")
            assert f"has more than {LARGEST_SIDE} pixels a side" in answer.json()["detail"]


def scale_of(name: str) -> int:
    """The limit of a whole request is counted in codes of 4 x 4 pixels."""
    return 16 if name == "max_pixels_per_request" else 1


@AROUND
def test_pictures_of_a_container(client: TestClient, make_client: MakeClient, over: int, status: int) -> None:
    files = [("img", DIGIT)] * (4 + over)
    container = client.post("/encode", files=files, headers={"accept": MEDIA_TYPE}).content
    answer = make_client(max_pictures_per_request=4).post(
        "/decode", content=container, headers={"content-type": MEDIA_TYPE}
    )
    assert answer.status_code == status
    if status == 413:
        assert slug_of(answer) == problem_type("too-many-items")


@AROUND
def test_pictures_a_request(make_client: MakeClient, over: int, status: int) -> None:
    client = make_client(max_pictures_per_request=4)
    count = 4 + over
    assert client.post("/encode", files=[("img", DIGIT)] * count).status_code == status
    batch = bad.npy(np.zeros((count, 28, 28, 1), np.uint8))
    assert client.post("/encode", content=batch, headers=NPY).status_code == status
    assert client.post("/decode", json={"codes": [[[0] * 7] * 7] * count}).status_code == status


def test_all_bodies_together_have_a_limit(make_client: MakeClient) -> None:
    client = make_client(max_total_body_bytes=len(DIGIT))
    service = client.app.state.service  # type: ignore[attr-defined]
    assert client.post("/encode", content=DIGIT, headers=PNG).status_code == 200
    batch = bad.npy(np.zeros((2, 28, 28, 1), np.uint8))
    assert client.post("/encode", content=batch, headers=NPY).status_code == 200  # alone it may be larger
    other = Call("id", None, 0.0, cast(asyncio.Timeout, None))
    service.take_in(other, 1)
    refused = client.post("/encode", content=DIGIT, headers=PNG)
    assert (refused.status_code, slug_of(refused)) == (429, problem_type("queue-full"))
    assert "VQSERVE_MAX_TOTAL_BODY_BYTES" in refused.json()["detail"]
    assert client.post("/encode", content=DIGIT[:-1], headers=PNG).status_code != 429
    service.let_go(other)
    assert service.body_bytes == 0
    assert client.post("/encode", content=DIGIT, headers=PNG).status_code == 200


def test_drain_says_503_to_new_requests_and_to_readyz_only(make_client: MakeClient) -> None:
    client = make_client()
    client.app.state.service.draining = True  # type: ignore[attr-defined]
    response = client.post("/encode", content=DIGIT, headers=PNG)
    assert (response.status_code, slug_of(response)) == (503, problem_type("not-ready"))
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong-key-1"}, 401),
        ({"authorization": "Basic first-key-1"}, 401),
        ({"authorization": "Bearer first-key-1"}, 200),
        ({"authorization": "bearer second-key-2"}, 200),
        ({"x-api-key": "second-key-2"}, 200),
        ({"authorization": "Bearer of-a-proxy", "x-api-key": "second-key-2"}, 200),
        ({"x-api-key": "second-key-2", "authorization": "Bearer of-a-proxy"}, 200),
        ({"x-api-key": "wrong-key-1", "authorization": "Bearer wrong-key-2"}, 401),
    ],
)
def test_api_keys(make_client: MakeClient, headers: dict[str, str], status: int) -> None:
    client = make_client(api_keys="alice:first-key-1, bob:second-key-2")
    response = client.get("/models", headers=headers)
    assert response.status_code == status
    route = f'vqserve_requests_total{{route="/models",status="{status}"}} 1.0'
    assert route in client.get("/metrics").text  # also where it was refused before it had a handler
    if status == 401:
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert slug_of(response) == problem_type("unauthorized")
    assert client.get("/healthz").status_code == 200


def test_blanks_around_a_key_are_none_of_it() -> None:
    """A header's value comes without them, so that such a key could never be used."""
    assert parse_api_keys("alice: first-key-1 , bob :second-key-2") == {"alice": b"first-key-1", "bob": b"second-key-2"}


def test_keys_on_lines_of_their_own_need_commas() -> None:
    """A file of a key a line was one entry, with a key that no header can hold: nobody was let in."""
    with pytest.raises(ValueError, match=r"^entry 1 must be name:key, .*, a comma before another"):
        parse_api_keys("alice:first-key-1\nbob:second-key-2\n")
    assert list(parse_api_keys("alice:first-key-1,\nbob:second-key-2\n")) == ["alice", "bob"]


def test_the_log_names_the_key_and_never_shows_it(make_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(api_keys="alice:first-key-1", access_log=True)
    with caplog.at_level("INFO", logger="service.http.middleware"):
        client.get("/models", headers={"x-api-key": "first-key-1", "x-request-id": "my-id"})
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert (fields[-1]["key"], fields[-1]["request_id"], fields[-1]["status"]) == ("alice", "my-id", 200)
    assert "first-key-1" not in json.dumps(fields)
    assert "first-key-1" not in repr(client.app.state.service.settings)  # type: ignore[attr-defined]


def test_request_ids_are_taken_or_made(client: TestClient) -> None:
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    twice = [("x-request-id", "first"), ("x-request-id", "second")]
    assert client.get("/healthz", headers=twice).headers["x-request-id"] == "first"


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for response in (client.get("/healthz"), client.get("/nope"), client.post("/encode")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"


def test_no_cache_keeps_an_answer(client: TestClient) -> None:
    """Regression: one in front gave what a caller had got with a key to others, and an old /readyz to a balancer."""
    paths = ("/readyz", "/models", "/nope", "/metrics", "/openapi.json", "/docs", "/encode")
    answers = [*map(client.get, paths), client.post("/encode", content=DIGIT, headers=PNG)]
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}


def test_cors_is_off_by_default_and_by_origin_when_on(make_client: MakeClient) -> None:
    origin = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in make_client().get("/healthz", headers=origin).headers
    client = make_client(cors_origins="https://example.org")
    assert client.get("/healthz", headers=origin).headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in client.get("/healthz", headers={"origin": "https://x.org"}).headers


def test_origins_that_a_browser_sends_are_taken() -> None:
    origins = ("http://localhost:3000", "https://a.example:8443", "http://[::1]:8080", "chrome-extension://abc", "*")
    assert Settings(cors_origins=", ".join(origins)).cors_origins.split(", ") == [*origins]


def test_a_page_of_an_allowed_origin_reads_errors_and_our_headers(make_client: MakeClient) -> None:
    """Errors were made outside of CORS, so that a browser showed a page nothing but "network error"."""
    client = make_client(cors_origins="https://example.org", api_keys="alice:first-key-1")
    origin = {"origin": "https://example.org"}
    headers = {**origin, "x-api-key": "first-key-1"}
    answers = [
        client.get("/models", headers=headers),
        client.get("/models", headers=origin),
        client.get("/nothing", headers=headers),
        client.post("/encode", content=b"no picture", headers={**headers, **PNG}),
    ]
    client.app.state.service.draining = True  # type: ignore[attr-defined]
    answers.append(client.get("/models", headers=headers))
    assert [answer.status_code for answer in answers] == [200, 401, 404, 422, 503]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-request-id", "retry-after", "x-vqserve-seed", "server-timing"} <= set(exposed)
    preflight = {**headers, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    asked = client.options("/encode", headers=preflight)
    assert (asked.status_code, asked.headers["access-control-allow-headers"]) == (200, "x-api-key")
    counted = client.get("/metrics").text  # it was a request of the route, answered in no time
    assert 'vqserve_requests_total{route="other",status="200"} 1.0' in counted
    assert 'route="/encode",status="200"' not in counted


@pytest.mark.parametrize(("parts", "here"), [(4, True), (5, False)])
def test_a_small_file_that_inflates_is_opened_in_a_thread(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, parts: int, here: bool
) -> None:
    """58 such parts fit into what is opened on the event loop, and held it up for a quarter of a second."""
    opened_by: list[str] = []

    def opening(data: bytes, max_pixels: int) -> Image.Image:
        opened_by.append(threading.current_thread().name)
        return open_picture(data, max_pixels)

    open_picture = images.open_picture
    monkeypatch.setattr(images, "open_picture", opening)
    assert client.post("/encode", content=bad.inflating(b"zTXt", parts), headers=PNG).status_code == 200
    assert opened_by[0].startswith("small-work") != here
