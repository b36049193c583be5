"""Arrays that are no pictures of the model: the answer says what came, and what is taken instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from service.errors import MalformedRequest
from service.wire.npy import MEDIA_TYPE, read_npy
from tests.service import bad_inputs as bad


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((1, 28, 28, 1), np.float32), "The array is float32: send uint8, from 0 for black to 255 for white."),
        (np.zeros((28, 28), np.uint8), "The array has the shape (28, 28): send (B,H,W,1), "),
        (np.zeros((28, 28, 1), np.uint8), "One picture is a B of 1."),
        (np.zeros((1, 28, 28, 3), np.uint8), "The array has the shape (1, 28, 28, 3): send (B,H,W,1), "),
        (np.zeros((0, 28, 28, 1), np.uint8), "The array has the shape (0, 28, 28, 1): send (B,H,W,1), "),
        (np.zeros((1, 28, 27, 1), np.uint8), "The model takes 28x28 pixels, not 27x28."),
    ],
)
def test_an_array_of_another_type_or_shape_is_named(client: TestClient, array: NDArray[Any], said: str) -> None:
    """One sentence for all: whoever had sent (28, 28) was told of the type too, and not which axis was missing."""
    response = client.post("/encode", content=bad.npy(array), headers={"content-type": MEDIA_TYPE})
    assert response.status_code == 422
    assert response.json()["type"] == "urn:vqserve:problem:wrong-picture-size"
    assert said in response.json()["detail"]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([{}], object), "The array holds Python objects; send one of numbers."),
        (np.zeros((2, 28, 28, 1), np.uint8, "F"), "numpy.ascontiguousarray"),
    ],
)
def test_the_advice_of_a_refused_array_helps(array: NDArray[Any], said: str) -> None:
    """An array of objects was to be made contiguous, and was refused again."""
    with pytest.raises(MalformedRequest, match=said):
        read_npy(bad.npy(array))


@pytest.mark.parametrize("shape", ["(1, 2, 3)", "(1,2,3)", "(1,2,3,)", "(1, 2,3, )"])
def test_the_shape_of_an_array_may_be_written_without_spaces(shape: str) -> None:
    """Writers in other languages leave out what NumPy puts after a comma; "(1,2,3)" alone was refused."""
    header = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}"
    array = read_npy(bad.npy_of_header(header) + np.arange(6, dtype="<i2").tobytes())
    np.testing.assert_array_equal(array, np.arange(6).reshape(1, 2, 3))


@pytest.mark.parametrize("shape", ["(6)", "( 6)", "(6 1)", "(6,,1)", "(,6)"])
def test_what_is_no_tuple_of_axes_is_no_shape(shape: str) -> None:
    header = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}"
    with pytest.raises(MalformedRequest, match="not a plain array"):
        read_npy(bad.npy_of_header(header) + bytes(12))
