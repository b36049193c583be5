"""Settings: environment variables `VQSERVE_*` in, one frozen `Settings` out. Every default of the service stands here.

docs/configuration.md is generated from this file (service/reference.py); a test compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.codec.container import MOST_PICTURES
from service.setting_values import are_installed, is_address, is_origin, origins_of, parse_api_keys

PREFIX = "VQSERVE_"
DAY_S = 86_400  # nothing is waited for longer: a clock cannot hold every number
SHORTEST_WATCH_S = 0.1  # each look at a bundle's folder takes a thread of its own
MOST_THREADS = 1024  # of a process; seven sessions of a model have as many each, up to eleven on a GPU
LARGEST_GENERATE_BATCH = 4096  # at the start run, on CUDA, the powers of two up to it; on a CPU 1 to 64 and itself
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["float32", "tf32", "fp16"]


class Settings(BaseSettings):
    """Numbers carry their unit in the name; 0 means what the description says it means."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    bundles: Annotated[tuple[Path, ...], NoDecode] = Field(
        (Path("models/mnist"),), description="Bundle folders, comma-separated. The first is the default model."
    )
    device: Device = Field(
        "auto", description="`cuda` fails at start when CUDA is not what really runs; `auto` logs what it took."
    )
    threads: int = Field(
        0,
        ge=0,
        le=MOST_THREADS,
        description="onnxruntime threads a process; 0: the container's CPU limit divided by the workers.",
    )
    workers: int = Field(1, ge=1, le=64, description="Server processes. Each opens its own sessions.")
    encoder_precision: Precision = Field(
        "float32", description="Of the encoder on a GPU: `float32`, `tf32` or `fp16`. Below float32 some codes change."
    )
    decoder_precision: Precision = Field(
        "float32", description="Of the decoder on a GPU: `float32`, `tf32` or `fp16`. Below float32 some pixels change."
    )
    cuda_graphs: bool = Field(
        False,
        description="Replay a row of the sampler as one CUDA graph; one is captured at start for each batch size. "
        "Models cannot be reloaded then.",
    )
    cuda_convolution_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = Field(
        "HEURISTIC", description="How cuDNN's kernels are chosen; `EXHAUSTIVE` times them all at every new shape."
    )
    cuda_memory_limit_mib: int = Field(
        0,
        ge=0,
        description="Largest arena of each session on the GPU; 0: no limit. Every graph of every model has a session.",
    )
    cuda_arena_growth: Literal["kNextPowerOfTwo", "kSameAsRequested"] = Field(
        "kNextPowerOfTwo", description="How an arena grows; `kSameAsRequested` takes less memory in more pieces."
    )
    tensorrt: bool = Field(
        False,
        validate_default=True,
        description="Encoder and decoder run on TensorRT where their precision is `tf32` or `fp16`; `fp16` needs it.",
    )
    tensorrt_cache: str = Field(
        "", description="Folder where TensorRT keeps its engines; empty: it builds them at every start."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; in a container 0.0.0.0, or `::`, of IPv6 only.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one.")

    max_body_bytes: int = Field(32 << 20, gt=0, description="Largest request body; above it 413.")
    max_total_body_bytes: int = Field(
        1 << 28,
        gt=0,
        description="Most bytes that the bodies of all requests in a process hold together; one alone may exceed it; "
        "above it 429.",
    )
    max_pixels: int = Field(
        1 << 24, gt=0, description="Most pixels of one picture, read from its header before decoding; above it 413."
    )
    max_pictures_per_request: int = Field(
        256, gt=0, le=MOST_PICTURES, description="Most pictures or code grids a request; above it 413."
    )
    max_samples_per_request: int = Field(64, gt=0, description="Most samples of one /generate; above it 422.")
    max_pixels_per_request: int = Field(
        1 << 25, gt=0, description="Most pixels of all the pictures of a request together, in or out; above it 413."
    )
    max_queued_pictures: int = Field(
        1024,
        gt=0,
        description="Most pictures that wait for one engine, or for a thread; above it 429 with Retry-After. A request "
        "alone is taken whatever its size, and so is one run or request of up to 0.1 s where only larger ones wait. "
        "The pixels of what waits are bounded too: for an engine by 1.25 times `VQSERVE_MAX_PIXELS_PER_REQUEST`, or by "
        "those of so many pictures of the model's size if that is more; for a thread by twice "
        "`VQSERVE_MAX_PIXELS_PER_REQUEST`.",
    )
    max_queued_samples: int = Field(
        1024,
        gt=0,
        description="Most samples inside one generator; one request alone may exceed it; above it 429 and Retry-After.",
    )
    short_queue_in_overload: bool = Field(
        False,
        description="While more than a third of what comes to `/encode` and `/decode` is refused because the process "
        "or the engine's queue is full, hardly anything waits: answers take milliseconds longer than without load. For "
        "many callers that do not wait for one another, 8 requests a second or more.",
    )
    max_concurrent_requests: int = Field(
        1024, gt=0, description="Most requests inside a process; above it 429. Probes and /metrics are exempt."
    )
    request_deadline_ms: int = Field(
        30_000, gt=0, le=1000 * DAY_S, description="A request that is not answered by then gets 504."
    )
    head_timeout_s: float = Field(
        60.0,
        gt=0,
        le=DAY_S,
        description="URL and headers have to come within this; else 408. The same time ends a new "
        "connection that stays silent, and one whose client reads less than 64 KiB of a finished answer within it.",
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        le=DAY_S,
        description="An idle connection that has had an answer ends after this. Longer than what is in front keeps its "
        "own (nginx and the load balancers of AWS 60 s), which would else send a request into one that ends.",
    )

    max_batch: int = Field(
        0,
        ge=0,
        le=MOST_PICTURES,
        description="Most pictures in one run, with no more pixels than as many of the model's size have; a larger "
        "picture runs by itself. 0: 64 on CUDA, 8 on a CPU.",
    )
    max_generate_batch: int = Field(
        0,
        ge=0,
        le=LARGEST_GENERATE_BATCH,
        description="Most samples that one call of the row graph advances; 0: 256 on CUDA, 64 on a CPU.",
    )
    max_wait_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="How long an idle engine waits for company, to the whole millisecond, one at least, and less than "
        "the deadline; 0: never. May help on a GPU.",
    )
    inline_ms: float = Field(
        1.0, ge=0, le=100, description="Work that is estimated to be shorter runs on the event loop, without a thread."
    )
    engine_stall_s: float = Field(
        60.0,
        gt=0,
        le=DAY_S,
        description="One run of a network that takes longer turns /readyz to 503. Not one on the event loop "
        "(`VQSERVE_INLINE_MS`): where that hangs, nothing is answered, and only SIGKILL ends the process.",
    )
    on_engine_death: Literal["restart", "exit"] = Field(
        "restart",
        description="What follows a dead engine: new sessions from the same bundle, or the process ends, as it always "
        "does with CUDA graphs.",
    )
    watch_bundles_s: float = Field(
        0.0,
        ge=0,
        le=DAY_S,
        description="How often to look for a changed manifest and reload that bundle, 0.1 or more; 0: never.",
    )

    reload_deadline_s: float = Field(
        600.0,
        gt=0,
        le=DAY_S,
        description="A reload that takes longer has failed, and the old version goes on serving. Its thread cannot be "
        "ended: while four such go on, reloads are refused.",
    )

    drain_s: float = Field(
        1.0, ge=0, le=DAY_S, description="After SIGTERM: how long /readyz says 503 before the listening socket closes."
    )
    grace_s: int = Field(20, ge=1, le=DAY_S, description="After that: how long requests in flight may take to finish.")

    api_keys: SecretStr = Field(
        SecretStr(""), description="`name:key` pairs, comma-separated. Empty: no key is asked. Names go to the log."
    )
    require_api_keys: bool = Field(
        False, description="Start only where `VQSERVE_API_KEYS` holds a key, and not as an open service."
    )
    cors_origins: str = Field(
        "", description="Origins that browsers may call from, comma-separated, or *. Empty: none."
    )
    access_log: bool = Field(False, description="One JSON log line a request. Server errors are logged in any case.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged; the lines of the access log have `info`."
    )
    otlp_endpoint: str = Field(
        "", description="OpenTelemetry collector (OTLP/HTTP), as http://localhost:4318. Empty: no spans. Extra `otel`."
    )

    @field_validator("bundles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("bundles")
    @classmethod
    def _at_least_one(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if not value:
            raise ValueError("name at least one bundle folder, for example VQSERVE_BUNDLES=models/mnist")
        return value

    @field_validator("tensorrt")
    @classmethod
    def _fits_the_precisions(cls, value: bool, info: ValidationInfo) -> bool:
        asked = {info.data.get("encoder_precision"), info.data.get("decoder_precision")}
        if "fp16" in asked and not value:
            raise ValueError("fp16 needs TensorRT: onnxruntime's CUDA provider computes in the types of the graph")
        if value and asked == {"float32"}:
            raise ValueError(
                "TensorRT cannot be kept from using TF32: set VQSERVE_ENCODER_PRECISION or VQSERVE_DECODER_PRECISION "
                "to tf32 or fp16"
            )
        return value

    @field_validator("watch_bundles_s")
    @classmethod
    def _leaves_time_for_requests(cls, value: float) -> float:
        if 0 < value < SHORTEST_WATCH_S:
            raise ValueError(f"must be 0 or at least {SHORTEST_WATCH_S}")
        return value

    @field_validator("max_wait_ms")
    @classmethod
    def _ends_before_the_deadline(cls, value: float, info: ValidationInfo) -> float:
        deadline_ms = info.data.get("request_deadline_ms")  # None where it is wrong itself
        if value and deadline_ms is not None and value >= deadline_ms:
            raise ValueError(f"a request would wait until its deadline, {PREFIX}REQUEST_DEADLINE_MS: {deadline_ms} ms")
        return value

    @field_validator("log_level")
    @classmethod
    def _shows_the_access_log(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("access_log") and value in ("warning", "error"):
            raise ValueError(f"{value!r} leaves out the lines of {PREFIX}ACCESS_LOG, which have the level info")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _can_be_used(cls, value: str) -> str:
        if value and not is_address(value):
            raise ValueError(
                "must be a URL with a host, without blanks and without the /v1/traces behind it: http://localhost:4318"
            )
        if value and not are_installed("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("OpenTelemetry is not installed: pip install '.[otel]' in the repository")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in origins_of(value):
            if origin != "*" and not is_origin(origin):
                raise ValueError(
                    f"{origin!r} is no origin: write https://host or https://host:port as browsers do, in small "
                    "letters and without the port that the scheme has, a * for a part of it or a / after it"
                )
        return value

    @field_validator("api_keys")
    @classmethod
    def _pairs(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and not parse_api_keys(text):
            raise ValueError("holds no name:key pair; leave it empty where no key is to be asked")
        return value

    @field_validator("require_api_keys")
    @classmethod
    def _has_keys(cls, value: bool, info: ValidationInfo) -> bool:
        keys = info.data.get("api_keys")  # None where they are wrong themselves
        if value and keys is not None and not keys.get_secret_value():
            raise ValueError(f"{PREFIX}API_KEYS is empty: everybody could call this service")
        return value
