"""The interpreter that has onnxruntime-gpu, and a graph to open. `make test-gpu-wheel` makes both; no GPU is used."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bundle import tiny_prior, write_tiny_bundle

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def python() -> str:
    return os.environ["GPU_PYTHON"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu_wheel") / "tiny"
    write_tiny_bundle(folder, prior=tiny_prior())
    return folder


@pytest.fixture(scope="session")
def run(python: str) -> Run:
    """`run("-m", "service", VQSERVE_DEVICE="cuda")`: the other interpreter, which sees no GPU on any machine."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **variables}
        return subprocess.run(
            [python, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 whose one function fails: enough for the CUDA provider to load and read its options.

    The provider's other CUDA libraries are real; they find that the driver does not answer.
    """
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.c"
    source.write_text("int cuTensorMapEncodeTiled(void) { return 100; }\n")
    options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *options, "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
    return folder
