"""Is this GPU fit to serve the bundle, and how fast is it? `make gpu-check`, or `python -m export.gpu_check BUNDLE`.

In: a bundle, and the VQSERVE_ settings of the environment. Out: one JSON document on standard output with the device,
the versions, the settings, a row for each comparison of `export.device_parity` between CUDA and the CPU, and
throughput by batch size on both. The exit status is 0 when every row passed, 1 when one did not, 2 when CUDA does not
run, or the bundle or a setting cannot be read. Needs onnxruntime-gpu, onnx and the service's libraries, no PyTorch.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
from pydantic import ValidationError

from export.device_parity import Inputs, Side, compare, draw_codes, draw_inputs, draws_of
from service.bundle import Bundle, BundleError, load_bundle
from service.inference.batch_limits import buckets
from service.inference.sessions import CPU, DeviceError, GraphError, SessionMaker, cpu_limit, session_maker
from service.prior.generator import slots_of
from service.settings import Settings

Document = dict[str, Any]
LEAST_CODES, LEAST_PICTURES = 12_500, 64  # just above 10,000 codes, so that one near tie is allowed; a whole batch
SECONDS_A_TIMING = 0.5
SETTINGS = ("encoder_precision", "decoder_precision", "max_batch", "max_generate_batch", "tensorrt")


def gpu() -> Document:
    """What nvidia-smi says of the GPU that CUDA, so onnxruntime, takes first.

    Raises:
        DeviceError: CUDA does not name it.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return {"name": "unknown: nvidia-smi is not on the path"}
    names = ("name", "driver_version", "memory.total", "compute_cap")
    query = [command, f"--id={_bus_id()}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 - our own words
    return dict(zip(names, done.stdout.strip().split(", "), strict=True))


def _bus_id() -> str:
    """PCI address of CUDA's device 0. nvidia-smi knows neither CUDA_VISIBLE_DEVICES nor CUDA's order of GPUs."""
    cuda, name = ctypes.CDLL("libcuda.so.1"), ctypes.create_string_buffer(32)
    status = cuda.cuInit(0) or cuda.cuDeviceGetPCIBusId(name, len(name), 0)
    if status:
        raise DeviceError(f"CUDA does not name its first device: error {status}: check nvidia-smi and the driver")
    return name.value.decode("ascii")


def versions() -> dict[str, str]:
    """Of what computes here."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "vqserve": importlib.metadata.version("vqserve"),
    }


def timings(sides: dict[str, Side], inputs: Inputs, seconds: float) -> list[Document]:
    """Pictures a second of encode, decode and generate at each batch size, one column a side."""
    rows: list[Document] = []
    for work, largest in works(next(iter(sides.values()))):
        for size in (size for size in buckets(largest) if size <= len(inputs.codes)):
            row: Document = {"work": work, "batch": size}
            for name, side in sides.items():
                row[f"{name}_ms"] = round(best_ms(call_of(side, work, inputs, size), seconds), 4)
                row[f"{name}_pictures_per_s"] = round(1e3 * size / row[f"{name}_ms"], 1)
            rows.append(row)
    return rows


def works(side: Side) -> list[tuple[str, int]]:
    """What can be timed, and its largest batch."""
    generate = [("generate", side.sampler.max_batch)] if side.sampler else []
    return [("encode", side.max_batch), ("decode", side.max_batch), *generate]


def call_of(side: Side, work: str, inputs: Inputs, size: int) -> Callable[[], object]:
    """What `timings` times: one of `works` for the first `size` inputs."""
    if work == "encode":
        return lambda: side.encoder.run(None, {"images": inputs.pictures[:size]})
    if work == "decode":
        return lambda: side.decoder.run(None, {"codes": inputs.codes[:size]})
    sampler, draws = side.sampler, draws_of(side, inputs.labels[:size], filtered=False)
    assert sampler is not None
    return lambda: draw_codes(sampler, draws, size)


def best_ms(call: Callable[[], object], seconds: float) -> float:
    """The quickest of at least three calls after a first one, for about `seconds`."""
    call()
    best, count, begun = float("inf"), 0, perf_counter()
    while count < 3 or perf_counter() - begun < seconds:
        started = perf_counter()
        call()
        best, count = min(best, perf_counter() - started), count + 1
    return 1e3 * best


def check(
    bundle: Bundle,
    settings: Settings,
    device: SessionMaker,
    *,
    pictures: int,
    seconds: float,
) -> Document:
    """Compare `device` with the CPU and time both; `passed` says whether all rows did."""
    slots = slots_of(settings, device)
    trusted = Side.of(bundle, settings, SessionMaker(CPU, cpu_limit()), slots)
    other = Side.of(bundle, settings, device, slots)
    inputs = draw_inputs(trusted, pictures)
    rows = compare(trusted, other, inputs)
    return {
        "bundle": {"name": bundle.manifest.name, "version": bundle.manifest.version},
        "provider": device.provider,
        "versions": versions(),
        "settings": settings.model_dump(mode="json", include={*SETTINGS, *_cuda_settings()}),
        "parity": [asdict(row) for row in rows],
        "timings": timings({"device": other, "cpu": trusted}, inputs, seconds),
        "passed": all(row.passed for row in rows),
    }


def _cuda_settings() -> set[str]:
    return {name for name in Settings.model_fields if name.startswith("cuda_")}


def pictures_for(bundle: Bundle) -> int:
    """So many pictures that they have at least LEAST_CODES codes, and are at least LEAST_PICTURES."""
    codes = bundle.manifest.codes
    return max(LEAST_PICTURES, -(-LEAST_CODES // (codes.height * codes.width)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.gpu_check", description="Compare CUDA with the CPU.")
    parser.add_argument("bundle", type=Path, help="a bundle's folder, for example models/mnist")
    folder = parser.parse_args(arguments).bundle
    logging.basicConfig(level=logging.WARNING)
    try:
        settings = Settings(device="cuda")
        bundle = load_bundle(folder)
        device = session_maker(settings, bundle.graph_path("decoder"))
        pictures = pictures_for(bundle)
        document = {"device": gpu(), **check(bundle, settings, device, pictures=pictures, seconds=SECONDS_A_TIMING)}
    except (BundleError, DeviceError, GraphError, ValidationError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(document, indent=1))
    return 0 if document["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
