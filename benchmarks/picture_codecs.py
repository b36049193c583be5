"""What is compared: Pillow's codecs, zlib, and bundles. In: uint8 (H,W,C). Out: `Coded`, bytes and pixels.

Everything runs on one thread; AVIF and JPEG XL would take all cores, when they encode as when they decode.
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image
from pillow_jxl import JpegXLImagePlugin  # which registers JPEG XL with Pillow

from benchmarks.quality import Pixels
from service import codec
from service.bundle import load_bundle
from service.codec.container import Mode
from service.codec.prior_coding import Codes
from service.inference.prior_sessions import codec_model
from service.inference.sessions import CPU, SessionMaker
from service.inference.windows import run_in_windows
from service.pictures.images import fit_image
from service.prior.effort import choose_codes


@dataclass(frozen=True)
class Coded:
    """`size` in bytes with every header; times in ms."""

    size: int
    pixels: Pixels
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Point:
    """One codec at one setting."""

    codec: str
    setting: str
    code: Callable[[Pixels], Coded]


QUALITIES: Mapping[str, Sequence[int]] = {
    "JPEG": (1, 3, 5, 10, 20, 35, 50, 75),
    "WEBP": (0, 5, 10, 20, 35, 50, 75),
    "AVIF": (1, 5, 20, 35, 50, 75),
    "JXL": (5, 10, 20, 35, 50, 75),
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "JPEG": {"optimize": True},
    "WEBP": {"method": 6},
    "AVIF": {"max_threads": 1},
    "JXL": {"num_threads": 1},
}
# the decoders' threads: `Image.open` takes no options
AvifImagePlugin.DEFAULT_MAX_THREADS = JpegXLImagePlugin.DECODE_THREADS = 1


def lossy_points() -> list[Point]:
    return [
        Point(name, f"quality {quality}", _pillow(name, quality=quality, **OPTIONS[name]))
        for name, qualities in QUALITIES.items()
        for quality in qualities
    ]


def lossless_points() -> list[Point]:
    return [
        Point("PNG", "optimize", _pillow("PNG", optimize=True)),
        Point("WEBP", "lossless", _pillow("WEBP", lossless=True, quality=100, method=6)),
        Point("JXL", "lossless", _pillow("JXL", lossless=True, **OPTIONS["JXL"])),
        Point("zlib", "level 9, pixels alone", _zlib),
    ]


def _pillow(name: str, **options: Any) -> Callable[[Pixels], Coded]:
    def code(pixels: Pixels) -> Coded:
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        stream = io.BytesIO()
        start = time.perf_counter()
        image.save(stream, name, **options)
        middle = time.perf_counter()
        with Image.open(io.BytesIO(stream.getvalue())) as opened:
            decoded = np.asarray(opened.convert(image.mode)).reshape(pixels.shape)
        end = time.perf_counter()
        return Coded(len(stream.getvalue()), decoded, 1e3 * (middle - start), 1e3 * (end - middle))

    return code


def _zlib(pixels: Pixels) -> Coded:
    start = time.perf_counter()
    data = zlib.compress(pixels.tobytes(), 9)
    middle = time.perf_counter()
    zlib.decompress(data)
    return Coded(len(data), pixels, 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle))


@dataclass(frozen=True)
class Setting:
    """`effort`: the weight of a bit when codes are chosen, see service/prior/effort.py."""

    name: str
    modes: Sequence[Mode] = tuple(Mode)
    effort: float = 0.0


SETTINGS = (Setting("raw", [Mode.RAW]), Setting("shortest"))
EFFORTS = tuple(Setting(f"effort {effort:g}", effort=effort) for effort in (0.03, 0.1, 0.3, 1.0))


@dataclass
class Vqserve:
    """A bundle on the CPU, with all that the service does between pixels and bytes."""

    folder: Path
    threads: int = 1
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.bundle = load_bundle(self.folder)
        self.name = f"vqserve {self.bundle.manifest.name}"
        maker = SessionMaker(CPU, self.threads)
        self._encoder = maker.open(self.bundle.graph_path("encoder_quantizer"))
        self._decoder = maker.open(self.bundle.graph_path("decoder"))
        self.model = codec_model(self.bundle, maker.open)

    def points(self) -> list[Point]:
        return [Point(self.name, setting.name, partial(self.code, setting=setting)) for setting in self.settings]

    @property
    def settings(self) -> Sequence[Setting]:
        return SETTINGS if self.model.latents is None else (*SETTINGS, *EFFORTS)

    def code(self, pixels: Pixels, setting: Setting) -> Coded:
        """One picture (H,W,C) in its own container."""
        coded = self.code_group(pixels[None], setting)
        return replace(coded, pixels=coded.pixels[0])

    def code_group(self, pixels: Pixels, setting: Setting) -> Coded:
        """Pictures (B,H,W,C) in one container."""
        start = time.perf_counter()
        size = (pixels.shape[1], pixels.shape[2])
        data = codec.encode(self.model, self.encode(pixels, setting.effort), size=size, modes=setting.modes)
        middle = time.perf_counter()
        decoded = self.decode(data)
        return Coded(len(data), decoded, 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle))

    def encode(self, pixels: Pixels, effort: float = 0.0) -> Codes:
        """(B,H,W,C) of any size that the model takes after padding -> (B,h,w)."""
        spec = self.bundle.manifest.picture
        padded = np.stack([_padded(one, lambda image: fit_image(image, spec, "pad")) for one in pixels])
        if effort:
            assert self.model.prior is not None
            return choose_codes(self.model, padded, effort, np.full(len(padded), self.model.prior.no_label))
        codes: Codes = run_in_windows(
            lambda window: self._encoder.run(None, {"images": window})[0],
            padded,
            scale_in=self.model.multiple_of,
            scale_out=1,
        )
        return codes

    def decode(self, data: bytes) -> Pixels:
        decoded = codec.decode(self.model, data, codec.Limits(max_codes=1 << 24))
        pixels = run_in_windows(
            lambda window: self._decoder.run(None, {"codes": window})[0],
            decoded.codes,
            scale_in=1,
            scale_out=self.model.multiple_of,
        )
        return pixels[:, : decoded.size[0], : decoded.size[1]]


def _padded(pixels: Pixels, pad: Callable[[Image.Image], Image.Image]) -> Pixels:
    image = pad(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    return np.asarray(image).reshape(image.height, image.width, pixels.shape[2])
