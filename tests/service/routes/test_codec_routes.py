"""/encode and /decode against the numpy oracle of the tiny bundle, in every representation they speak."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from service.errors import problem_type
from tests.conftest import PICTURES, Tiny
from tests.service.bad_inputs import npy
from tests.service.serving import until
from tests.tiny_bundle import CODEBOOK_SIZE, oracle_codes, oracle_pixels

NPY = "application/x-npy"
CONTAINER = "application/vnd.vqserve.codes"


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    """(H,W,C) uint8, read by Pillow without the service's code."""
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def test_encode_a_form_answers_the_documented_json(client: TestClient, tiny: Tiny, digit: bytes) -> None:
    response = client.post("/encode", files={"img": ("x.png", digit, "image/png")})
    answer = response.json()
    codes = answer.pop("codes")
    version = client.get("/models/tiny").json()["version"]
    assert answer == {
        "model": "tiny",
        "version": version,
        "width": 28,
        "height": 28,
        "codebook_size": CODEBOOK_SIZE,
        "shape": [7, 7],
    }
    assert codes == oracle_codes(pixels_of(digit)[None], tiny.grey_weights)[0].tolist()


def test_a_file_name_may_be_in_any_encoding(client: TestClient, digit: bytes) -> None:
    part = b'--xx\r\nContent-Disposition: form-data; name="img"; filename="\xe9.png"\r\n\r\n' + digit
    headers = {"Content-Type": "multipart/form-data; boundary=xx"}
    assert client.post("/encode", content=part + b"\r\n--xx--\r\n", headers=headers).status_code == 200


def test_encode_a_raw_body_gives_the_same_as_a_form(client: TestClient, digit: bytes) -> None:
    form = client.post("/encode", files={"img": digit})
    raw = client.post("/encode", content=digit, headers={"content-type": "image/png"})
    assert raw.content == form.content


def test_encode_several_pictures_keeps_their_order(client: TestClient, tiny: Tiny) -> None:
    files = [(PICTURES / f"digit_{n}.png").read_bytes() for n in (0, 1, 2, 4, 7)]
    answer = client.post("/encode", files=[("img", file) for file in files]).json()
    pixels = np.stack([pixels_of(file) for file in files])
    assert set(answer) == {"model", "version", "items"}
    assert [item["codes"] for item in answer["items"]] == oracle_codes(pixels, tiny.grey_weights).tolist()
    assert all((i["width"], i["height"], i["shape"]) == (28, 28, [7, 7]) for i in answer["items"])


def test_one_of_several_answers_is_a_request_that_no_other_model_decodes(client: TestClient, tiny: Tiny) -> None:
    """It did not say whose codes it holds, and another model made another picture of them, of the right size."""
    file = (PICTURES / "digit_7.png").read_bytes()
    item = client.post("/encode", files=[("img", file), ("img", file)]).json()["items"][0]
    assert item == client.post("/encode", files=[("img", file)]).json()
    assert client.post("/decode", json=item).status_code == 200
    refused = client.post("/decode?model=tiny_colour", json=item)
    assert refused.status_code == 422 and "pass ?model=tiny." in refused.json()["detail"]


def test_encode_pictures_of_different_sizes_in_one_request(client: TestClient, tiny: Tiny) -> None:
    random = np.random.default_rng(3)
    pictures = [random.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((8, 12), (16, 4), (8, 12))]
    streams = [io.BytesIO() for _ in pictures]
    for picture, stream in zip(pictures, streams, strict=True):
        Image.fromarray(picture).save(stream, "PNG")
    files = [("img", stream.getvalue()) for stream in streams]
    items = client.post("/encode?model=tiny_colour", files=files).json()["items"]
    for picture, item in zip(pictures, items, strict=True):
        assert item["codes"] == oracle_codes(picture[None], tiny.colour_weights)[0].tolist()


def test_npy_batch_in_and_out(client: TestClient, tiny: Tiny) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (9, 28, 28, 1), np.uint8)
    response = client.post("/encode", content=npy(pixels), headers={"content-type": NPY, "accept": NPY})
    codes = np.load(io.BytesIO(response.content))
    assert (codes.dtype, codes.shape) == (np.int32, (9, 7, 7))
    assert (codes == oracle_codes(pixels, tiny.grey_weights)).all()
    response = client.post("/decode", content=npy(codes), headers={"content-type": NPY, "accept": NPY})
    assert (np.load(io.BytesIO(response.content)) == oracle_pixels(codes, tiny.grey_weights, 1)).all()


def test_one_picture_as_npy_has_no_batch_axis(client: TestClient, digit: bytes) -> None:
    response = client.post("/encode", content=digit, headers={"content-type": "image/png", "accept": NPY})
    assert np.load(io.BytesIO(response.content)).shape == (7, 7)


@pytest.mark.parametrize("route", ["encode", "decode", "generate", "score"])
def test_several_accept_lines_are_one_list(generator: TestClient, digit: bytes, route: str) -> None:
    """Regression: only the first line was read, here for a 406."""
    picture = {"content": digit, "headers": {"content-type": "image/png"}}
    asked: dict[str, Any] = {
        "encode": picture,
        "decode": {"json": {"codes": [[0] * 7] * 7}},
        "generate": {"json": {}},
        "score": picture,
    }[route]
    accept = [("accept", "image/gif, text/html;q=0.5"), ("accept", "application/json")]
    response = generator.post(f"/{route}", **{**asked, "headers": [*asked.get("headers", {}).items(), *accept]})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize(("media_type", "format_name"), [("image/png", "PNG"), ("image/webp", "WEBP")])
def test_decode_gives_a_lossless_picture(client: TestClient, tiny: Tiny, media_type: str, format_name: str) -> None:
    codes = np.random.default_rng(5).integers(0, CODEBOOK_SIZE, (5, 6))
    response = client.post("/decode?model=tiny_colour", json={"codes": codes.tolist()}, headers={"accept": media_type})
    assert response.headers["content-type"] == media_type
    assert Image.open(io.BytesIO(response.content)).format == format_name
    assert (pixels_of(response.content) == oracle_pixels(codes[None], tiny.colour_weights, 3)[0]).all()


def test_decode_answers_png_by_default_and_json_for_several(client: TestClient, tiny: Tiny) -> None:
    codes = np.random.default_rng(6).integers(0, CODEBOOK_SIZE, (3, 7, 7))
    one = client.post("/decode", json={"codes": codes[0].tolist()})
    several = client.post("/decode", json={"codes": codes.tolist()})
    assert one.headers["content-type"] == "image/png"
    pictures = [base64.b64decode(item["image"]) for item in several.json()["items"]]
    assert pictures[0] == one.content
    expected = oracle_pixels(codes, tiny.grey_weights, 1)
    assert (np.stack([pixels_of(picture) for picture in pictures]) == expected).all()


def test_container_round_trip_crops_the_padding_away(client: TestClient, tiny: Tiny) -> None:
    """A picture of 30x18 is padded to 32x20 for the model; the container remembers 30x18."""
    pixels = np.random.default_rng(7).integers(0, 256, (18, 30, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    packed = client.post(
        "/encode?model=tiny_colour&fit=pad",
        content=stream.getvalue(),
        headers={"content-type": "image/png", "accept": CONTAINER},
    )
    assert packed.headers["content-type"] == CONTAINER
    response = client.post("/decode?model=tiny_colour", content=packed.content, headers={"content-type": CONTAINER})
    padded = np.pad(pixels, ((0, 2), (0, 2), (0, 0)), mode="edge")
    codes = oracle_codes(padded[None], tiny.colour_weights)
    assert (pixels_of(response.content) == oracle_pixels(codes, tiny.colour_weights, 3)[0, :18, :30]).all()


def test_a_photograph_survives_the_round_trip_in_shape(client: TestClient, photo: bytes) -> None:
    answer = client.post("/encode?model=tiny_colour", files={"img": photo}).json()
    assert (answer["width"], answer["height"], answer["shape"]) == (96, 64, [16, 24])
    picture = client.post("/decode?model=tiny_colour", json={"codes": answer["codes"]})
    assert pixels_of(picture.content).shape == (64, 96, 3)


def test_models_and_probes(client: TestClient) -> None:
    models = client.get("/models").json()["models"]
    assert [(model["name"], model["default"]) for model in models] == [("tiny", True), ("tiny_colour", False)]
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("path", "name"), [("a%2Fb", "a/b"), ("", ""), ("tiny/", "tiny/"), ("tiny/reload/", "tiny/reload/")]
)
def test_a_name_with_a_slash_is_of_no_model(client: TestClient, path: str, name: str) -> None:
    """It was no such route."""
    answer = client.get(f"/models/{path}")
    assert (answer.status_code, answer.json()["type"]) == (404, problem_type("unknown-model"))
    assert answer.json()["detail"] == f"No model {name!r}; there are tiny, tiny_colour."


@pytest.mark.parametrize(
    ("method", "path", "slug"),
    [
        ("POST", "/models/a%2Fb", "unknown-route"),
        ("POST", "/models/tiny/reload/", "unknown-route"),
        ("GET", "/models/tiny/reload", "method-not-allowed"),
        ("POST", "/models/tiny", "method-not-allowed"),
        ("GET", "/v2/models/a/b", "unknown-route"),
    ],
)
def test_what_else_is_no_route_stays_none(client: TestClient, method: str, path: str, slug: str) -> None:
    assert client.request(method, path).json()["type"] == problem_type(slug)


def test_metrics_count_what_happened(client: TestClient, digit: bytes) -> None:
    def value(line_start: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(line_start))

    before = value('vqserve_requests_total{route="/encode",status="200"}')
    client.post("/encode", files={"img": digit})
    assert value('vqserve_requests_total{route="/encode",status="200"}') == before + 1
    assert value("vqserve_model_info{") == 2
    assert 1 <= value('vqserve_traffic_codebook_perplexity{model="tiny"}') <= CODEBOOK_SIZE
    buckets = [
        float(line.rpartition(" ")[2])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("vqserve_stage_duration_seconds_bucket{") and 'model="tiny",stage="run"' in line
    ]
    assert len(buckets) == 36
    assert all(low <= high for low, high in pairwise(buckets))


def test_each_stage_is_counted_with_its_model(client: TestClient, digit: bytes) -> None:
    """A run of photographs takes a hundred times that of digits, and one histogram had both."""
    stages = ("read", "decode_picture", "queue", "run", "encode_answer")

    def counts(model: str) -> list[float]:
        lines = client.get("/metrics").text.splitlines()
        start = f'vqserve_stage_duration_seconds_count{{model="{model}",stage="'
        return [sum(float(line.split()[1]) for line in lines if line.startswith(start + stage)) for stage in stages]

    before, others = counts("tiny"), counts("tiny_colour")
    assert client.post("/encode", files={"img": digit}).status_code == 200
    until(lambda: counts("tiny") == [count + 1 for count in before])  # a run is counted once it is answered
    assert counts("tiny_colour") == others


@pytest.mark.parametrize("path", ["/encode", "/encode?effort=1", "/v2/models/digits.encode/infer", "/score"])
def test_every_picture_that_is_taken_is_counted(
    make_generator: Callable[..., TestClient], digit: bytes, path: str
) -> None:
    """`?effort=` and /v2 left no trace in the metrics of pictures."""
    client = make_generator()
    if path.startswith("/v2"):
        pixels = np.asarray(Image.open(io.BytesIO(digit))).ravel().tolist()
        tensor = {"name": "images", "shape": [1, 28, 28, 1], "datatype": "UINT8", "data": pixels}
        answer = client.post(path, json={"inputs": [tensor]})
    else:
        answer = client.post(path, files={"img": digit})
    assert answer.status_code == 200
    lines = client.get("/metrics").text.splitlines()
    assert 'vqserve_picture_pixels_count{model="digits"} 1.0' in lines
    assert 'vqserve_stage_duration_seconds_count{model="digits",stage="run"} 1.0' in lines
    perplexity = next(line for line in lines if line.startswith('vqserve_traffic_codebook_perplexity{model="digits"}'))
    assert float(perplexity.rpartition(" ")[2]) >= 1


def test_an_answer_of_encode_is_a_request_of_decode(client: TestClient, digit: bytes) -> None:
    """It was refused for its extra members, although piping one route into the other is the first thing people try."""
    answer = client.post("/encode", files={"img": digit})
    piped = client.post("/decode", content=answer.content, headers={"content-type": "application/json"})
    bare = client.post("/decode", json={"codes": answer.json()["codes"]})
    assert (piped.status_code, piped.content) == (200, bare.content)


def test_a_padded_picture_comes_back_in_its_own_size(client: TestClient) -> None:
    image = Image.new("RGB", (30, 22), "green")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    answer = client.post("/encode?model=tiny_colour&fit=pad", files={"img": stream.getvalue()}).json()
    assert answer["shape"] == [6, 8]
    decoded = client.post("/decode?model=tiny_colour", json=answer)
    assert pixels_of(decoded.content).shape == (22, 30, 3)
    whole = client.post("/decode?model=tiny_colour", json={"codes": answer["codes"]})
    assert np.array_equal(pixels_of(whole.content)[:22, :30], pixels_of(decoded.content))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "other"),
        ("version", "0" * 64),
        ("codebook_size", 17),
        ("shape", [7, 8]),
        ("height", 29),
        ("width", 29),
    ],
)
def test_codes_of_another_model_are_refused_by_name(client: TestClient, digit: bytes, name: str, value: object) -> None:
    answer = client.post("/encode", files={"img": digit}).json()
    problem = client.post("/decode", json={**answer, name: value})
    assert problem.status_code == 422
    assert problem.json()["type"] == "urn:vqserve:problem:invalid-codes"
    assert name in problem.json()["detail"]


def test_codes_of_another_model_that_is_served_say_how_to_ask_for_it(client: TestClient) -> None:
    """The detail was of a grid that does not fit, or said to encode them again."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 24), "green").save(stream, "PNG")
    answer = client.post("/encode?model=tiny_colour", files={"img": stream.getvalue()}).json()
    problem = client.post("/decode", json=answer)
    assert problem.status_code == 422
    assert problem.json()["detail"].endswith("would be decoded with 'tiny': pass ?model=tiny_colour.")
    assert client.post("/decode?model=tiny_colour", json=answer).status_code == 200


def test_several_pictures_have_no_picture_file(client: TestClient) -> None:
    codes = {"codes": [[[0] * 7] * 7] * 2}
    refused = client.post("/decode", json=codes, headers={"accept": "image/png"})
    assert refused.status_code == 406
    assert refused.json()["detail"] == (
        "Accept one of application/json, application/x-npy: several pictures, or a list of one, are no picture file."
    )
