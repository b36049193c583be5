"""The calls of the API without any network. In: Python values. Out: an `Operation`: what to send, how to read.

Both clients run these, so a call exists once.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.lib.format import read_array
from numpy.typing import ArrayLike, NDArray

from vqserve.answers import QUOTED, UNREADABLE, Encoded, Generation, ModelInfo, Score
from vqserve.problems import UnexpectedAnswerError

T = TypeVar("T")
Picture = bytes | Path  # a PNG, JPEG, WebP or BMP file
Whole = int | np.integer[Any]
Number = float | np.floating[Any]
Rows = Sequence[Sequence[int | None]] | NDArray[np.integer[Any]]
Query = str | Whole | Number | bool | None

JSON, NPY, CONTAINER, PNG = "application/json", "application/x-npy", "application/vnd.vqserve.codes", "image/png"
EVENTS = "text/event-stream"
CODES_ALONE = "pass the codes alone: encoded.codes"
CONTAINER_START, PNG_START = b"\xf6Q", b"\x89PNG\r\n\x1a\n"  # of every such file


class Packing(TypedDict, total=False):
    """How /encode makes a container: the weight of a bit, the label of all pictures, tiles that decode alone.

    None is as if it were left out.
    """

    effort: Number | None
    label: Whole | None
    indexed: bool | None


class Known(TypedDict):
    """`codes` (h,w) to keep where `mask` (h,w) is true."""

    codes: Rows
    mask: Sequence[Sequence[bool]] | NDArray[np.bool_]


class Wanted(TypedDict, total=False):
    """What a call may ask of /generate; the service knows the defaults, some of which are None."""

    n: Whole
    label: Whole | None
    seed: Whole | None
    temperature: Number
    top_k: Whole | None
    top_p: Number | None
    guidance: Number
    known: Rows | Known | None


class WantedRows(Wanted, total=False):
    """What a stream may be asked for: `preview` for the picture so far with each row."""

    preview: bool


@dataclass(frozen=True)
class Operation(Generic[T]):
    """One request, and `read`, which turns its successful answer into a value."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[tuple[str, tuple[str, bytes, str]]] | None = None
    body: Any = None  # sent as JSON

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """A new request for each attempt."""
        return client.build_request(
            self.method,
            self.path,
            params=self.params,
            headers=self.headers,
            content=self.content,
            files=self.files,
            json=self.body,
        )

    def value(self, response: httpx.Response) -> T:
        """Raises UnexpectedAnswerError when the body is not what the service of this version answers."""
        try:
            return self.read(response)
        except UNREADABLE as error:
            advice = "see that the URL is that of a vqserve service, and of this version"
            raise UnexpectedAnswerError(
                f"{self.method} {self.path} gave an unknown answer ({error!r:.{QUOTED}}): {advice}"
            ) from error


def encode(pictures: Sequence[Picture], **query: Query) -> Operation[list[Encoded]]:
    def read(response: httpx.Response) -> list[Encoded]:
        answer = response.json()
        return [Encoded.of(answer["model"], answer["version"], item) for item in _items(answer, len(pictures))]

    return Operation("POST", "/encode", read, _params(query), {"Accept": JSON}, files=_form(pictures))


def compress(pictures: Sequence[Picture], **query: Query) -> Operation[bytes]:
    return Operation("POST", "/encode", _read_container, _params(query), {"Accept": CONTAINER}, files=_form(pictures))


def encode_array(pixels: NDArray[np.uint8], **query: Query) -> Operation[NDArray[np.int64]]:
    return _send_array("/encode", pixels, query, NPY, _read_codes)


def compress_array(pixels: NDArray[np.uint8], **query: Query) -> Operation[bytes]:
    return _send_array("/encode", pixels, query, CONTAINER, _read_container)


def decode(codes: ArrayLike, **query: Query) -> Operation[NDArray[np.uint8]]:
    grids = _whole_numbers(codes)
    return _send_array("/decode", grids[None] if grids.ndim == 2 else grids, query, NPY, _read_pictures)


def decompress(container: bytes | Path, **query: Query) -> Operation[NDArray[np.uint8]]:
    headers = {"Content-Type": CONTAINER, "Accept": NPY}
    return Operation("POST", "/decode", _read_pictures, _params(query), headers, _bytes_of(container, "the container"))


def decode_png(codes: ArrayLike, **query: Query) -> Operation[bytes]:
    return _send_array("/decode", _whole_numbers(codes), query, PNG, _read_png)


def generate(model: str | None, wanted: Wanted) -> Operation[Generation]:
    headers = {"Accept": JSON}
    return Operation("POST", "/generate", _read_generation, _params({"model": model}), headers, body=_plain(wanted))


def stream(model: str | None, wanted: WantedRows) -> Operation[None]:
    """Read with `events.Events`, line by line."""
    headers = {"Accept": EVENTS}
    return Operation("POST", "/generate", lambda _: None, _params({"model": model}), headers, body=_plain(wanted))


def score(pictures: Sequence[Picture], **query: Query) -> Operation[list[Score]]:
    def read(response: httpx.Response) -> list[Score]:
        return [Score.of(item) for item in _items(response.json(), len(pictures))]

    return Operation("POST", "/score", read, _params(query), {"Accept": JSON}, files=_form(pictures))


def models() -> Operation[list[ModelInfo]]:
    return Operation("GET", "/models", lambda answer: [ModelInfo.of(one) for one in answer.json()["models"]])


def model(name: str) -> Operation[ModelInfo]:
    if not isinstance(name, str):
        raise TypeError(f"pass the name of a model, not {type(name).__name__}")
    part = quote(name, safe="") if name.strip(".") else "%2E" * len(name)  # `..` as it is leads to another route
    return Operation("GET", f"/models/{part}", lambda answer: ModelInfo.of(answer.json()))


def _whole_numbers(codes: ArrayLike) -> NDArray[Any]:
    """As they are: a conversion would make codes of what the service refuses."""
    if isinstance(codes, Encoded):
        raise TypeError(CODES_ALONE)
    if isinstance(codes, bytes | Path):  # a container, whose bytes NumPy would take for text
        raise TypeError("pass codes, or a container to decompress")
    grids = np.asarray(codes)
    if grids.dtype.kind not in "iu":
        raise ValueError(f"codes are {grids.dtype}: pass whole numbers")
    return grids


def _form(pictures: Sequence[Picture]) -> list[tuple[str, tuple[str, bytes, str]]]:
    if not pictures:
        raise ValueError("pass at least one picture")
    return [("img", _file(picture)) for picture in pictures]


def _file(picture: Picture) -> tuple[str, bytes, str]:
    # the file's own name is no business of the service
    return "picture", _bytes_of(picture, "pictures, each"), "application/octet-stream"


def _bytes_of(file: bytes | Path, what: str) -> bytes:
    """Raises OSError where it cannot be read, and TypeError for something else from untyped code, which would be sent
    as no picture or container is."""
    if isinstance(file, Path):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder: pass its files, each as its Path", str(file))
        return file.read_bytes()
    if not isinstance(file, bytes):
        raise TypeError(f"pass {what} as the bytes of a file or its Path, not {type(file).__name__}: {file!r:.60}")
    return file


def _send_array(
    path: str, array: NDArray[Any], query: Mapping[str, Query], accept: str, read: Callable[[httpx.Response], T]
) -> Operation[T]:
    numbers, stream = np.ascontiguousarray(array), io.BytesIO()
    if numbers.dtype.hasobject:  # np.save would speak of pickles
        raise TypeError(f"pass an array of numbers, not {type(array).__name__}: {array!r:.60}")
    np.save(stream, numbers, allow_pickle=False)
    headers = {"Content-Type": NPY, "Accept": accept}
    return Operation("POST", path, read, _params(query), headers, stream.getvalue())


def _params(query: Mapping[str, Query]) -> dict[str, str]:
    """What is None is left out; true and false are written as in JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(_plain(value))
        for name, value in query.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    """As JSON has it: numbers and arrays of NumPy, which the answers of this client hold, are not."""
    if isinstance(value, Encoded):
        raise TypeError(CODES_ALONE)
    if isinstance(value, np.floating):  # also a longdouble, which `tolist` leaves
        return float(value)
    if isinstance(value, np.generic | np.ndarray):
        listed = value.tolist()
        return listed if value.dtype.kind in "biu" else _plain(listed)  # one of objects may hold numbers of NumPy
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _read_container(response: httpx.Response) -> bytes:
    return _starting_with(CONTAINER_START, response.content)


def _read_png(response: httpx.Response) -> bytes:
    return _starting_with(PNG_START, response.content)


def _starting_with(start: bytes, content: bytes) -> bytes:
    """Raises ValueError: something else, such as the page of a wrong URL, would be written as if it were the result."""
    if not content.startswith(start):
        raise ValueError(f"it starts with {content[:16]!r}, not {start!r}")
    return content


def _read_array(response: httpx.Response) -> NDArray[Any]:
    """Raises ValueError where it is no .npy: np.load would open archives too."""
    array: NDArray[Any] = read_array(io.BytesIO(response.content), allow_pickle=False)
    return array


def _read_codes(response: httpx.Response) -> NDArray[np.int64]:
    """Raises ValueError for other arrays."""
    codes = _read_array(response)
    if codes.dtype.kind not in "iu":
        raise ValueError(f"{codes.dtype} {codes.shape} are no codes")
    return codes.astype(np.int64)


def _read_pictures(response: httpx.Response) -> NDArray[np.uint8]:
    """(B,H,W,C), also where the service answers one picture as (H,W,C). Raises ValueError for other arrays."""
    pixels = _read_array(response)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not pixels.size or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{pixels.dtype} {pixels.shape} are no pictures")
    return pixels[None] if pixels.ndim == 3 else pixels


def _items(answer: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Of each picture that was sent. Raises ValueError where they are not as many."""
    items: list[dict[str, Any]] = answer.get("items", [answer])  # one picture comes without a list
    if len(items) != count:
        raise ValueError(f"{len(items)} items for {count} pictures")
    return items


def _read_generation(response: httpx.Response) -> Generation:
    return Generation.of(response.json())
