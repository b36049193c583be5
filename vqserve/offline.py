"""The command line on a bundle, without a service: the graphs run in this process, on the CPU.

In: a bundle folder. Out: a `Backend` that gives what a service with this bundle gives. It needs the service's modules
(the extras `service,cpu`), so nothing imports this file until it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import codec
from service.bundle import Bundle, BundleError, load_bundle
from service.codec.container import MOST_PICTURES
from service.codec.container_errors import ContainerError
from service.errors import Problem, problem_type
from service.inference.graph_faults import faults_of
from service.inference.prior_sessions import codec_model
from service.inference.sessions import CPU, GraphError, Session, SessionMaker, cpu_limit
from service.inference.windows import run_in_windows
from service.pictures.images import FITS, open_to_fit, to_picture, write_picture
from service.prior.effort import LARGEST_EFFORT, choose_codes
from service.prior.likelihood import bits_of, bits_under
from service.prior.sampling import RowSampler
from service.routes.generation_request import read_wanted
from vqserve.answers import Codes, Encoded, Generated, Generation, Pixels, Score
from vqserve.operations import Wanted
from vqserve.problems import OF_ONE_FILE, FileError, TooLargeTogetherError, VqserveError

LARGEST_PICTURE = 1 << 26  # pixels: 8192 x 8192
LARGEST_CONTAINER = 1 << 24  # codes
MOST_SAMPLES = 1024  # of one `generate`


@contextmanager
def _faults_of(bundle: Bundle) -> Iterator[None]:
    """Around the run of a graph. Raises FileError where onnxruntime refuses, most often for want of memory: of the next
    picture it may take less."""
    try:
        with faults_of(bundle):
            yield
    except BundleError as error:
        raise FileError(str(error)) from error


@dataclass(frozen=True)
class _Graph:
    """A session; see `_faults_of`."""

    session: Session
    bundle: Bundle

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> Any:
        with _faults_of(self.bundle):
            return self.session.run(output_names, input_feed)


class Offline:
    def __init__(self, folder: Path) -> None:
        try:
            self._bundle = load_bundle(folder)
            self._maker = SessionMaker(CPU, cpu_limit(), bundle=self._bundle)
            self._encoder = self._open(self._bundle.graph_path("encoder_quantizer"))
            self._decoder = self._open(self._bundle.graph_path("decoder"))
            self._codec = codec_model(self._bundle, self._open)
        except (BundleError, GraphError) as error:
            raise VqserveError(str(error)) from error

    def _open(self, graph: Path) -> Session:
        return _Graph(self._maker.open(graph), self._bundle)

    def encode(self, pictures: Sequence[bytes], fit: str, effort: float) -> list[Encoded]:
        manifest = self._bundle.manifest
        found = [self._codes(picture, fit, effort) for picture in pictures]
        return [Encoded(manifest.name, manifest.version, width, height, codes) for codes, (height, width) in found]

    def compress(self, pictures: Sequence[bytes], fit: str, effort: float) -> bytes:
        if len(pictures) > MOST_PICTURES:
            raise VqserveError(f"one container holds at most {MOST_PICTURES} pictures: leave --together out")
        encoded: list[tuple[Codes, tuple[int, int]]] = []
        for number, picture in enumerate(pictures, 1):
            try:
                encoded.append(self._codes(picture, fit, effort))
                _require_same_size(encoded[0][1], encoded[-1][1])
                if number * encoded[0][0].size > LARGEST_CONTAINER and number > 1:
                    raise TooLargeTogetherError(f"more than {LARGEST_CONTAINER} codes for one container")
            except VqserveError as error:
                which = f"Picture {number} of {len(pictures)}: " if len(pictures) > 1 else ""
                raise type(error)(f"{which}{error}") from error
        return codec.encode(self._codec, np.stack([codes for codes, _ in encoded]), size=encoded[0][1])

    def decompress(self, container: bytes) -> Pixels:
        try:
            decoded = codec.decode(self._codec, container, codec.Limits(MOST_PICTURES, LARGEST_CONTAINER))
        except ContainerError as error:
            raise FileError(str(error)) from error
        height, width = decoded.size
        return self._pixels(decoded.codes)[:, :height, :width]

    def generate(self, wanted: Wanted) -> Generation:
        manifest = self._bundle.manifest
        self._require_prior()
        try:
            checked = read_wanted(json.dumps(wanted).encode(), manifest, MOST_SAMPLES)
        except Problem as error:
            raise VqserveError(error.detail) from error
        count = len(checked.draws)
        try:
            sampler = RowSampler(self._bundle, self._maker, max_batch=count, places=count, warm=False)
        except (BundleError, GraphError) as error:
            raise VqserveError(str(error)) from error
        places = [sampler.open(draw, count) for draw in checked.draws]
        with _faults_of(self._bundle):
            codes = np.stack([sampler.advance(places) for _ in range(manifest.codes.height)], axis=1)  # (n, h, w)
        bits = bits_of(self._codec, codes, checked.labels).tolist()
        items = (
            Generated(checked.label, bit, one, write_picture(pixels))
            for bit, one, pixels in zip(bits, codes, self._pixels(codes), strict=True)
        )
        return Generation(manifest.name, manifest.version, checked.seed, tuple(items))

    def score(
        self, pictures: Sequence[bytes], fit: str, label: int | None = None, by_label: bool = False
    ) -> list[Score]:
        no_label, names = self._require_prior(), self.labels()
        if by_label and not names:
            raise VqserveError("--by-label: there are no labels; leave it out")
        if label is not None and not 0 <= label < no_label:  # which is the number after the last label
            raise VqserveError(f"--label must be {f'in 0..{no_label - 1}' if no_label else 'left out'}, not {label}")
        labels = [no_label if label is None else label, *(range(len(names)) if by_label else ())]
        return [self._score(self._codes(picture, fit)[0], labels, by_label) for picture in pictures]

    def _score(self, grid: Codes, labels: Sequence[int], by_label: bool) -> Score:
        bits, *others = bits_under(self._codec, grid, labels)
        return Score(bits, bits / grid.size, tuple(others) if by_label else None)

    def labels(self) -> Sequence[str]:
        return self._bundle.manifest.labels or ()

    def info(self) -> list[dict[str, Any]]:
        return [self._bundle.manifest.model_dump(mode="json")]

    def _require_prior(self) -> int:
        """Its label for pictures without one."""
        if self._codec.prior is None:
            raise VqserveError(f"the bundle {self._bundle.folder} was exported without a prior")
        return self._codec.prior.no_label

    def _codes(self, picture: bytes, fit: str, effort: float = 0.0) -> tuple[Codes, tuple[int, int]]:
        """Codes (h,w) and the picture's (height, width)."""
        known_fit, spec = next(known for known in FITS if known == fit), self._bundle.manifest.picture
        try:
            taken = to_picture(open_to_fit(picture, LARGEST_PICTURE, spec, known_fit), spec, known_fit)
        except Problem as error:
            kind = FileError if problem_type(error.slug) in OF_ONE_FILE else VqserveError
            raise kind(error.detail) from error
        size = (taken.height, taken.width)
        if effort:
            return self._with_effort(taken.pixels, effort), size
        codes: Codes = _run(self._encoder, "images", taken.pixels, self._codec.multiple_of, 1)
        return codes, size

    def _with_effort(self, pixels: Pixels, effort: float) -> Codes:
        no_label = np.array([self._require_prior()])
        if self._codec.latents is None:
            raise VqserveError(f"the bundle {self._bundle.folder} was exported without its distances graph")
        if not 0 <= effort <= LARGEST_EFFORT:
            raise VqserveError(f"--effort must be a number in 0..{LARGEST_EFFORT:g}")
        codes: Codes = choose_codes(self._codec, pixels[None], effort, no_label)[0]
        return codes

    def _pixels(self, codes: Codes) -> Pixels:
        """(B,h,w) -> uint8 (B,H,W,C)."""
        return np.stack([_run(self._decoder, "codes", grid, 1, self._codec.multiple_of) for grid in codes])


def _require_same_size(first: tuple[int, int], other: tuple[int, int]) -> None:
    """Heights and widths. Raises FileError."""
    if other != first:
        raise FileError(
            f"it is {other[1]}x{other[0]}, the first one {first[1]}x{first[0]}, and one container holds pictures of "
            "one size"
        )


def _run(session: Session, name: str, one: NDArray[Any], scale_in: int, scale_out: int) -> NDArray[Any]:
    def run(window: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = session.run(None, {name: window})[0]
        return result

    found: NDArray[Any] = run_in_windows(run, one[None], scale_in=scale_in, scale_out=scale_out)[0]
    return found
