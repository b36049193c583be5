"""The real onnxruntime-gpu on a machine without a GPU: `make test-gpu-wheel`.

CUDA is on its list of providers, and sessions still come up on the CPU: only what runs tells the truth.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.inference.sessions import CUDA, TENSORRT, gpu_providers
from service.settings import Settings
from tests.gpu_wheel.conftest import Run

OPEN = """
import json, sys
import onnxruntime
onnxruntime.preload_dlls()
providers = [tuple(pair) for pair in json.loads(sys.argv[2])]
onnxruntime.InferenceSession(sys.argv[1], providers=providers, enable_fallback=0)
"""
EVERY_OPTION = Settings(
    tensorrt=True,
    tensorrt_cache="/tmp/engines",  # noqa: S108 - never written
    decoder_precision="fp16",
    cuda_memory_limit_mib=1024,
)


def test_the_wheel_is_the_pinned_one_and_claims_cuda(run: Run) -> None:
    line = "import onnxruntime as o; print(o.__version__, *o.get_available_providers())"
    version, *providers = run("-c", line).stdout.split()
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert f"onnxruntime-gpu=={version}" in pins
    assert providers[:2] == [TENSORRT, CUDA]


@pytest.mark.parametrize("with_driver", [False, True], ids=["no driver", "a driver that fails"])
def test_cuda_that_does_not_run_ends_the_start(run: Run, bundle: Path, driver: Path, with_driver: bool) -> None:
    libraries = {"LD_LIBRARY_PATH": str(driver)} if with_driver else {}
    done = run("-m", "service", "--bundle", str(bundle), "--port", "0", VQSERVE_DEVICE="cuda", **libraries)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("VQSERVE_DEVICE=cuda: ")
    assert ("cudaError" in done.stderr) if with_driver else ("check nvidia-smi and the driver" in done.stderr)
    assert "Application startup complete" not in done.stderr


def test_auto_takes_the_cpu_and_says_why(run: Run, bundle: Path) -> None:
    code = (
        "import logging, pathlib, sys; logging.basicConfig(level='INFO');"
        "from service.settings import Settings; from service.inference.sessions import session_maker;"
        "print(session_maker(Settings(device='auto'), pathlib.Path(sys.argv[1])).provider)"
    )
    done = run("-c", code, str(bundle / "decoder.onnx"))
    assert done.stdout.strip() == "CPUExecutionProvider"
    assert "device auto: CPU, because decoder.onnx runs on CPUExecutionProvider" in done.stderr


def test_the_gpu_check_says_that_cuda_does_not_run(run: Run, bundle: Path) -> None:
    done = run("-m", "export.gpu_check", str(bundle))
    assert (done.returncode, done.stdout) == (2, "")
    assert "VQSERVE_DEVICE=cuda: " in done.stderr


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "cudaError"),  # every option is read; then the driver fails
        ({"use_tf33": "0"}, "Unknown provider option"),
        ({"arena_extend_strategy": "kNone"}, "Failed to parse provider option"),
    ],
    ids=["ours", "unknown name", "unknown value"],
)
def test_the_cuda_provider_reads_every_option_we_pass(
    run: Run, bundle: Path, driver: Path, changed: dict[str, str], said: str
) -> None:
    for growth in ("kNextPowerOfTwo", "kSameAsRequested"):
        for search in ("HEURISTIC", "EXHAUSTIVE", "DEFAULT"):
            settings = EVERY_OPTION.model_copy(update={"cuda_arena_growth": growth, "cuda_convolution_search": search})
            ((name, options),) = gpu_providers(settings, "float32", cuda_graph=True)
            given = json.dumps([(name, options | changed)])
            done = run("-c", OPEN, str(bundle / "decoder.onnx"), given, LD_LIBRARY_PATH=str(driver))
            assert done.returncode != 0
            assert said in done.stderr
            if changed:
                return


def test_tensorrt_knows_every_option_we_pass_and_none_for_tf32(run: Run) -> None:
    """Its provider cannot be loaded without TensorRT's libraries, so the names are looked for in its file."""
    found = run("-c", "import onnxruntime; print(onnxruntime.__file__)").stdout.strip()
    content = (Path(found).parent / "capi" / "libonnxruntime_providers_tensorrt.so").read_bytes()
    (name, options), _ = gpu_providers(EVERY_OPTION, "fp16", cuda_graph=False)
    assert name == TENSORRT
    assert options.keys() == {"trt_fp16_enable", "trt_engine_cache_enable", "trt_engine_cache_path"}
    assert [option for option in options if option.encode() + b"\0" not in content] == []
    assert b"tf32" not in content.lower()


def test_without_tensorrt_its_absence_is_named(run: Run, bundle: Path) -> None:
    given = json.dumps(gpu_providers(EVERY_OPTION, "fp16", cuda_graph=False))
    done = run("-c", OPEN, str(bundle / "decoder.onnx"), given)
    assert done.returncode != 0
    assert "Please install TensorRT libraries" in done.stderr
