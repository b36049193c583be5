"""NumPy's .npy format without pickle and without a copy. In: bytes. Out: an array that reads them in place."""

from __future__ import annotations

import io
import math
import tokenize
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from service.errors import MalformedRequest

MEDIA_TYPE = "application/x-npy"
# What numpy's reader of headers raises on noise: it parses them as Python. The test of headers keeps this list honest.
_BROKEN = (ValueError, SyntaxError, TypeError, IndexError, RecursionError, MemoryError, tokenize.TokenError)


def read_npy(body: bytes) -> NDArray[Any]:
    """A read-only array over `body`, in C order.

    Raises:
        MalformedRequest: not a .npy file, an object array, Fortran order, another number of bytes than it announces, or
            a shape or type that no array can have.
    """
    stream = io.BytesIO(body)
    try:
        version = npy_format.read_magic(stream)
        if version != (1, 0):
            raise ValueError("only version 1.0 is read")
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(stream)
    except _BROKEN as error:
        raise MalformedRequest(f"The body is not a .npy file; write it with numpy.save. ({error})") from error
    if dtype.hasobject or fortran_order:
        raise MalformedRequest("Send a plain array in C order: numpy.save(file, numpy.ascontiguousarray(array)).")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(body) - stream.tell():
        raise MalformedRequest(f"The .npy header announces {shape} of {dtype}, the body has another number of bytes.")
    try:
        return np.frombuffer(body, dtype, offset=stream.tell()).reshape(shape)
    # elements of no bytes, more than 64 axes, an axis beyond an address beside one of 0; an axis of True
    except (ValueError, TypeError) as error:
        raise MalformedRequest(f"The .npy header announces what no array can be: {error}.") from error


def write_npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    npy_format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()
