"""What a request sends as pictures: bodies in (a form, a raw picture, an npy batch), checked uint8 arrays out.

Every limit is looked at before the work that it bounds: counts before headers, headers before pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from service.errors import InvalidParameter, PictureTooLarge, Problem, TooManyItems, WrongPictureSize
from service.pictures import images
from service.pictures.images import Fit, Picture
from service.registry.model import Model
from service.routes.requests import finish
from service.routes.service import Service
from service.wire import npy
from service.wire.multipart import pictures_of_form
from service.wire.negotiate import bare_type, unsupported

T = TypeVar("T")

FORM = "multipart/form-data"
# About a millisecond of decoding; larger pictures go to a thread, so that the event loop goes on.
INLINE_PIXELS = 1 << 15
INLINE_BYTES = 1 << 16  # of files: even if they are all headers, some ten milliseconds of reading
INLINE_INFLATED = 4  # of their parts: about 3 ms each


@dataclass(frozen=True, slots=True)
class Upload:
    """What a request asks to encode. `several` decides the shape of the answer: a batch of one is still a batch."""

    pictures: Sequence[Picture]
    several: bool


def fit_of(value: str | None) -> Fit:
    """The value of ?fit=, or what it is without one. Raises InvalidParameter."""
    if value is None:
        return images.FITS[0]
    for fit in images.FITS:
        if fit == value:
            return fit
    raise InvalidParameter(f"fit must be one of {', '.join(images.FITS)}, not {value[:40]!r}.")


async def read_upload(request: Request, service: Service, model: Model, body: bytes, fit: Fit) -> Upload:
    """The pictures in a body of any media type that `/encode` takes, as the model takes them.

    Raises:
        Problem: another media type, a body that does not fit its own, a picture that the model does not take, or more
            of them than the settings allow.
    """
    content_type = request.headers.get("content-type", "")
    media_type = bare_type(content_type)
    if media_type == npy.MEDIA_TYPE:
        if fit != "exact":
            raise InvalidParameter("fit: arrays are not fitted; resize or pad them before, or send picture files.")
        pixels = checked_pictures(npy.read_npy(body), service, model)
        return Upload([Picture(one, one.shape[1], one.shape[0]) for one in pixels], several=True)
    if media_type == FORM:
        files = pictures_of_form(body, content_type, service.settings.max_pictures_per_request)
    elif media_type in images.MEDIA_TYPES:
        files = [body]
    else:
        raise unsupported(media_type, (FORM, *images.MEDIA_TYPES, npy.MEDIA_TYPE))
    return Upload(await decode_files(request, service, model, files, fit), several=len(files) > 1)


async def decode_files(
    request: Request, service: Service, model: Model, files: Sequence[bytes], fit: Fit
) -> list[Picture]:
    """The limits are checked on every header, with what `fit` will make of it, before the first picture is decoded."""
    spec, size = model.manifest.picture, sum(map(len, files))
    opening = _numbered([partial(images.open_to_fit, file, service.settings.max_pixels, spec, fit) for file in files])
    if size <= INLINE_BYTES and sum(map(images.inflated_parts, files)) <= INLINE_INFLATED:
        opened = [open_it() for open_it in opening]
    else:
        opened = await finish(service.in_threads(opening, size), request)
    pixels = sum(max(image.width * image.height, math.prod(images.fitted_size(image, spec, fit))) for image in opened)
    check_total_pixels(service, pixels)
    decoding = _numbered([partial(images.to_picture, image, spec, fit) for image in opened])
    if size <= INLINE_BYTES and pixels <= INLINE_PIXELS:
        return [decode() for decode in decoding]
    return await finish(service.in_threads(decoding, pixels), request)


def _numbered(calls: Sequence[Callable[[], T]]) -> Sequence[Callable[[], T]]:
    """The same calls, one a picture. The problem of one of several says which it is."""
    if len(calls) == 1:
        return calls
    return [partial(_of_one, call, f"Picture {number} of {len(calls)}") for number, call in enumerate(calls, 1)]


def _of_one(call: Callable[[], T], which: str) -> T:
    try:
        return call()
    except Problem as problem:
        problem.detail = f"{which}: {problem.detail}"
        raise


def check_total_pixels(service: Service, pixels: int) -> None:
    """Raises PictureTooLarge."""
    limit = service.settings.max_pixels_per_request
    if pixels > limit:
        raise PictureTooLarge(f"At most {limit} pixels a request, not {pixels}; send fewer or smaller pictures.")


def checked_pictures(array: NDArray[Any], service: Service, model: Model) -> images.Pixels:
    """uint8 (B,H,W,C) that the model takes. There is no fitting here: whoever has an array can also resize it.

    Raises:
        WrongPictureSize: another dtype or shape. TooManyItems, PictureTooLarge: over a limit.
    """
    spec = model.manifest.picture
    if array.dtype != np.uint8:
        raise WrongPictureSize(f"The array is {array.dtype}: send uint8, from 0 for black to 255 for white.")
    if array.ndim != 4 or array.shape[3] != spec.channels or 0 in array.shape:
        raise WrongPictureSize(
            f"The array has the shape {array.shape}: send (B,H,W,{spec.channels}), the last axis being the channels. "
            "One picture is a B of 1."
        )
    count, height, width, _ = array.shape
    check_count(service, count)
    check_pixels(service, count, height, width)
    images.check_side(width, height)  # a decoded picture may be longer
    if images.target_size(width, height, spec) != (width, height):
        raise WrongPictureSize(images.wrong_size(width, height, spec))
    return array


def check_pixels(service: Service, count: int, height: int, width: int) -> None:
    """Raises PictureTooLarge, for one picture or for all of them."""
    if height * width > service.settings.max_pixels:
        raise PictureTooLarge(f"A picture of {width}x{height} is more than {service.settings.max_pixels} pixels.")
    check_total_pixels(service, count * height * width)


def check_count(service: Service, count: int) -> None:
    """Raises TooManyItems."""
    limit = service.settings.max_pictures_per_request
    if count > limit:
        raise TooManyItems(f"At most {limit} items a request, not {count}; send the rest in another one.")
