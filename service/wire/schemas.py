"""The JSON bodies of the API: requests that are validated here, and answers whose shape the OpenAPI file shows.

What a body may cost is bounded twice: `excess_of` counts before it is parsed, and a list ends at its first bad element.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from service.bundle.fields import CodesSpec, PictureSpec, Quality

MOST_FIELDS = 256  # of one JSON body, in all its objects; each that is wrong costs an error of a kilobyte
# Parsing holds the event loop, whichever thread does it: either takes some tenths of a second at most.
MOST_LISTS = 1 << 17  # and objects; each takes about 200 bytes, even an empty one; nested tensors have one a pixel
# Each takes about 50 bytes. Room for the codes of the largest picture (2^24 pixels, 16 a code), padded, and the rest.
MOST_VALUES = (1 << 20) + (1 << 14)

T = TypeVar("T")
ListOf = Annotated[list[T], Field(fail_fast=True)]  # an error for every element would take 500 times its bytes
Code = Annotated[int, Field(ge=0, lt=1 << 31)]
_Row = Annotated[ListOf[Code], Field(min_length=1)]
Grid = Annotated[ListOf[_Row], Field(min_length=1)]
Shape = Annotated[ListOf[int], Field(min_length=2, max_length=2)]


def excess_of(body: bytes, lists: int = MOST_LISTS, values: int = MOST_VALUES) -> str | None:
    """Which bound a JSON body exceeds, as "more than 256 fields"; None: it may be parsed.

    Counts the marks between values: exact but for those in strings, of which no body here needs many.
    """
    counted = (
        ("fields", MOST_FIELDS, body.count(b":")),
        ("lists", lists, body.count(b"[") + body.count(b"{")),
        ("values", values, body.count(b",")),
    )
    return next((f"more than {most:,} {what}" for what, most, count in counted if count > most), None)


# generators take a bare `integer` for 32 bits, in which a seed does not fit
LARGE: JsonDict = {"format": "int64"}


class StrictBody(BaseModel):
    """A misspelt field would be ignored otherwise, and `true` be a 1."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DecodeRequest(StrictBody):
    """One grid of codes (h,w), or several (B,h,w); /encode's answer for one picture is such a request as it is.

    The other members are those of that answer and may be left out. Where they are given they must fit the model, and
    the picture is cropped to `height` and `width`.
    """

    codes: Grid | Annotated[ListOf[Grid], Field(min_length=1)]
    model: str | None = None
    version: str | None = None
    codebook_size: int | None = None
    shape: Shape | None = None
    height: Annotated[int, Field(gt=0)] | None = None
    width: Annotated[int, Field(gt=0)] | None = None


class EncodeAnswer(StrictBody):
    """The codes of one picture: a request to /decode as it is, alone or as one of several.

    `width` and `height` are those of the decoded picture: with a model of any size without the border of ?fit=pad.
    `shape` is that of the codes (h, w).
    """

    model: str
    version: str
    width: int
    height: int
    shape: Shape
    codes: Grid
    codebook_size: int


class EncodeManyAnswer(StrictBody):
    """The codes of several pictures, in their order."""

    model: str
    version: str
    items: list[EncodeAnswer]


class DecodedPicture(StrictBody):
    image: str = Field(description="A PNG file in base64.")


class DecodeAnswer(StrictBody):
    items: list[DecodedPicture]


class ModelAnswer(StrictBody):
    """One model, as its bundle describes it."""

    name: str
    version: str
    family: str
    default: bool
    provider: str
    picture: PictureSpec
    codes: CodesSpec
    labels: list[str] | None
    prior: bool = Field(description="Whether it can generate and compress with its prior.")
    codebook_colours: list[str] | None
    quality: Quality


class ModelsAnswer(StrictBody):
    models: list[ModelAnswer]


class StatusAnswer(StrictBody):
    status: Literal["ok", "ready"]


class ProblemAnswer(BaseModel):
    """RFC 9457. `type` is stable; `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
