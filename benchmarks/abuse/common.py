"""What the abuses share: two requests, a steady state to compare memory with, and the page that lists all results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import RESULTS, ROOT, goal_table, machine_line, write_result, write_section
from benchmarks.server_process import Server
from benchmarks.wrk import Request, closed_loop
from service.wire.npy import MEDIA_TYPE as NPY
from service.wire.npy import write_npy

PICTURES = ROOT / "tests" / "fixtures" / "pictures"
DIGIT = Request("/encode", (PICTURES / "digit_7.png").read_bytes(), {"Content-Type": "image/png"})
BATCH = 64
STEADY_CONNECTIONS = 64

Size = tuple[float, float]  # of a try, with --record


def batch_request(bundle: Path) -> Request:
    """64 pictures as npy: milliseconds of model for one request, so that the engine is what is overloaded."""
    spec = json.loads((bundle / "manifest.json").read_text())["picture"]
    shape = (BATCH, spec["height"], spec["width"], spec["channels"])
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Request("/encode", write_npy(pixels), {"Content-Type": NPY, "Accept": NPY})


def settle(server: Server, request: Request, seconds: float = 2.0) -> None:
    """Ask until buffers and pools have the size that they keep: memory is compared with this state, not with a fresh
    process."""
    closed = closed_loop(server.url, request, STEADY_CONNECTIONS, seconds)
    if closed.errors:
        raise SystemExit(f"{closed.errors} of {closed.requests} requests failed before the abuse began")


def write_record(name: str, result: dict[str, Any]) -> None:
    write_result(f"abuse_{name.replace('-', '_')}", result)
    write_section("abuse", page(recorded()))


def recorded() -> dict[str, dict[str, Any]]:
    paths = sorted(RESULTS.glob("abuse_*.json"))
    return {path.stem.removeprefix("abuse_"): json.loads(path.read_text()) for path in paths}


def page(results: dict[str, dict[str, Any]]) -> str:
    """The section of docs/benchmarks.md, from every result that is there."""
    parts = ["## Faults and abuse"]
    for name, result in results.items():
        parts.append(f"### {name.replace('_', ' ').capitalize()}\n\n{result['what']}")
        parts.append(f"`{result['command']}` on {machine_line(result['machine'])}.")
        parts.append(goal_table(result["goals"]))
    return "\n\n".join(parts)
