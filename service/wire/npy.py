"""NumPy's .npy format without pickle and without a copy. In: bytes. Out: an array that reads them in place."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from service.errors import MalformedRequest

MEDIA_TYPE = "application/x-npy"
_MAGIC = b"\x93NUMPY\x01\x00"
# What numpy.save writes of a plain array. numpy's own reader takes any Python for a header, and warns of it as Python
# does: ten thousand bytes made three hundred thousand of log.
_HEADER = re.compile(
    rb"""\{'descr': *'([<>|=]?[?a-zA-Z][0-9]{0,5}(?:\[[0-9a-zA-Z]{1,5}\])?)', *"""
    rb"""'fortran_order': *(True|False), *'shape': *\(([0-9, ]{0,200})\) *(?:, *)?\}\s*"""
)
_AXES = re.compile(rb"(?:[0-9]{1,19}, *)*(?:(?<=[, ])[0-9]{1,19})?")  # not a number alone, which is no tuple


def read_npy(body: bytes) -> NDArray[Any]:
    """A read-only array over `body`, in C order.

    Raises:
        MalformedRequest: not a .npy file of version 1.0 with a header as numpy.save writes it for a plain array; an
            object array, Fortran order, another number of bytes than it announces, or a shape or type that no array
            can have.
    """
    start = len(_MAGIC) + 2
    end = start + int.from_bytes(body[len(_MAGIC) : start], "little")
    header = _HEADER.fullmatch(body, start, end) if body.startswith(_MAGIC) and end <= len(body) else None
    if header is None or not _AXES.fullmatch(header[3]):
        raise MalformedRequest("The body is not a plain array in a .npy file, version 1.0; write it with numpy.save.")
    shape = tuple(int(axis) for axis in header[3].split(b",") if axis.strip())
    try:
        dtype = np.dtype(header[1].decode("ascii"))
    except TypeError as error:
        raise MalformedRequest(f"The .npy header announces a type that no array can have: {error}.") from error
    if dtype.hasobject:
        raise MalformedRequest("The array holds Python objects; send one of numbers.")
    if header[2] == b"True":
        raise MalformedRequest("Send a plain array in C order: numpy.save(file, numpy.ascontiguousarray(array)).")
    if math.prod(shape) * dtype.itemsize != len(body) - end:
        raise MalformedRequest(f"The .npy header announces {shape} of {dtype}, the body has another number of bytes.")
    try:
        return np.frombuffer(body, dtype, offset=end).reshape(shape)
    except ValueError as error:  # elements of no bytes, more than 64 axes, an axis beyond an address beside one of 0
        raise MalformedRequest(f"The .npy header announces what no array can be: {error}.") from error


def write_npy(array: NDArray[Any]) -> bytes:
    """A .npy file of version 1.0. Raises ValueError of an array of objects."""
    stream = io.BytesIO()
    npy_format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()
