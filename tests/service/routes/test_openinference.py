"""/v2 with the real `tritonclient[http]`, blocking and asyncio, over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from service.registry.model import Model
from service.routes.requests import read_json_here_or_in_thread
from service.settings import Settings
from tests.conftest import Tiny, running
from tests.service.serving import serving
from tests.tiny_bundle import CODEBOOK_SIZE, oracle_codes, oracle_pixels, tiny_prior, write_tiny_bundle


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = tmp_path_factory.mktemp("v2") / "tiny"
    write_tiny_bundle(bundle, "tiny", prior=tiny_prior())
    with serving(bundle) as (_, url):
        yield url.removeprefix("http://")


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as client:
        yield client


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str, binary: bool = True) -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(8).integers(0, 256, (5, 28, 28, 1), np.uint8)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_encode_and_decode(client: Any, tiny: Tiny, pixels: Any, binary_in: bool, binary_out: bool | None) -> None:
    codes_out = images_out = None
    if binary_out is not None:
        codes_out = [triton.InferRequestedOutput("codes", binary_data=binary_out)]
        images_out = [triton.InferRequestedOutput("images", binary_data=binary_out)]
    given = tensor("images", pixels, "UINT8", binary_in)
    codes = client.infer("tiny.encode", [given], outputs=codes_out, request_id="7")
    assert codes.get_response()["id"] == "7"
    array = codes.as_numpy("codes")
    assert array.dtype == np.int64
    assert (array == oracle_codes(pixels, tiny.grey_weights)).all()
    images = client.infer("tiny.decode", [tensor("codes", array, "INT64", binary_in)], outputs=images_out)
    assert (images.as_numpy("images") == oracle_pixels(array, tiny.grey_weights, 1)).all()


def test_generate_is_what_the_seed_says(client: Any, tiny: Tiny) -> None:
    labels = tensor("labels", np.array([0, 1, -1]), "INT64")
    results = [client.infer("tiny.generate", [labels], parameters={"seed": 5, "top_k": 8}) for _ in range(2)]
    codes = results[0].as_numpy("codes")
    assert codes.shape == (3, 7, 7)
    assert ((codes >= 0) & (codes < CODEBOOK_SIZE)).all()
    assert (codes == results[1].as_numpy("codes")).all()
    assert (results[0].as_numpy("images") == oracle_pixels(codes, tiny.grey_weights, 1)).all()
    assert results[0].as_numpy("seed").tolist() == [5, 5, 5]


def test_guidance_pushes_only_what_has_a_label(client: Any, tiny: Tiny) -> None:
    labels = tensor("labels", np.array([-1, 0, 1]), "INT64")
    drawn = [
        client.infer("tiny.generate", [labels], parameters={"seed": 5, "guidance": guidance}).as_numpy("codes")
        for guidance in (1.0, 4.0)
    ]
    assert (drawn[0][0] == drawn[1][0]).all()
    assert (drawn[0][1:] != drawn[1][1:]).any()
    with pytest.raises(InferenceServerException, match="guidance needs a label"):
        client.infer("tiny.generate", [tensor("labels", np.array([-1]), "INT64")], parameters={"guidance": 2.0})


def test_metadata_readiness_and_repository(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny.encode")
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28, 1]}]
    assert metadata["outputs"] == [{"name": "codes", "datatype": "INT64", "shape": [-1, 7, 7]}]
    version = metadata["versions"][0]
    assert client.is_model_ready("tiny.encode", version)
    assert not client.is_model_ready("tiny.encode", "other")
    assert not client.is_model_ready("tiny")
    assert client.get_model_config("tiny.decode")["input"][0]["data_type"] == "TYPE_INT64"
    most = {name: client.get_model_config(f"tiny.{name}")["max_batch_size"] for name in ("encode", "generate")}
    assert most == {"encode": Settings().max_pictures_per_request, "generate": Settings().max_samples_per_request}
    index = {entry["name"]: (entry["state"], entry["reason"]) for entry in client.get_model_repository_index()}
    assert index == dict.fromkeys(("tiny.encode", "tiny.decode", "tiny.generate"), ("READY", ""))
    client.load_model("tiny.encode")
    with pytest.raises(InferenceServerException, match="VQSERVE_BUNDLES"):
        client.unload_model("tiny.encode")


@pytest.mark.parametrize(
    ("model", "name", "array", "datatype", "status", "message"),
    [
        ("none.encode", "images", np.zeros((1, 28, 28, 1), np.uint8), "UINT8", "404", "there are tiny.encode, "),
        ("tiny.encode", "pictures", np.zeros((1, 28, 28, 1), np.uint8), "UINT8", "422", "only input"),
        ("tiny.encode", "images", np.zeros((1, 27, 28, 1), np.uint8), "UINT8", "422", "28x28"),
        ("tiny.encode", "images", np.zeros((1, 28, 28, 1), np.int64), "INT64", "422", "uint8"),
        ("tiny.decode", "codes", np.full((1, 7, 7), 16), "INT64", "422", "0..15"),
        ("tiny.decode", "codes", np.zeros((7, 7), np.int64), "INT64", "422", "3 axes"),
        ("tiny.generate", "labels", np.array([9]), "INT64", "422", "labels must"),
        ("tiny.generate", "labels", np.zeros(0, np.int64), "INT64", "422", "at least one"),
        ("tiny.generate", "labels", np.full(65, 9, np.uint8), "UINT8", "422", "at most 64 samples a request, not 65"),
    ],
)
def test_errors_are_those_of_the_client(
    client: Any, model: str, name: str, array: Any, datatype: str, status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(model, [tensor(name, array, datatype)])
    assert caught.value.status() == status


def infer_body(**changes: Any) -> dict[str, Any]:
    given = {"name": "codes", "shape": [1, 7, 7], "datatype": "INT64", "data": [0] * 49, **changes}
    return {"inputs": [given]}


@pytest.mark.parametrize(
    ("body", "header", "status"),
    [
        (b"noise", None, 400),
        (b"", None, 400),
        (json.dumps({"inputs": {}}).encode(), None, 400),
        (json.dumps(infer_body()).encode(), "-1", 400),
        (json.dumps(infer_body()).encode(), "999999", 400),
        (json.dumps(infer_body()).encode() + b"tail", str(len(json.dumps(infer_body()))), 400),
        (json.dumps(infer_body(data=None, parameters={"binary_data_size": 392})).encode(), None, 400),
        (json.dumps(infer_body(name="n" * 101)).encode(), None, 400),
        (json.dumps({**infer_body(), "model_name": 3}).encode(), None, 400),
        (json.dumps({**infer_body(), "id": "i" * 1000}).encode(), None, 200),
        (json.dumps({**infer_body(), "id": "i" * 1001}).encode(), None, 400),
        (json.dumps({**infer_body(), "model_name": "tiny.encode"}).encode(), None, 422),
        (json.dumps(infer_body(data=None)).encode(), None, 422),
        (json.dumps(infer_body(data=[0.5] * 49)).encode(), None, 422),
        (json.dumps(infer_body(data=[[0], [0, 1]])).encode(), None, 422),
        (json.dumps(infer_body(data=[2**63] * 49)).encode(), None, 422),
        (json.dumps(infer_body(shape=[1, 7, 8])).encode(), None, 422),
        (json.dumps(infer_body(shape=[-1, 7, 7])).encode(), None, 422),
        (json.dumps(infer_body(shape=[0, 2**70], data=[])).encode(), None, 422),
        (json.dumps(infer_body(shape=[0, 2**62, 2**62], data=[])).encode(), None, 422),
        (json.dumps(infer_body(shape=[0, 2**70], data=None, parameters={"binary_data_size": 0})).encode(), None, 422),
        (json.dumps(infer_body(data=[True] * 48 + [5])).encode(), None, 422),
        (json.dumps(infer_body(data=[[[True] * 7] * 7])).encode(), None, 422),
        (json.dumps(infer_body(datatype="BYTES")).encode(), None, 422),
        (json.dumps({**infer_body(), "outputs": [{"name": "codes"}]}).encode(), None, 422),
        (json.dumps(infer_body()).encode(), None, 200),
        (json.dumps({**infer_body(), "model_name": "tiny.decode"}).encode(), None, 200),  # KServe's client sends it
    ],
)
def test_bad_bodies(address: str, body: bytes, header: str | None, status: int) -> None:
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    response = httpx.post(f"http://{address}/v2/models/tiny.decode/infer", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert (status == 200) != ("error" in response.json())
    assert response.headers["content-type"] == "application/json"  # KServe's client reads no errors of another type


def output(**options: Any) -> Any:
    return triton.InferRequestedOutput("codes", **options)


def in_shared_memory(tensor: Any) -> Any:
    tensor.set_shared_memory("region", 784)
    return tensor


def with_parameter(tensor: Any) -> Any:
    tensor._parameters["seed"] = 1
    return tensor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda images: {"inputs": [images, images]}, "Input 'images' comes twice"),
        (lambda _: {"outputs": [output(), output(binary_data=False)]}, "Output 'codes' comes twice"),
        (lambda _: {"outputs": [in_shared_memory(output())]}, "Output 'codes': shared memory is not supported"),
        (lambda _: {"outputs": [output(class_count=3)]}, "Output 'codes': classification is not supported"),
        (
            lambda _: {"inputs": [in_shared_memory(triton.InferInput("images", [1, 28, 28, 1], "UINT8"))]},
            "Input 'images': shared memory is not supported",
        ),
        (lambda _: {"parameters": {"effort": 1}}, "Unknown parameter 'effort'; this model has none"),
        (lambda images: {"inputs": [with_parameter(images)]}, "Input 'images': unknown parameter 'seed'"),
        (lambda _: {"outputs": [with_parameter(output())]}, "Output 'codes': unknown parameter 'seed'"),
    ],
)
def test_what_would_be_ignored_is_refused(client: Any, pixels: Any, changes: Any, message: str) -> None:
    """Regression: each was answered with 200, and but for one as if it had not been there."""
    asked = {"inputs": [tensor("images", pixels, "UINT8")], **changes(tensor("images", pixels, "UINT8"))}
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer("tiny.encode", **asked)
    assert caught.value.status() == "422"


@pytest.mark.parametrize("misspelt", [{"parameter": {"seed": 1}}, {"output": []}])
def test_a_misspelt_field_is_refused(address: str, misspelt: dict[str, Any]) -> None:
    """Regression: it was ignored, and the seed with it."""
    labels = {"name": "labels", "shape": [1], "datatype": "INT64", "data": [-1]}
    for body in ({"inputs": [labels], **misspelt}, {"inputs": [{**labels, **misspelt}]}):
        response = httpx.post(f"http://{address}/v2/models/tiny.generate/infer", json=body)
        assert response.status_code == 400 and next(iter(misspelt)) in response.json()["error"]


@pytest.mark.parametrize("name", ["seed", "temperature", "guidance", "top_k", "top_p"])
def test_a_parameter_that_is_null_is_left_out(address: str, name: str) -> None:
    """`temperature` and `guidance` were refused."""
    labels = {"name": "labels", "shape": [1], "datatype": "INT64", "data": [-1]}
    body = {"inputs": [labels], "parameters": {name: None}}
    assert httpx.post(f"http://{address}/v2/models/tiny.generate/infer", json=body).status_code == 200


def test_a_label_where_there_are_none(tiny: Tiny, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "photos", any_size=True, prior=tiny_prior(label_count=0))
    with running(Settings(**{**tiny.settings, "bundles": (tmp_path,)})) as client:
        labels = {"name": "labels", "shape": [1], "datatype": "INT64", "data": [3]}
        response = client.post("/v2/models/photos.generate/infer", json={"inputs": [labels]})
    assert (response.status_code, "there are no labels" in response.text) == (422, True)


@pytest.mark.parametrize("unknown", [{"temprature": 0.01}, {"n": 5}, {"label": 0}])
def test_an_unknown_parameter_is_refused_and_one_of_the_protocol_is_not(client: Any, unknown: dict[str, Any]) -> None:
    labels = [tensor("labels", np.array([-1]), "INT64")]
    with pytest.raises(InferenceServerException, match=r"Unknown parameter '[a-z]+'; there are seed") as caught:
        client.infer("tiny.generate", labels, parameters=unknown)
    assert caught.value.status() == "422"
    own = {"sequence_id": 3, "sequence_start": True, "sequence_end": True, "priority": 1, "timeout": 1_000_000}
    answer = client.infer("tiny.generate", labels, parameters={"seed": 5, "content_type": "np"}, **own)
    assert answer.as_numpy("seed").tolist() == [5]


def test_the_server_is_described_at_both_of_its_paths(address: str) -> None:
    """The protocol's text has /v2, its OpenAPI file /v2/, which was no route."""
    plain, slash = (httpx.get(f"http://{address}/v2{end}") for end in ("", "/"))
    assert (slash.status_code, slash.json()) == (200, plain.json())


def test_null_asks_the_repository_for_nothing(address: str) -> None:
    """What may be left out: each was answered with 400."""
    index = [httpx.post(f"http://{address}/v2/repository/index", json=body) for body in ({}, {"ready": None})]
    assert [answer.status_code for answer in index] == [200, 200]
    assert index[0].json() == index[1].json()
    load = httpx.post(f"http://{address}/v2/repository/models/tiny.encode/load", json={"parameters": None})
    assert load.status_code == 200, load.text


def test_load_takes_no_parameters(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="'config' is not supported; a model is loaded as its bundle"):
        client.load_model("tiny.encode", config='{"max_batch_size": 3}')


@pytest.mark.parametrize("path", ["/v2/models/tiny.encode/infer", "/v2/repository/index", "/models/tiny/reload"])
def test_an_unknown_query_field_is_refused(make_client: Callable[..., TestClient], path: str) -> None:
    answer = make_client().post(f"{path}?model=tiny", json=infer_body())
    assert answer.status_code == 422
    assert answer.json()["detail"] == "Unknown query field 'model'; this route has none."


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/tiny.encode/ready"])
def test_who_is_not_ready_says_when_to_ask_again(
    monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., TestClient], path: str
) -> None:
    client = make_client()
    monkeypatch.setattr(Model, "why_not_ready", lambda _: "it rests")
    answer = client.get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "it rests" in answer.json()["detail"]


def test_the_index_lists_only_what_is_ready_if_asked(
    monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., TestClient]
) -> None:
    client, index = make_client(), "/v2/repository/index"
    assert len(client.post(index, json={"ready": True}).json()) == 4
    monkeypatch.setattr(Model, "why_not_ready", lambda _: "it rests")
    assert client.post(index, json={"ready": True}).json() == []
    for body in (b"", b"{}", b'{"ready": false}'):
        states = [(one["state"], one["reason"]) for one in client.post(index, content=body).json()]
        assert states == [("UNAVAILABLE", "it rests")] * 4
    for body in (b"noise", b"[]", b"null", b'{"ready": 1}', b'{"raedy": true}'):
        assert client.post(index, content=body).status_code == 400


@pytest.mark.parametrize("seed", ["18446744073709551616", "-18446744073709551616", "1e400", '"5"', "[5]", "NaN"])
def test_a_seed_that_is_none_gets_422(address: str, seed: str) -> None:
    """Regression: whole numbers of more than 64 bits were answered with 500."""
    labels = '{"name": "labels", "shape": [1], "datatype": "INT64", "data": [0]}'
    body = f'{{"inputs": [{labels}], "parameters": {{"seed": {seed}}}}}'
    response = httpx.post(f"http://{address}/v2/models/tiny.generate/infer", content=body)
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith("seed: ")


def test_the_asyncio_client(address: str, tiny: Tiny, pixels: Any) -> None:
    async def work() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            result = await client.infer("tiny.encode", [tensor("images", pixels, "UINT8")])
            assert (result.as_numpy("codes") == oracle_codes(pixels, tiny.grey_weights)).all()

    asyncio.run(work())


def test_a_bundle_without_a_prior_has_no_generate(tiny: Tiny, tmp_path: Path) -> None:
    with serving(tiny.grey) as (_, url), triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert {entry["name"] for entry in client.get_model_repository_index()} == {"tiny.encode", "tiny.decode"}
        assert not client.is_model_ready("tiny.generate")


def test_more_numbers_than_are_read_as_json_are_not_written_as_json_either(
    monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., TestClient]
) -> None:
    monkeypatch.setattr("service.wire.inference_protocol.MOST_VALUES", 28 * 28)
    client, codes = make_client(), {"name": "codes", "datatype": "INT64", "data": [0] * 98}
    for count, status in ((1, 200), (2, 413)):
        body = {"inputs": [{**codes, "shape": [count, 7, 7], "data": [0] * 49 * count}]}
        assert client.post("/v2/models/tiny.decode/infer", json=body).status_code == status
    binary = client.post("/v2/models/tiny.decode/infer", json={**body, "parameters": {"binary_data_output": True}})
    assert binary.status_code == 200


def test_an_output_that_there_is_not_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., TestClient]
) -> None:
    client, ran = make_client(), []
    engine = client.app.state.service.models.get("tiny").engine  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "decode", lambda codes: ran.append(codes))
    inputs = [{"name": "codes", "datatype": "INT64", "shape": [1, 7, 7], "data": [0] * 49}]
    body = {"inputs": inputs, "outputs": [{"name": "latents"}]}
    answer = client.post("/v2/models/tiny.decode/infer", json=body)
    assert answer.status_code == 422 and "'latents'" in answer.json()["error"]
    assert not ran


def test_only_the_json_decides_who_reads_a_body(
    monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., TestClient]
) -> None:
    """Binary tensors are taken as they are: 90 digits waited in the threads behind photographs, 80 did not."""
    sizes: list[int] = []

    async def recorded(call: Any, size: int, *others: Any) -> Any:
        sizes.append(size)
        return await read_json_here_or_in_thread(call, size, *others)

    monkeypatch.setattr("service.routes.openinference.read_json_here_or_in_thread", recorded)
    images = tensor("images", np.zeros((90, 28, 28, 1), np.uint8), "UINT8")
    body, json_size = triton.InferenceServerClient.generate_request_body([images])
    answer = make_client().post(
        "/v2/models/tiny.encode/infer", content=body, headers={"Inference-Header-Content-Length": str(json_size)}
    )
    assert answer.status_code == 200, answer.text
    assert sizes == [json_size]
    assert json_size < 1000 < len(body)
