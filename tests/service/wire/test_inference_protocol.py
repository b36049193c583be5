"""Bodies of the Open Inference Protocol: what would be read as something else is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from service.errors import InvalidParameter, MalformedRequest, Problem
from service.wire.inference_protocol import DTYPES, InferRequest, read_infer


def read(tensor: dict[str, Any], tail: bytes = b"", **more: Any) -> InferRequest:
    given = {"name": "codes", "shape": [2], "datatype": "INT64", **tensor}
    body = orjson.dumps({"inputs": [given], **more})
    return read_infer(body + tail, len(body))


@pytest.mark.parametrize(
    ("tensor", "more", "kind", "message"),
    [
        (
            {"data": [1, 2], "parameters": {"binary_data_size": 16}},
            {},
            InvalidParameter,
            "both data and binary_data_size",
        ),
        ({"parameters": {"binary_data_size": True}}, {}, MalformedRequest, "binary_data_size must be a whole number"),
        ({"data": [1, 2], "shape": [True, 2]}, {}, MalformedRequest, r"shape\.0"),
        ({"data": [1, 2], "shape": ["2"]}, {}, MalformedRequest, r"shape\.0"),
        ({"data": [1, 2], "shape": [2.0]}, {}, MalformedRequest, r"shape\.0"),
        ({"data": [-1, 2**63]}, {}, InvalidParameter, "a number does not fit INT64"),
        ({"data": [0.5, 1]}, {}, InvalidParameter, "whole numbers are needed"),
        ({"data": [1, 2]}, {"parameters": {"binary_data_output": "true"}}, InvalidParameter, "must be true or false"),
        ({"data": [1, 2]}, {"parameters": {"binary_data_output": 1}}, InvalidParameter, "must be true or false"),
        (
            {"data": [1, 2]},
            {"outputs": [{"name": "images", "parameters": {"binary_data": "true"}}]},
            InvalidParameter,
            "binary_data must be true or false, not 'true'",
        ),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(
    tensor: dict[str, Any], more: dict[str, Any], kind: type[Problem], message: str
) -> None:
    """Each but the numbers that do not fit was answered with 200: bytes won over data, "true" was false, true was 1."""
    with pytest.raises(kind, match=message):
        read(tensor, bytes(16) if "binary_data_size" in tensor.get("parameters", {}) else b"", **more)


@pytest.mark.parametrize("given", [True, False, None])
def test_an_output_without_a_flag_of_its_own_goes_out_as_all_do(given: bool | None) -> None:
    """The extension's `binary_data_output` is of all outputs, and `binary_data` of one comes before it."""
    parameters = {} if given is None else {"binary_data": given}
    outputs = [{"name": "images", "parameters": parameters}]
    assert read({"data": [1, 2]}, outputs=outputs).wanted == {"images": bool(given)}
    asked = read({"data": [1, 2]}, outputs=outputs, parameters={"binary_data_output": True})
    assert asked.wanted == {"images": given is not False}


@pytest.mark.parametrize("name", ["id", "model_name", "outputs", "parameters"])
def test_what_may_be_left_out_may_be_null(name: str) -> None:
    """As Rust's and Java's writers of JSON have it by default. It was refused: "Input should be a valid string"."""
    plain, given = read({"data": [1, 2]}), read({"data": [1, 2], "parameters": None}, **{name: None})
    assert (given.inputs["codes"] == plain.inputs["codes"]).all()
    assert replace(given, inputs={}) == replace(plain, inputs={})


@pytest.mark.parametrize("parameters", [None, {"binary_data": None, "binary_data_size": None}])
def test_parameters_that_are_null_are_none(parameters: dict[str, Any] | None) -> None:
    asked = read(
        {"data": [1, 2], "parameters": parameters},
        outputs=[{"name": "images", "parameters": parameters}],
        parameters={"binary_data_output": None},
    )
    assert asked.wanted == {"images": False} and not asked.binary


@pytest.mark.parametrize("datatype", ["UINT8", "INT64"])
def test_a_tensor_of_nothing_is_read_as_one(datatype: str) -> None:
    """It was refused with "a number does not fit"; the model says that it wants some."""
    array = read({"data": [], "shape": [0], "datatype": datatype}).inputs["codes"]
    assert array.shape == (0,) and array.dtype == DTYPES[datatype]


@pytest.mark.parametrize("data", [[3, 2**62], [[3], [2**62]]])
def test_numbers_and_bytes_are_read_as_they_are(data: list[Any]) -> None:
    parameters = {"binary_data_size": 16}
    sent = np.array([3, 2**62])
    asked = read({"data": data}, parameters={"binary_data_output": True})
    assert asked.binary and (asked.inputs["codes"] == sent).all()
    asked = read(
        {"parameters": parameters}, sent.tobytes(), outputs=[{"name": "a", "parameters": {"binary_data": True}}]
    )
    assert not asked.binary and asked.wanted == {"a": True} and (asked.inputs["codes"] == sent).all()
