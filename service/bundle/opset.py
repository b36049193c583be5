"""The operator set of an ONNX file, which onnxruntime does not tell. In: the bytes of the file. Out: a number.

A model is a protobuf message: fields of a key and a value, of which those that are not looked for are skipped whole
(protobuf.dev/programming-guides/encoding). So the graph and its weights are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

_OPSET_IMPORT = 8  # field of ModelProto, once for each domain of operators (onnx.proto)
_DOMAIN, _VERSION = 1, 2  # fields of OperatorSetIdProto
_OF_ONNX = (b"", b"ai.onnx")  # two names of one domain
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}  # bytes, by wire type


def opset_of(model: bytes) -> int | None:
    """The version of ONNX's own operators; None where the bytes do not say it, or are no model."""
    with suppress(ValueError):
        for field, value in _fields(memoryview(model)):
            if field == _OPSET_IMPORT and isinstance(value, memoryview):
                domain, version = _entry(value)
                if domain in _OF_ONNX:
                    return version
    return None


def _entry(message: memoryview) -> tuple[bytes, int]:
    domain, version = b"", 0  # what is not written
    for field, value in _fields(message):
        if field == _DOMAIN and isinstance(value, memoryview):
            domain = bytes(value)
        elif field == _VERSION and isinstance(value, int):
            version = value
    return domain, version


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Raises ValueError where the bytes are no message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size = _FIXED.get(kind)
        if kind == _BYTES:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError(f"no protobuf message: wire type {kind} at byte {at} of {len(message)}")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number and where it ends: seven bits a byte, the lowest first, the top bit set in all but the last."""
    number = shift = 0
    while at < len(message):
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("no protobuf message: it ends within a number")
