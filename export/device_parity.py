"""Does one device compute what another computes? Both open the same bundle as the service does.

In: two `Side`s, one of them trusted (the CPU). Out: one `Row` a comparison, `passed` or not:

    codes        at most 1 in 10,000 differ, and only between vectors that are nearly as near
    pixels       at most 1 of 255 levels apart
    distances    of latents to all vectors: at most `NEAR_TIE_OF_SPAN` apart
    the prior    logits, sampled codes and containers: no difference at all

The inputs are drawn from the bundle itself, so no data is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from service import codec
from service.bundle import Bundle
from service.codec.codec_model import CodecModel, LatentGraphs
from service.codec.container import Mode
from service.codec.container_errors import ContainerError
from service.inference.batch_limits import buckets
from service.inference.encoder import open_encoder
from service.inference.engine import BATCH_ON_CUDA
from service.inference.prior_sessions import codec_model
from service.inference.sessions import CPU, Session, SessionMaker
from service.prior.draws import Draw, uniforms
from service.prior.sampling import RowSampler
from service.settings import Settings

Codes = NDArray[np.int64]
Pictures = NDArray[np.uint8]
LARGEST_PIXEL_DIFFERENCE = 1  # of 255: the two sides may round a half differently
CODES_PER_DIFFERENCE = 10_000
NEAR_TIE_OF_SPAN = 1e-3  # from the nearest to the farthest vector; float32 in another order moves it by about 1e-6
PICTURES_A_CONTAINER = 4
CODES_IN_CONTAINERS = 12_500  # a container is read code after code, and most of that time is not the device's


@dataclass(frozen=True)
class Side:
    """A bundle opened on one device. Without a prior there is no sampler."""

    bundle: Bundle
    max_batch: int
    encoder: Session
    decoder: Session
    codec: CodecModel
    sampler: RowSampler | None

    @classmethod
    def of(cls, bundle: Bundle, settings: Settings, maker: SessionMaker, slots: int) -> Side:
        """`slots` samples, at most, advance in one call of the row graph."""
        maker = replace(maker, bundle=bundle)
        return cls(
            bundle,
            settings.max_batch or BATCH_ON_CUDA,  # the CPU as well, so that both sides run the same batches
            open_encoder(bundle, settings, maker),
            maker.open(bundle.graph_path("decoder"), settings.decoder_precision),
            codec_model(bundle, maker.open),
            RowSampler(bundle, maker, slots, places=slots) if bundle.manifest.prior else None,
        )

    def encode(self, pictures: Pictures) -> Codes:
        """uint8 (N,H,W,C) -> int64 (N,h,w), in batches of every size that the service pads to."""
        runs = [self.encoder.run(None, {"images": part})[0] for part in in_buckets(pictures, self.max_batch)]
        return np.concatenate(runs)

    def decode(self, codes: Codes) -> Pictures:
        """int64 (N,h,w) -> uint8 (N,H,W,C), in the same batches."""
        return np.concatenate(
            [self.decoder.run(None, {"codes": part})[0] for part in in_buckets(codes, self.max_batch)]
        )


@dataclass(frozen=True)
class Inputs:
    """What both sides compute with: uint8 pictures, int64 codes and labels."""

    pictures: Pictures  # (N,H,W,C)
    codes: Codes  # (N,h,w)
    labels: Codes  # (N,) in [0, label_count]


@dataclass(frozen=True)
class Row:
    """`largest` is the largest difference: of pixels in levels, of codes and distances as a part of the span, as
    `NEAR_TIE_OF_SPAN`; 0 elsewhere. Where an output is no number, it counts as different and `largest` leaves it out.
    """

    what: str
    compared: int
    different: int
    largest: float
    passed: bool


def in_buckets(array: NDArray[Any], largest: int) -> Iterator[NDArray[Any]]:
    """Parts of 1, 2, 4, ..., `largest` entries, over and over; the last part is what is left."""
    start, sizes = 0, buckets(largest)
    while start < len(array):
        for size in sizes:
            if start < len(array):
                yield array[start : start + size]
            start += size


def draw_inputs(side: Side, count: int) -> Inputs:
    """Codes that the prior draws, or that occur as often as in training; their pictures, with noise of 8 levels."""
    manifest, random = side.bundle.manifest, np.random.default_rng(0)
    grid = (manifest.codes.height, manifest.codes.width)
    label_count = manifest.prior.label_count if manifest.prior else 0
    labels = np.arange(count, dtype=np.int64) % (label_count + 1)
    if side.sampler is None:
        share = np.array(manifest.code_histogram) / sum(manifest.code_histogram)
        codes = random.choice(manifest.codes.codebook_size, (count, *grid), p=share)
    else:
        codes = draw_codes(side.sampler, draws_of(side, labels, filtered=False), side.sampler.max_batch)
    noise = random.integers(-8, 9, (count, manifest.picture.height, manifest.picture.width, manifest.picture.channels))
    pictures = np.clip(side.decode(codes).astype(np.int64) + noise, 0, 255).astype(np.uint8)
    return Inputs(pictures, codes, labels)


def draws_of(side: Side, labels: Codes, *, filtered: bool) -> list[Draw]:
    """Seeds 0, 1, ...; with `filtered`, temperatures, top-k, top-p, guidance and a known first column that differ."""
    guided = filtered and "prior_row_guided" in side.bundle.manifest.graphs
    codes, random = side.bundle.manifest.codes, np.random.default_rng(1)
    grid = (codes.height, codes.width)
    known = np.zeros(grid, np.bool_)
    known[:, 0] = filtered
    return [
        Draw(
            uniforms(seed, 0, grid),
            int(label),
            np.float32(random.uniform(0.5, 2) if filtered else 1),
            int(random.integers(1, codes.codebook_size + 1)) if filtered else codes.codebook_size,
            np.float32(random.uniform(0.3, 1) if filtered else 1),
            random.integers(0, codes.codebook_size, grid),
            known,
            np.float32(1 + seed % 3 if guided else 1),
        )
        for seed, label in enumerate(labels)
    ]


def draw_codes(sampler: RowSampler, draws: Sequence[Draw], starts_a_row: int) -> Codes:
    """(N,h,w). `starts_a_row` samples begin before each row, so that with few of them every row has another batch."""
    height, width = sampler.grid
    codes, rows = np.zeros((len(draws), height, width), np.int64), np.zeros(len(draws), np.int64)
    waiting, places = list(range(len(draws))), dict[int, int]()
    while waiting or places:
        for sample in waiting[: min(starts_a_row, sampler.free_places)]:
            places[sample] = sampler.open(draws[sample])
            waiting.remove(sample)
        present = list(places)
        codes[present, rows[present]] = sampler.advance(list(places.values()))
        rows[present] += 1
        for sample in [sample for sample in present if rows[sample] == height]:
            sampler.close(places.pop(sample))
    return codes


def compare(trusted: Side, device: Side, inputs: Inputs) -> list[Row]:
    """All comparisons of the module's docstring; without a prior, those of the autoencoder alone."""
    rows = [_codes(trusted, device, inputs.pictures), _pixels(trusted, device, inputs.codes)]
    if trusted.codec.latents is not None and device.codec.latents is not None:
        rows.append(_distances(trusted.codec.latents, device.codec.latents, inputs.pictures))
    if trusted.sampler is None or device.sampler is None:
        return rows
    rows.append(_logits(trusted, device, inputs))
    for filtered in (False, True):
        draws = draws_of(trusted, inputs.labels, filtered=filtered)
        for starts_a_row in (device.sampler.max_batch, 2):
            found, expected = (draw_codes(side, draws, starts_a_row) for side in (device.sampler, trusted.sampler))
            company = "joining two a row" if starts_a_row == 2 else "all at once"
            rows.append(_exact(f"sampled codes, {'' if filtered else 'un'}filtered, {company}", found, expected))
    return [*rows, *_containers(trusted, device, inputs)]


def _exact(what: str, found: NDArray[Any], expected: NDArray[Any]) -> Row:
    different = int((found != expected).sum())
    return Row(what, found.size, different, 0.0, different == 0)


def _codes(trusted: Side, device: Side, pictures: Pictures) -> Row:
    found, expected = device.encode(pictures), trusted.encode(pictures)
    where = found != expected
    largest = float(_gaps(trusted.bundle, pictures, found, expected).max(initial=0.0, where=where))
    different = int(where.sum())
    passed = different <= found.size // CODES_PER_DIFFERENCE and largest <= NEAR_TIE_OF_SPAN
    return Row("codes", found.size, different, largest, passed)


def _gaps(bundle: Bundle, pictures: Pictures, found: Codes, expected: Codes) -> NDArray[np.float32]:
    """(N,h,w): how much further the found vector is than the expected one, in parts of the span of all K."""
    encoder = ort.InferenceSession(bundle.graph_path("encoder"), providers=[CPU])
    distances_of = ort.InferenceSession(_with_distances(bundle), providers=[CPU])
    parts = []
    for part, *codes in zip(*(in_buckets(array, 64) for array in (pictures, found, expected)), strict=True):
        latents = encoder.run(None, {"images": part})[0]
        _, distances = distances_of.run(None, {"latents": latents})  # (B,h,w,K)
        sides = [np.take_along_axis(distances, one[..., None], axis=-1)[..., 0] for one in codes]
        parts.append(np.abs(sides[0] - sides[1]) / np.ptp(distances, axis=-1))
    return np.concatenate(parts)


def _with_distances(bundle: Bundle) -> bytes:
    """The graph `quantizer` with a second output: what its ArgMin takes."""
    model = onnx.load(bundle.graph_path("quantizer"))
    (argmin,) = [node for node in model.graph.node if node.op_type == "ArgMin"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(argmin.input[0], onnx.TensorProto.FLOAT, None))
    serialized: bytes = model.SerializeToString()
    return serialized


def _pixels(trusted: Side, device: Side, codes: Codes) -> Row:
    found, expected = device.decode(codes), trusted.decode(codes)
    apart = np.abs(found.astype(np.int64) - expected)
    largest = int(apart.max())
    return Row("pixels", found.size, int((apart > 0).sum()), largest, largest <= LARGEST_PIXEL_DIFFERENCE)


def _distances(trusted: LatentGraphs, device: LatentGraphs, pictures: Pictures) -> Row:
    """What `?effort=` weighs against bits, from the picture on, in parts of the span of all K distances."""
    compared, different, largest = 0, 0, 0.0
    for part in in_buckets(pictures, 16):
        found, expected = (side.distances(side.latents(part)) for side in (device, trusted))  # (B,h,w,K)
        gaps = np.abs(found - expected) / np.ptp(expected, axis=-1, keepdims=True)
        compared, different = compared + found.size, different + int((~(gaps <= NEAR_TIE_OF_SPAN)).sum())  # NaN too
        largest = float(gaps.max(initial=largest, where=np.isfinite(gaps)))  # JSON has no NaN
    return Row("distances", compared, different, largest, different == 0)


def _logits(trusted: Side, device: Side, inputs: Inputs) -> Row:
    assert trusted.codec.prior is not None and device.codec.prior is not None
    compared = different = 0
    for codes, labels in zip(in_buckets(inputs.codes, 64), in_buckets(inputs.labels, 64), strict=True):
        found, expected = (side.codec.prior.graphs.logits(codes, labels) for side in (device, trusted))  # type: ignore[union-attr]
        compared, different = compared + found.size, different + int((found != expected).sum())
    return Row("logits of the prior", compared, different, 0.0, different == 0)


def _containers(trusted: Side, device: Side, inputs: Inputs) -> list[Row]:
    """Bytes from the teacher-forced graph; decoding runs prior_context and prior_pixel."""
    labelled = trusted.codec.prior is not None and trusted.codec.prior.label_count > 0
    written, crossed = [], []
    needed = -(-CODES_IN_CONTAINERS // inputs.codes[0].size)
    for start in range(0, min(len(inputs.codes), needed), PICTURES_A_CONTAINER):
        part = slice(start, start + PICTURES_A_CONTAINER)
        codes, labels = inputs.codes[part], inputs.labels[part] if labelled else None
        mode = Mode.LABELLED if labelled and start % (2 * PICTURES_A_CONTAINER) else Mode.PRIOR
        ours, theirs = (codec.encode(side.codec, codes, labels=labels, modes=[mode]) for side in (trusted, device))
        written.append(ours == theirs)
        crossed += [_decodes(device, ours, codes), _decodes(trusted, theirs, codes)]
    return [
        _exact("containers, bytes", np.array(written), np.ones(len(written), np.bool_)),
        _exact("containers, read by the other side", np.array(crossed), np.ones(len(crossed), np.bool_)),
    ]


def _decodes(side: Side, container: bytes, codes: Codes) -> bool:
    try:
        return bool((codec.decode(side.codec, container).codes == codes).all())
    except ContainerError:
        return False
