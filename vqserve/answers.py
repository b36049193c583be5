"""What calls return. In: JSON of the service. Out: frozen dataclasses with numpy arrays."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
UNREADABLE = (AttributeError, EOFError, KeyError, TypeError, ValueError)  # what reading an unknown answer raises
QUOTED = 200  # characters of such an error: that of bytes that are no text holds the whole answer


@dataclass(frozen=True)
class Encoded:
    """codes (h,w) int64 of one picture of `width` x `height` pixels."""

    model: str
    version: str
    width: int
    height: int
    codes: Codes

    @classmethod
    def of(cls, model: str, version: str, item: dict[str, Any]) -> Encoded:
        return cls(model, version, item["width"], item["height"], np.asarray(item["codes"], np.int64))


@dataclass(frozen=True)
class Generated:
    """One sample: codes (h,w) int64, the picture as a PNG file, and its information content under the prior in bits."""

    label: int | None
    bits: float
    codes: Codes
    png: bytes

    @classmethod
    def of(cls, item: dict[str, Any]) -> Generated:
        codes = np.asarray(item["codes"], np.int64)
        return cls(item["label"], item["bits"], codes, base64.b64decode(item["image"]))


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
        return cls(answer["model"], answer["version"], answer["seed"], items)


@dataclass(frozen=True)
class Row:
    """One row of a stream: codes (n, w) int64 of all samples, and with `preview=True` their pictures so far as PNG
    files, else none."""

    row: int
    codes: Codes
    pngs: tuple[bytes, ...] = ()

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
        return cls(item["bits"], item["bits_per_code"], None if by_label is None else tuple(by_label))


@dataclass(frozen=True)
class ModelInfo:
    """One model of the service; `details` is everything that it says."""

    name: str
    version: str
    labels: tuple[str, ...] | None
    details: dict[str, Any]

    @classmethod
    def of(cls, answer: dict[str, Any]) -> ModelInfo:
        labels = answer["labels"]
        return cls(answer["name"], answer["version"], None if labels is None else tuple(labels), answer)
