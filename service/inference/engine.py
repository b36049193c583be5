"""The engine of one bundle: it owns the encode and the decode session. uint8 (B,H,W,C) <-> codes int64 (B,h,w).

It batches what waits (service/inference/batching.py), measures itself at start to know what is small enough to run
without a thread, and finds out whether it is dead: a run whose every item failed is followed by one with known input.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle
from service.bundle.fields import GraphName
from service.errors import NotReady
from service.inference.batch_limits import BatchLimits, buckets
from service.inference.batching import Batcher
from service.inference.encoder import EncoderThenQuantizer, open_encoder
from service.inference.graph_checks import require_array, require_codes
from service.inference.graph_faults import faults_of
from service.inference.lane import Array, Run
from service.inference.overload import Overload
from service.inference.sessions import CUDA, Session, SessionMaker
from service.inference.windows import run_in_parts, run_in_windows
from service.settings import Settings
from service.telemetry.metrics import ModelMetrics

log = logging.getLogger(__name__)

Codes = NDArray[np.int64]
Pixels = NDArray[np.uint8]


# A CPU's run takes time in proportion to its pictures. With all that waits in one run, engine and event loop would take
# turns: nobody asks while the batch runs, and nothing runs while its answers are written. In parts they overlap.
BATCH_ON_CUDA, BATCH_ON_CPU = 64, 8
_BRIEF_S = 0.1  # a request of many pictures that is estimated to take no longer goes in its turn, others wait for it


def batch_of(settings: Settings, maker: SessionMaker) -> int:
    """Most pictures a run."""
    return settings.max_batch or (BATCH_ON_CUDA if maker.provider == CUDA else BATCH_ON_CPU)


class Engine:
    """`encode`, `encode_all` and `decode` return futures; see `Batcher.submit_all` for what they raise."""

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        maker: SessionMaker,
        metrics: ModelMetrics,
        on_death: Callable[[Engine], None],
    ) -> None:
        self.bundle = bundle
        self.provider = maker.provider
        self._scale = bundle.manifest.picture.multiple_of
        self._settings = settings
        self._metrics = metrics
        self._on_death = on_death
        self._dead: str | None = None
        self._running: dict[int, float] = {}  # by thread, since when its network runs
        self._probing: asyncio.Task[None] | None = None
        self._max_batch = batch_of(settings, maker)
        self._buckets = buckets(self._max_batch) if maker.provider == CUDA else ()
        self._encoder = open_encoder(bundle, settings, maker)
        two_graphs = isinstance(self._encoder, EncoderThenQuantizer)
        self._gives_codes: GraphName = "quantizer" if two_graphs else "encoder_quantizer"
        self._decoder = maker.open(bundle.graph_path("decoder"), settings.decoder_precision)
        picture, codes = self._known_input()
        pixels = settings.max_pixels_per_request
        self._encode = self._batcher("encode", self.run_encode, picture.size, pixels * picture.shape[3])
        self._decode = self._batcher("decode", self.run_decode, codes.size, pixels // self._scale**2)
        self._warm_up()

    def encode(self, pictures: Pixels) -> asyncio.Future[Array]:
        """uint8 (n,H,W,C) -> future of int64 (n,h,w) in [0, K)."""
        return self._encode.submit(pictures)

    def refuse_early(self) -> None:
        """As `Batcher.refuse_early`, of pictures: their bodies are large."""
        self._encode.refuse_early()

    def encode_all(self, pictures: Sequence[Pixels]) -> list[asyncio.Future[Array]]:
        """As `encode`, of arrays of several sizes: all of them are queued, or none."""
        return self._encode.submit_all(pictures)

    def decode(self, codes: Codes, *, late: bool = False) -> asyncio.Future[Array]:
        """int64 (n,h,w) in [0, K) -> future of uint8 (n,H,W,C). `late`: as in `Batcher.submit_all`."""
        return self._decode.submit(codes, late=late)

    @property
    def in_hand(self) -> int:
        """As `Batcher.in_hand`, of pictures and code grids."""
        return self._encode.in_hand + self._decode.in_hand

    def give_up_waiting(self) -> None:
        """Refuse what waits."""
        self._encode.give_up_waiting()
        self._decode.give_up_waiting()

    def why_not_ready(self) -> str | None:
        """None while the engine is well; otherwise the reason, for /readyz."""
        # Not since when a lane is busy: a large request is many runs, which are no stall however many they are.
        oldest = min(tuple(self._running.values()), default=None)
        if self._dead is None and oldest is not None and perf_counter() - oldest > self._settings.engine_stall_s:
            return f"a run takes longer than {self._settings.engine_stall_s} s"
        return self._dead

    def require_alive(self) -> None:
        """Before work whose result it is to decode. Raises NotReady."""
        if self._dead is not None:
            raise NotReady.for_now(self._dead)

    def close(self, reason: str) -> None:
        """Answer whoever waits and take no more."""
        self._dead = reason
        self._encode.close(reason)
        self._decode.close(reason)

    def run_encode(self, pictures: Pixels) -> Codes:
        """Without the queue, in whichever thread: two such runs may be under way at once."""
        run = partial(self._in_parts, self._encode.limits, self._encoder, "images")
        codes: Codes = run_in_windows(run, pictures, scale_in=self._scale, scale_out=1)
        self._metrics.traffic.add(codes)
        return codes

    def run_decode(self, codes: Codes) -> Pixels:
        run = partial(self._in_parts, self._decode.limits, self._decoder, "codes")
        pixels: Pixels = run_in_windows(run, codes, scale_in=1, scale_out=self._scale)
        return pixels

    def _in_parts(self, limits: BatchLimits, session: Session, name: str, array: Array) -> Array:
        """As many runs as `limits` ask for: onnxruntime keeps the memory of the largest for as long as it is open, and
        where two lanes have run at once, that of both."""
        return run_in_parts(partial(self._call, session, name), array, limits.most_pictures(array.shape[1:]))

    def _call(self, session: Session, name: str, array: Array) -> Any:
        """One run. On CUDA the batch is padded to a bucket that was warmed up, so that no shape is new to cuDNN."""
        count = len(array)
        bucket = next((size for size in self._buckets if size >= count), count)
        if bucket != count:
            array = np.concatenate([array, np.zeros((bucket - count, *array.shape[1:]), array.dtype)])
        thread = get_ident()
        self._running[thread] = perf_counter()
        try:
            return session.run(None, {name: array})[0][:count]
        finally:
            del self._running[thread]

    def _batcher(self, stage: str, run: Run, native: int, largest: int) -> Batcher:
        """`native` are the elements of a picture of the model's size, `largest` those of the largest request.

        The largest request may be queued behind others that have up to a quarter of its pixels.
        """
        max_queued = self._settings.max_queued_pictures
        limits = BatchLimits(
            self._max_batch,
            max_queued,
            self._settings.max_wait_ms,
            max_batch_elements=self._max_batch * native,
            max_queued_elements=max(max_queued * native, largest + largest // 4),
        )
        observe = partial(self._metrics.observe_run, stage)
        overload = Overload(self._metrics.count_overload, adapts=self._settings.short_queue_in_overload)
        return Batcher(run, limits, observe, self._suspect, self._metrics.queued.inc, overload)

    def _warm_up(self) -> None:
        """Run each bucket once, check what comes out, and measure what fits into `inline_ms` and what is brief."""
        picture, codes = self._known_input()
        for size in self._buckets:
            self._encode_known(np.repeat(picture, size, axis=0))
            self._decode_known(np.repeat(codes, size, axis=0))
        self._check()
        self._decode_known(codes + self.bundle.manifest.codes.codebook_size - 1)  # fails where it has fewer codes
        for batcher, session, name, array in (
            (self._encode, self._encoder, "images", picture),
            (self._decode, self._decoder, "codes", codes),
        ):
            seconds = min(_timed(partial(self._call, session, name, array)) for _ in range(5))
            batcher.run_inline(int(self._settings.inline_ms / 1e3 / seconds * array.size))
            batcher.keep_with_others(int(_BRIEF_S / seconds * array.size))

    def _known_input(self) -> tuple[Pixels, Codes]:
        manifest = self.bundle.manifest
        picture = np.zeros((1, manifest.picture.height, manifest.picture.width, manifest.picture.channels), np.uint8)
        return picture, np.zeros((1, manifest.codes.height, manifest.codes.width), np.int64)

    def _check(self) -> None:
        """Raises BundleError when the graphs cannot run or do not give what the manifest says: of a black picture and
        of noise, codes in [0, K)."""
        picture, codes = self._known_input()
        noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
        for known in (picture, noise):
            found = self._encode_known(known)
            require_array(self.bundle, self._gives_codes, found, codes)
            require_codes(self.bundle, self._gives_codes, found)
        require_array(self.bundle, "decoder", self._decode_known(codes), picture)

    def _encode_known(self, pictures: Pixels) -> Any:
        with faults_of(self.bundle, self._gives_codes):
            return self._call(self._encoder, "images", pictures)

    def _decode_known(self, codes: Codes) -> Any:
        with faults_of(self.bundle, "decoder"):
            return self._call(self._decoder, "codes", codes)

    def _suspect(self, error: Exception) -> None:
        """A whole run failed. Find out in a thread whether the input or the engine was at fault."""
        log.error("a run of %s failed: %s", self.bundle.manifest.name, error)
        if self._dead is None and (self._probing is None or self._probing.done()):
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        try:
            check = asyncio.get_running_loop().run_in_executor(None, self._check)
        except RuntimeError as error:  # no thread is left, which is no fault of the engine: the next failure asks again
            log.error("whether the engine of %s works cannot be tried: %s", self.bundle.manifest.name, error)
            return
        try:
            await check
        except Exception as error:  # noqa: BLE001 - any failure on known input means that the engine is dead
            log.critical("the engine of %s is dead: %s", self.bundle.manifest.name, error)
            self.close("The engine has failed; it is being restarted. Try again.")
            self._on_death(self)


def _timed(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started
