"""The one place that makes onnxruntime sessions. In: a graph file and a device. Out: a session that runs where it says.

A graph is read once and opened from these bytes, so that what was hashed is what runs. Weights in a file beside it
("external data") would have no hash, and are refused.

onnxruntime falls back to the CPU silently in two ways: at creation, when CUDA cannot be loaded, and at run time, when a
CUDA call fails. Both are switched off here; `auto` chooses before creation and says what it chose.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from service.bundle import Bundle, BundleError
from service.inference.graph_checks import require_opset, require_tensors, require_unchanged
from service.settings import Precision, Settings

log = logging.getLogger(__name__)

Provider = Literal["CUDAExecutionProvider", "CPUExecutionProvider"]
CUDA: Provider = "CUDAExecutionProvider"
CPU: Provider = "CPUExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
ProviderOptions = list[tuple[str, dict[str, str]]]  # in the order of preference, as onnxruntime takes it
_NO_FOLDER = "/dev/null/no-external-data"  # nothing can lie there
_CGROUP_V2_LIMIT = Path("/sys/fs/cgroup/cpu.max")

# onnxruntime's exceptions have no base of their own.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(ort_state.Fail, ort_state.EPFail, ort_state.InvalidArgument, ort_state.InvalidGraph, ort_state.InvalidProtobuf),
    *(ort_state.NoModel, ort_state.NoSuchFile, ort_state.NotImplemented, ort_state.RuntimeException),
    *(ort_state.EngineError, RuntimeError),
)


class DeviceError(RuntimeError):
    """The device that the settings ask for is not what would run; the message says what to do."""


class GraphError(RuntimeError):
    """onnxruntime refuses a graph; the message names its file, which onnxruntime does not know."""


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that a graph without bindings needs."""

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class SessionMaker:
    """Opens every session of a process on one provider with one number of threads."""

    provider: Provider
    threads: int
    settings: Settings | None = None  # what CUDA needs; a CPU needs none
    _: KW_ONLY
    bundle: Bundle | None = None  # its graphs must be what its manifest says when they are opened

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Where bound tensors lie, as onnxruntime names it."""
        return "cuda" if self.provider == CUDA else "cpu"

    @property
    def resident(self) -> bool:
        """Whether tensors that go from one run to the next stay on the device."""
        return self.provider == CUDA

    def open(
        self, path: Path, precision: Precision = "float32", *, fixed_batches: bool = False
    ) -> ort.InferenceSession:
        """A session on exactly `provider`. The default is exact: the prior's integers need float32 without TF32.

        `fixed_batches`: its inputs and outputs are bound to fixed memory, so that CUDA graphs may be captured.

        Raises:
            DeviceError: onnxruntime made the session on another provider.
            GraphError: onnxruntime refuses the graph.
            BundleError: the file is gone, keeps weights in another file, or is not what the manifest of `bundle` says.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Spinning threads take the CPU away from the event loop between two runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised, and logged as JSON
        options.logid = path.name
        # Where external data is looked for: without it, in the working directory.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
        providers = self._providers(precision, fixed_batches)
        data = self._read(path)
        try:
            session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
        except ORT_ERRORS as error:
            raise _explained(path, error) from error
        session.disable_fallback()
        taken = session.get_providers()[0]
        wanted = providers[0][0]
        if taken != wanted:
            advice = _TENSORRT_ADVICE if wanted == TENSORRT else _CUDA_ADVICE
            raise DeviceError(f"{path.name} runs on {taken} instead of {wanted}: {advice}")
        if self.bundle is not None:
            require_tensors(self.bundle, path, session)
            require_opset(self.bundle, path, data)
        return session

    def _read(self, path: Path) -> bytes:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        if self.bundle is not None:
            require_unchanged(self.bundle, path, data)
        return data

    def _providers(self, precision: Precision, fixed_batches: bool) -> ProviderOptions:
        if self.provider == CPU:
            return [(CPU, {})]
        assert self.settings is not None
        return gpu_providers(self.settings, precision, cuda_graph=fixed_batches and self.settings.cuda_graphs)


def _explained(path: Path, error: Exception) -> Exception:
    if _NO_FOLDER in str(error):
        return BundleError(f"{path} keeps weights in another file, which no hash covers: save them in the graph itself")
    return GraphError(f"{path.name}: {error}")


_CUDA_ADVICE = "install onnxruntime-gpu without onnxruntime, check nvidia-smi and the driver, or set VQSERVE_DEVICE=cpu"
_TENSORRT_ADVICE = "install the TensorRT 10 libraries (pip install tensorrt), or set VQSERVE_TENSORRT=false"


def gpu_providers(settings: Settings, precision: Precision, *, cuda_graph: bool) -> ProviderOptions:
    """CUDA, and TensorRT before it where the settings ask for it and the graph may be computed less precisely."""
    cuda = {
        "cudnn_conv_algo_search": settings.cuda_convolution_search,
        "arena_extend_strategy": settings.cuda_arena_growth,
        # onnxruntime's default is 1. TF32 keeps 11 bits, the prior's products of gates need 12.
        "use_tf32": str(int(precision != "float32")),
        "enable_cuda_graph": str(int(cuda_graph)),
    }
    if settings.cuda_memory_limit_mib:
        cuda["gpu_mem_limit"] = str(settings.cuda_memory_limit_mib << 20)
    if not settings.tensorrt or precision == "float32":
        return [(CUDA, cuda)]
    tensorrt = {"trt_fp16_enable": str(int(precision == "fp16"))}
    if settings.tensorrt_cache:
        tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": settings.tensorrt_cache}
    return [(TENSORRT, tensorrt), (CUDA, cuda)]


def session_maker(settings: Settings, probe: Path) -> SessionMaker:
    """The maker for these settings; `probe` is a graph that is opened once to see whether CUDA really works.

    Raises:
        DeviceError: `cuda` was asked for and is not what runs.
    """
    threads = settings.threads or max(1, cpu_limit() // settings.workers)
    if settings.device == "cpu":
        return SessionMaker(CPU, threads)
    maker = SessionMaker(CUDA, threads, settings)
    try:
        _require_cuda()
        maker.open(probe)
        if settings.tensorrt:
            maker.open(probe, "tf32")
    except ORT_ERRORS as error:  # DeviceError is a RuntimeError
        if settings.device == "cuda":
            sentence = " ".join(str(error).split())  # onnxruntime's messages have several lines
            raise DeviceError(f"VQSERVE_DEVICE=cuda: {sentence}") from error
        maker = SessionMaker(CPU, threads)
        unexpected = CUDA in ort.get_available_providers()  # of a GPU that idles an operator wants to hear
        log.log(logging.WARNING if unexpected else logging.INFO, "device auto: CPU, because %s", error)
    else:
        log.info("device %s: CUDA", settings.device)
    return maker


def _require_cuda() -> None:
    if CUDA not in ort.get_available_providers():
        raise DeviceError(f"this onnxruntime has no {CUDA}: {_CUDA_ADVICE}")
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        raise DeviceError("NVIDIA_TF32_OVERRIDE=1 forces TF32 on the prior, whose integers it cannot hold: unset it")
    ort.preload_dlls()  # finds CUDA and cuDNN where they came as wheels


def cpu_limit(limit_file: Path = _CGROUP_V2_LIMIT) -> int:
    """Whole CPUs that this process may use: the smaller of its affinity and its container's quota, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not limit_file.is_file():
        return cpus
    quota, period = limit_file.read_text().split()
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))
