"""The service on a GPU and on the CPU of the same machine: what callers get, and how fast.

    python -m benchmarks.device_service models/mnist [--devices cuda cpu] [--seconds 3] [--record]

In: a bundle. For each device the service starts on it, with onnxruntime's threads by its own rule, and this
repository's asyncio client calls it in closed loops: `connections` callers, each sends its next request when it has the
answer. Out: the time to readiness, and requests and pictures a second with p50 and p99 for each kind of request, in
one line of JSON; `--record` also writes docs/results/device_service.json. The exit status is 1 where the service ran on
another provider than asked, or where the same seeds drew other codes on the two devices.

The client is Python in a process of its own: requests of one picture are bounded by it, not by a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.open_loop import percentile_ms
from benchmarks.report import command_line, write_result
from benchmarks.server_process import our_server
from export.gpu_check import gpu, versions
from vqserve import AsyncClient

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
LARGE = 64  # pictures a request, and connections
SEED = 7


@dataclass(frozen=True)
class Load:
    """`pictures` a request of `connections` callers at once."""

    work: str
    pictures: int
    connections: int


LOADS = (
    Load("encode", 1, 1),
    Load("encode", 1, LARGE),
    Load("encode", LARGE, 4),
    Load("decode", LARGE, 4),
    Load("generate", 1, 1),
    Load("generate", 1, LARGE),
    Load("generate", LARGE, 4),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    found = {device: asyncio.run(measure(device, options)) for device in options.devices}
    drawn = [side.pop("drawn") for side in found.values()]
    same = all(np.array_equal(codes, drawn[0]) for codes in drawn)
    result = {
        "command": command_line(),
        "device": gpu(),
        "versions": versions(),
        "bundle": options.bundle.name,
        "seconds": options.seconds,
        "devices": found,
        "same_codes": same,
    }
    if options.record:
        write_result("device_service", result)
    print(json.dumps(result))
    asked_for = all(side["provider"] == PROVIDERS[device] for device, side in found.items())
    return 0 if same and asked_for else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--devices", nargs="+", choices=sorted(PROVIDERS), default=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=3, help="of each load")
    parser.add_argument("--record", action="store_true", help="write docs/results/device_service.json")
    return parser.parse_args(arguments)


async def measure(device: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start the service on `device`, draw what must not depend on it, then run every load."""
    begun = time.monotonic()
    with our_server(options.bundle.resolve(), device=device, threads=0) as server:
        ready_s = time.monotonic() - begun
        async with AsyncClient(server.url) as client:
            (info,) = await client.models()
            drawn = await client.generate(n=LARGE, seed=SEED)
            codes = np.stack([one.codes for one in drawn.items])
            pixels = await client.decode(codes)
            calls = {load: call_of(client, load, codes, pixels) for load in LOADS}
            rows = [await closed_loop(load, call, options.seconds) for load, call in calls.items()]
    return {"provider": info.details["provider"], "ready_s": round(ready_s, 2), "loads": rows, "drawn": codes}


def call_of(client: AsyncClient, load: Load, codes: Any, pixels: Any) -> Callable[[int], Awaitable[object]]:
    """One request of this load; its number becomes the seed of what is generated."""
    part, picture = codes[: load.pictures], pixels[: load.pictures]
    if load.work == "encode":
        return lambda number: client.encode_array(picture)
    if load.work == "decode":
        return lambda number: client.decode(part)
    return lambda number: client.generate(n=load.pictures, seed=number)


async def closed_loop(load: Load, call: Callable[[int], Awaitable[object]], seconds: float) -> dict[str, Any]:
    """A caller's first answer is not counted: its connection is new."""
    durations: list[float] = []
    end = 0.0

    async def caller(number: int) -> None:
        await call(number)
        await everybody.wait()
        while (start := time.perf_counter()) < end:
            number += load.connections
            await call(number)
            durations.append(time.perf_counter() - start)

    everybody = asyncio.Barrier(load.connections + 1)
    callers = [asyncio.create_task(caller(number)) for number in range(load.connections)]
    end = time.perf_counter() + 3600  # until all callers are here
    await everybody.wait()
    begun = time.perf_counter()
    end = begun + seconds
    await asyncio.gather(*callers)
    took = time.perf_counter() - begun
    return {
        "work": load.work,
        "pictures_a_request": load.pictures,
        "connections": load.connections,
        "requests_per_s": round(len(durations) / took, 1),
        "pictures_per_s": round(load.pictures * len(durations) / took, 1),
        "p50_ms": percentile_ms(np.array(durations), 50),
        "p99_ms": percentile_ms(np.array(durations), 99),
    }


if __name__ == "__main__":
    sys.exit(main())
