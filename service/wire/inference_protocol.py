"""The wire format of the Open Inference Protocol (KServe v2) with its binary-tensor extension.

In: a body and its header length. Out: named arrays, and which outputs are wanted how; and back. No model in here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from service.errors import InvalidParameter, MalformedRequest, TooManyItems
from service.wire.schemas import MOST_VALUES, ListOf, StrictBody, excess_of

HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES: Mapping[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
_NUMBERS, _WHOLE = frozenset({int, float}), frozenset({int})
BINARY_OUTPUT = "binary_data_output"
# Of a tensor; the last tells a client's codec what it was, and some clients always send it.
_TENSOR_PARAMETERS = ("binary_data_size", "binary_data", "content_type")
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


B = TypeVar("B", bound=BaseModel)


class InferenceInput(StrictBody):
    name: str = Field(max_length=100)  # it is repeated in what a refusal says
    shape: ListOf[int] = Field(max_length=8)
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferenceOutput(StrictBody):
    name: str = Field(max_length=100)
    parameters: dict[str, Any] | None = None


class InferenceBody(StrictBody):
    """The JSON part of a request; tensors may follow it as bytes. What may be left out may be null."""

    id: str | None = Field(None, max_length=1000)  # it goes back with the answer
    model_name: str | None = Field(None, max_length=100, description="As in the path; KServe's client repeats it.")
    inputs: list[InferenceInput] = Field(max_length=8)
    outputs: list[InferenceOutput] | None = Field(None, max_length=8)
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class InferRequest:
    """`wanted` says for each output whether it goes out as bytes; empty: all of them, as `binary` says."""

    id: str
    model_name: str  # empty: not given
    inputs: Mapping[str, NDArray[Any]]
    wanted: Mapping[str, bool]
    binary: bool
    parameters: Mapping[str, Any]


def json_size_of(body: bytes, header_length: str | None) -> int:
    """Bytes of JSON that the body begins with, all of it without the header. Raises MalformedRequest."""
    if header_length is None:
        return len(body)
    number = int(header_length) if re.fullmatch("[0-9]{1,12}", header_length) else len(body) + 1
    if number > len(body):
        raise MalformedRequest(f"{HEADER_LENGTH} must be a number of bytes within the body.")
    return number


def read_json(kind: type[B], text: bytes, what: str) -> B:
    """Raises MalformedRequest: not `what`. TooManyItems: more JSON than is parsed."""
    if excess := excess_of(text):
        raise TooManyItems(f"The JSON has {excess}; send tensors flat, or as bytes: the binary tensor extension.")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:100] or "the body"
        raise MalformedRequest(f"Not {what}: {where}: {first['msg']}.") from error


def read_infer(body: bytes, json_bytes: int) -> InferRequest:
    """The request and its tensors, of which those in bytes follow the JSON.

    Raises:
        MalformedRequest: not such a request. TooManyItems: more JSON than is parsed.
        InvalidParameter: a tensor does not fit its description, or asks for what is not supported.
    """
    request = read_json(InferenceBody, body[:json_bytes], "an inference request")
    outputs, parameters = request.outputs or [], request.parameters or {}
    _check_tensors("Input", request.inputs)
    _check_tensors("Output", outputs)
    rest = memoryview(body)[json_bytes:]
    inputs: dict[str, NDArray[Any]] = {}
    for given in request.inputs:
        size = (given.parameters or {}).get("binary_data_size")
        if size is None:
            inputs[given.name] = _array_of_list(given)
            continue
        if given.data is not None:
            raise InvalidParameter(f"Input {given.name!r} has both data and binary_data_size; leave one out.")
        if type(size) is not int or not 0 <= size <= len(rest):
            follow = f"a whole number, at most the {len(rest)} bytes that follow"
            raise MalformedRequest(f"Input {given.name!r}: binary_data_size must be {follow}.")
        inputs[given.name], rest = _array_of_bytes(given, rest[:size]), rest[size:]
    if len(rest):
        raise MalformedRequest(f"{len(rest)} bytes follow the tensors; their sizes must add up to the body.")
    binary = _flag(BINARY_OUTPUT, parameters)
    wanted = {output.name: _flag("binary_data", output.parameters or {}, binary) for output in outputs}
    return InferRequest(request.id or "", request.model_name or "", inputs, wanted, binary, parameters)


def _flag(name: str, parameters: Mapping[str, Any], default: bool = False) -> bool:
    """`default` where it is not given, or null. Raises InvalidParameter."""
    flag = parameters.get(name)
    if flag is None:
        return default
    if not isinstance(flag, bool):
        short = flag[:40] if isinstance(flag, str) else type(flag).__name__  # it may be 32 MB
        raise InvalidParameter(f"{name} must be true or false, not {short!r}.")
    return flag


def check_json_size(request: InferRequest, output: str, size: int) -> None:
    """Raises TooManyItems: `output` is wanted as JSON, and has more numbers than would be read as JSON."""
    asked = not request.wanted or output in request.wanted
    if asked and not request.wanted.get(output, request.binary) and size > MOST_VALUES:
        raise TooManyItems(f"{output} has {size} numbers, JSON at most {MOST_VALUES}; ask for binary_data.")


def write_infer(
    name: str, version: str, request: InferRequest, outputs: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part where bytes follow it.

    Raises:
        TooManyItems: more numbers as JSON than would be read as JSON.
    """
    described, chunks = [], []
    for output, array in outputs.items():
        if request.wanted and output not in request.wanted:
            continue
        check_json_size(request, output, array.size)
        entry: dict[str, Any] = {"name": output, "datatype": NAMES[array.dtype], "shape": array.shape}
        if request.wanted.get(output, request.binary):
            chunks.append(np.ascontiguousarray(array).tobytes())
            entry["parameters"] = {"binary_data_size": array.nbytes}
        else:
            entry["data"] = np.ascontiguousarray(array).ravel()
        described.append(entry)
    answer = {"model_name": name, "model_version": version, "id": request.id, "outputs": described}
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join((head, *chunks)), len(head) if chunks else None


def _check_tensors(what: str, tensors: Sequence[InferenceInput | InferenceOutput]) -> None:
    """Raises InvalidParameter: a name comes twice, or the tensor has a parameter that would be ignored."""
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise InvalidParameter(f"{what} {tensor.name!r} comes twice; give each once.")
        names.add(tensor.name)
        parameters = tensor.parameters or {}
        if any(name.startswith("shared_memory_") for name in parameters):
            raise InvalidParameter(f"{what} {tensor.name!r}: shared memory is not supported; tensors go in the body.")
        if "classification" in parameters:
            raise InvalidParameter(f"{what} {tensor.name!r}: classification is not supported; leave class_count out.")
        unknown = next((name for name in parameters if name not in _TENSOR_PARAMETERS), None)
        if unknown is not None:
            raise InvalidParameter(
                f"{what} {tensor.name!r}: unknown parameter {unknown[:40]!r}; those of the model stand beside `inputs`."
            )


def _dtype(given: InferenceInput) -> np.dtype[Any]:
    if given.datatype not in DTYPES:
        raise InvalidParameter(f"Input {given.name!r}: datatype must be one of {', '.join(DTYPES)}.")
    return np.dtype(DTYPES[given.datatype])


def _shaped(given: InferenceInput, array: NDArray[Any]) -> NDArray[Any]:
    """With the shape that was given. Beside an axis of 0 another may be longer than numpy can count."""
    name, shape = given.name, given.shape
    shown = str(shape)[:80]  # an axis may have thousands of digits
    if min(shape, default=0) < 0 or math.prod(shape) != array.size:
        raise InvalidParameter(f"Input {name!r}: shape {shown} does not hold {array.size} elements.")
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidParameter(f"Input {name!r}: no array has the shape {shown}: {str(error)[:80]}.") from error


def _array_of_bytes(given: InferenceInput, data: memoryview) -> NDArray[Any]:
    dtype = _dtype(given)
    if len(data) % dtype.itemsize:
        raise InvalidParameter(f"Input {given.name!r}: {len(data)} bytes are not whole elements of {given.datatype}.")
    return _shaped(given, np.frombuffer(data, dtype))


def _array_of_list(given: InferenceInput) -> NDArray[Any]:
    dtype = _dtype(given)
    try:
        if given.data is None or not _only(_NUMBERS | {bool} if dtype.kind == "b" else _NUMBERS, given.data):
            raise ValueError("numbers are needed")
        found = np.array(given.data)
        whole = dtype.kind in "iu" and found.size > 0
        if whole and found.dtype.kind in "fO" and _only(_WHOLE, given.data):
            raise ValueError(f"a number does not fit {given.datatype}")  # numpy found no integers for them either
        if whole and found.dtype.kind not in "iu":
            raise ValueError("whole numbers are needed")
        if whole and not _holds(dtype, found):
            raise ValueError(f"a number does not fit {given.datatype}")
        with np.errstate(over="ignore"):  # beyond a FP32's range is infinity
            array = found.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidParameter(f"Input {given.name!r}: data is not {given.datatype}: {error}.") from error
    return _shaped(given, array)


def _only(allowed: Set[type], data: list[Any]) -> bool:
    """Text is refused before numpy sees it, which would give every element the room of the longest; and a `true` among
    numbers, which it would take for a 1."""
    kinds = set(map(type, data))
    inner = [one for one in data if isinstance(one, list)] if list in kinds else []
    return kinds <= {*allowed, list} and all(_only(allowed, one) for one in inner)


def _holds(dtype: np.dtype[Any], array: NDArray[Any]) -> bool:
    limits = np.iinfo(dtype)
    return bool(int(array.min()) >= limits.min and int(array.max()) <= limits.max)
