"""What a JSON body may cost: one error whatever is wrong in it, and nothing at all where it holds too much."""

from __future__ import annotations

import json
from math import isqrt

import pytest
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from service.errors import problem_type
from service.routes.generation_request import GenerateRequest
from service.settings import Settings
from service.wire.inference_protocol import InferenceBody
from service.wire.schemas import MOST_FIELDS, MOST_LISTS, MOST_VALUES, DecodeRequest, excess_of

JSON = {"content-type": "application/json"}
INFER = "/v2/models/tiny.decode/infer"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (DecodeRequest, {"codes": [[-1] * 1000]}),
        (DecodeRequest, {"codes": [[-1]] * 1000}),
        (DecodeRequest, {"codes": [[[-1]]] * 1000}),
        (DecodeRequest, {"codes": ["x"] * 1000}),
        (GenerateRequest, {"known": [[""] * 1000]}),
        (GenerateRequest, {"known": [[""]] * 1000}),
        (GenerateRequest, {"known": {"codes": [[""] * 1000], "mask": [[""]] * 1000}}),
        (InferenceBody, {"inputs": [{"name": "n", "datatype": "INT64", "shape": [""] * 1000}]}),
        (InferenceBody, {"inputs": [""] * 1000}),
    ],
)
def test_a_list_ends_at_its_first_bad_element(model: type[BaseModel], body: object) -> None:
    """Regression: 300 KiB of codes below 0 cost 1.5 s and 330 MiB of errors."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    assert caught.value.error_count() <= 9  # a few for each arm of a union, or for each of 8 inputs


@pytest.mark.parametrize(
    ("mark", "most", "what"),
    [
        (b":", MOST_FIELDS, "fields"),
        (b"[", MOST_LISTS, "lists"),
        (b"{", MOST_LISTS, "lists"),
        (b",", MOST_VALUES, "values"),
    ],
)
def test_what_is_counted_at_and_above_its_limit(mark: bytes, most: int, what: str) -> None:
    assert excess_of(mark * most) is None
    assert excess_of(mark * (most + 1)) == f"more than {most:,} {what}"


@pytest.mark.parametrize(
    ("codes", "where"),
    [
        ([[0, 1], [0, -1]], "codes.1.1: Input should be greater than or equal to 0."),
        ([[[0, 1], [0, 1]], [[0, 1], [0, -1]]], "codes.1.1.1: Input should be greater than or equal to 0."),
        ([[[0, 1], [0, 1]], [[0, "x"], [0, 1]]], "codes.1.0.1: Input should be a valid integer."),
        ([[[0.5]]], "codes.0.0.0: Input should be a valid integer."),
        ([[[0, 1], [0, 1]], []], "codes.1: List should have at least 1 item after validation, not 0."),
        ([[[0, 1], [0, 1]], 3], "codes.1: Input should be a valid array."),
        ([[0, 1], 3], "codes.1: Input should be a valid array."),
    ],
)
def test_a_bad_code_is_found_where_it_is(client: TestClient, codes: object, where: str) -> None:
    """Of several grids it was always `codes.0.0`, which is a row and in order."""
    response = client.post("/decode", json={"codes": codes})
    assert (response.status_code, response.json()["type"]) == (422, problem_type("invalid-codes"))
    assert response.json()["detail"].endswith(f"; {where}")


def unknown_fields(count: int) -> bytes:
    return json.dumps({f"field{number}": 0 for number in range(count)}).encode()


@pytest.mark.parametrize("path", ["/decode", INFER])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"codes": [' + b"[]," * MOST_LISTS + b"[]]}", f"The JSON has more than {MOST_LISTS:,} lists"),
        (b'{"codes": [[' + b"0," * MOST_VALUES + b"0,0]]}", f"The JSON has more than {MOST_VALUES:,} values"),
        (unknown_fields(MOST_FIELDS + 1), "The JSON has more than 256 fields"),
    ],
)
def test_a_body_of_too_much_is_not_parsed(client: TestClient, path: str, body: bytes, said: str) -> None:
    response = client.post(path, content=body, headers=JSON)
    assert (response.status_code, response.json()["type"]) == (413, problem_type("too-many-items"))
    assert response.json()["detail"].startswith(said)


def test_the_codes_of_the_largest_picture_may_come_back(client: TestClient) -> None:
    """/encode's answer for it was refused by /decode, which takes such an answer as it is."""
    side = isqrt(Settings().max_pixels) // 4  # of models/photos; a picture that is padded may have a row more
    row = b"[" + b",".join([b"511"] * side) + b"]"
    beside = b'"model":"m","version":"v","width":1,"height":1,"shape":[1,1],"codebook_size":512,"codes":['
    assert excess_of(b"{" + beside + b",".join([row] * (side + 1)) + b"]}") is None


def test_a_wrong_value_is_shown_in_short(client: TestClient) -> None:
    """A text of 32 MB was written out whole for its first characters, which held the event loop for 0.2 s."""
    long = "m" * 1000
    detail = client.post("/decode", json={"codes": [[0]], "model": long}).json()["detail"]
    assert detail.startswith(f"model is '{long[:69]}, the codes")
    for given, shown in ((long, long[:40]), ([[]], "list"), ({}, "dict"), (1, "int")):
        body = {"inputs": [], "parameters": {"binary_data_output": given}}
        said = client.post(INFER, json=body).json()["error"]
        assert said == f"binary_data_output must be true or false, not '{shown}'."


def test_the_protocol_counts_only_what_is_json(client: TestClient) -> None:
    """Bytes that follow it are tensors, whatever characters they look like."""
    size = 2 * MOST_LISTS
    given = {"name": "codes", "shape": [size], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [given]}).encode()
    response = client.post(
        INFER, content=head + b"[" * size, headers={"inference-header-content-length": str(len(head))}
    )
    assert "3 axes" in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"known": [[""] * 1000]},
        {"known": [[]] * 1000},
        {"known": {"codes": [[1] * 500] * 2, "mask": [[True] * 500] * 2}},
        {f"field{number}": 0 for number in range(MOST_FIELDS + 1)},
        {"label": "A" * 30_000},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_generate_takes_no_more_json_than_its_grid_needs(generator: TestClient, body: object) -> None:
    response = generator.post("/generate", json=body)
    assert (response.status_code, response.json()["type"]) == (422, problem_type("invalid-parameter"))
    assert response.json()["detail"].startswith("The JSON has ")
    assert "no request for 7x7 codes" in response.json()["detail"]


@pytest.mark.parametrize("data", [None, ["0"], [None], [{}], [[0], ["0"]], [["0" * 10_000, *[""] * 100]]])
def test_tensors_of_the_protocol_are_numbers(client: TestClient, data: object) -> None:
    """Regression: numpy gave every text the room of the longest, gigabytes for a body of a megabyte."""
    given = {"name": "codes", "shape": [1], "datatype": "FP32", "data": data}
    response = client.post(INFER, json={"inputs": [given]})
    assert (response.status_code, response.json()["type"]) == (422, problem_type("invalid-parameter"))
    assert "numbers are needed" in response.json()["detail"]
