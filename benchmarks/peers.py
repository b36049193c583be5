"""The service beside other servers: one encoder, one picture, one onnxruntime thread a session, in one run.

    python -m benchmarks.peers [--seconds 6] [--rounds 2] [--record]

In: a bundle and one digit. Out: for each server at 1, 16 and 64 connections requests per second, p50, p99 and CPU
seconds per 1,000 requests, the goals with their ratios, and one line of JSON; `--record` also writes
docs/results/peers.json and a section of docs/benchmarks.md. Each peer is installed into .venv-peers-NAME. In every
round each server is started, checked to answer the same codes as onnxruntime alone, warmed up and measured; the next
round begins with another one, so that the machine's moods hit all alike. A server that cannot be installed or started
is reported as such. Latencies of a closed loop with 64 clients are queueing more than work: read benchmarks/load.py
beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
from PIL import Image

from benchmarks.contestants import CannotInstall, Contestant, contestants, install
from benchmarks.peers_report import BATCH, BATCH_CONNECTIONS, CONNECTIONS, Point, best_of_families, goals, page, summary
from benchmarks.report import ROOT, command_line, machine, write_result, write_section
from benchmarks.server_process import Server, ServerDidNotStart, our_server
from benchmarks.wrk import Request, closed_loop
from service.wire.npy import MEDIA_TYPE as NPY
from service.wire.npy import write_npy

PICTURE = ROOT / "tests" / "fixtures" / "pictures" / "digit_7.png"
WARM_UP_S = 1.0


class WrongAnswer(RuntimeError):
    """A server answered other codes than onnxruntime alone."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    facts, command = machine(), command_line()
    wanted = [one for one in contestants(PICTURE.read_bytes()) if not options.only or one.name in options.only]
    present, absent = installed(wanted)
    expected = codes_alone(options.bundle, PICTURE)
    rounds: dict[str, dict[int, list[Point]]] = {}
    batches: list[Point] = []
    for number in range(options.rounds):
        for contestant in rotated(present, number, options.rounds):
            say(f"round {number + 1}: {contestant.name}")
            try:
                points = measure(contestant, options.bundle, expected, options.seconds)
            except (ServerDidNotStart, WrongAnswer) as error:
                absent[contestant.name] = str(error)
                continue
            for connections, point in points.items():
                rounds.setdefault(contestant.name, {}).setdefault(connections, []).append(point)
        say(f"round {number + 1}: batches of {BATCH}")
        batches.append(measure_batches(options.bundle, options.seconds))
    servers = {name: {c: summary(points) for c, points in by_c.items()} for name, by_c in rounds.items()}
    batch = summary(batches)
    result = {
        "command": command,
        "machine": facts,
        "bundle": options.bundle.name,
        "picture_bytes": PICTURE.stat().st_size,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "servers": servers,
        "batch": batch,
        "absent": absent,
        "goals": goals(best_of_families(wanted, servers), servers, batch),
    }
    if options.record:
        write_result("peers", result)
        write_section("peers", page(result))
    print(json.dumps(result))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "mnist")
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", action="append", metavar="NAME", help="measure this server; may be repeated")
    parser.add_argument("--record", action="store_true", help="write docs/results/peers.json and docs/benchmarks.md")
    options = parser.parse_args(arguments)
    options.bundle = options.bundle.resolve()
    if not (options.bundle / "encoder_quantizer.onnx").is_file():
        parser.error(f"{options.bundle} is no bundle: make one with python -m export RUN {options.bundle}")
    return options


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def installed(wanted: Sequence[Contestant]) -> tuple[list[Contestant], dict[str, str]]:
    """Those whose environment is there, and for the others why it is not."""
    present, absent = [], {}
    for contestant in wanted:
        try:
            install(contestant)
        except CannotInstall as error:
            absent[contestant.name] = f"not installed: {error}"
        else:
            present.append(contestant)
    return present, absent


def rotated(present: Sequence[Contestant], number: int, rounds: int) -> list[Contestant]:
    """Round by round another one goes first."""
    start = number * len(present) // rounds
    return [*present[start:], *present[:start]]


def codes_alone(bundle: Path, picture: Path) -> list[list[int]]:
    """(h,w): what every server has to answer."""
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("L"))[None, ..., None]  # (1,H,W,1) uint8
    codes: list[list[int]] = session_alone(bundle).run(None, {"images": pixels})[0][0].tolist()
    return codes


def session_alone(bundle: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(bundle / "encoder_quantizer.onnx", options, providers=["CPUExecutionProvider"])


def measure(contestant: Contestant, bundle: Path, expected: list[list[int]], seconds: float) -> dict[int, Point]:
    """A point a number of connections, from one start of the server."""
    with contestant.serving(bundle) as server:
        check_answer(server, contestant.request, expected)
        closed_loop(server.url, contestant.request, 16, WARM_UP_S)
        return {
            connections: measure_point(server, contestant.request, connections, seconds) for connections in CONNECTIONS
        }


def check_answer(server: Server, request: Request, expected: list[list[int]]) -> None:
    url, headers = server.url + request.path, dict(request.headers)
    answer = httpx.post(url, content=request.body, headers=headers, timeout=30, trust_env=False)
    codes = answer.raise_for_status().json()["codes"]
    if codes != expected:
        raise WrongAnswer(f"{request.path} answers other codes than onnxruntime alone: {codes}")


def measure_point(server: Server, request: Request, connections: int, seconds: float) -> Point:
    before = server.usage()
    closed = closed_loop(server.url, request, connections, seconds)
    after = server.usage()
    return {
        "requests_per_s": round(closed.per_second, 1),
        "p50_ms": closed.p50_ms,
        "p99_ms": closed.p99_ms,
        "cpu_s_per_1000": round((after.cpu_s - before.cpu_s) / max(closed.requests, 1) * 1e3, 4),
        "pss_mb": round(after.pss_bytes / 1e6, 1),
        "errors": closed.errors,
    }


def measure_batches(bundle: Path, seconds: float) -> Point:
    """Pictures per second of 64 in one npy, over HTTP and of `session.run` alone, one after the other."""
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *picture_shape(bundle)), np.uint8)
    request = Request("/encode", write_npy(pixels), {"Content-Type": NPY, "Accept": NPY})
    found: Point = {"alone_per_s": round(run_alone(bundle, pixels, seconds), 1)}
    with our_server(bundle) as server:
        closed_loop(server.url, request, 4, WARM_UP_S)
        for connections in BATCH_CONNECTIONS:
            point = measure_point(server, request, connections, seconds)
            found[f"http_per_s_at_{connections}"] = round(point["requests_per_s"] * BATCH, 1)
            found["errors"] = found.get("errors", 0) + point["errors"]
    return found


def picture_shape(bundle: Path) -> tuple[int, int, int]:
    spec = json.loads((bundle / "manifest.json").read_text())["picture"]
    return spec["height"], spec["width"], spec["channels"]


def run_alone(bundle: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]], seconds: float) -> float:
    session, runs = session_alone(bundle), 0
    session.run(None, {"images": pixels})
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        session.run(None, {"images": pixels})
        runs += 1
    return runs * len(pixels) / elapsed


if __name__ == "__main__":
    main()
