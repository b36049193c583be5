"""What calls return. In: JSON of the service. Out: frozen dataclasses with numpy arrays."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Pixels = NDArray[np.uint8]  # (H, W, C)
UNREADABLE = (  # what reading an unknown answer raises
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # the header of an .npy promises more than there is memory
    OverflowError,  # a number that int64 does not hold
    RecursionError,  # JSON of a thousand brackets
    TokenError,  # the header of an .npy is no Python literal
    TypeError,
    ValueError,
)
QUOTED = 200  # characters of such an error: that of bytes that are no text holds the whole answer


class _WithCodes:
    """Equal where all its fields are. The equality of dataclasses would ask an array whether it is true."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        theirs = vars(other)
        return all(
            np.array_equal(value, theirs[name]) if name == "codes" else value == theirs[name]
            for name, value in vars(self).items()
        )


@dataclass(frozen=True, eq=False)
class Encoded(_WithCodes):
    """codes (h,w) int64 of one picture of `width` x `height` pixels."""

    model: str
    version: str
    width: int
    height: int
    codes: Codes

    @classmethod
    def of(cls, model: str, version: str, item: dict[str, Any]) -> Encoded:
        return cls(model, version, int(item["width"]), int(item["height"]), np.asarray(item["codes"], np.int64))


@dataclass(frozen=True, eq=False)
class Generated(_WithCodes):
    """One sample: codes (h,w) int64, the picture as a PNG file, and its information content under the prior in bits."""

    label: int | None
    bits: float
    codes: Codes
    png: bytes = field(repr=False)  # a notebook would show all of it

    @classmethod
    def of(cls, item: dict[str, Any]) -> Generated:
        codes = np.asarray(item["codes"], np.int64)
        return cls(item["label"], float(item["bits"]), codes, base64.b64decode(item["image"]))


@dataclass(frozen=True)
class Generation:
    """All samples of one call; `seed` reproduces them."""

    model: str
    version: str
    seed: int
    items: tuple[Generated, ...]

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Generation:
        items = tuple(Generated.of(item) for item in answer["items"])
        return cls(answer["model"], answer["version"], int(answer["seed"]), items)  # a number: names of files hold it


@dataclass(frozen=True, eq=False)
class Row(_WithCodes):
    """One row of a stream: codes (n, w) int64 of all samples, and with `preview=True` their pictures so far as PNG
    files, else none."""

    row: int
    codes: Codes
    pngs: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, event: dict[str, Any]) -> Row:
        items = event["items"]
        pngs = tuple(base64.b64decode(item["image"]) for item in items if "image" in item)
        return cls(event["row"], np.asarray([item["codes"] for item in items], np.int64), pngs)


@dataclass(frozen=True)
class Score:
    """How well the prior expects one picture: its codes' information content in bits, whole and a code.

    `bits_by_label` has one number a label, where they were asked for: the smallest is the most likely label.
    """

    bits: float
    bits_per_code: float
    bits_by_label: tuple[float, ...] | None = None

    @classmethod
    def of(cls, item: dict[str, Any]) -> Score:
        by_label = item.get("bits_by_label")
        labels = None if by_label is None else tuple(float(bits) for bits in by_label)
        return cls(float(item["bits"]), float(item["bits_per_code"]), labels)


@dataclass(frozen=True)
class ModelInfo:
    """One model of the service; `details` is everything that it says."""

    name: str
    version: str
    labels: tuple[str, ...] | None
    details: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, answer: dict[str, Any]) -> ModelInfo:
        labels = answer["labels"]
        return cls(answer["name"], answer["version"], None if labels is None else tuple(labels), answer)
