"""An open loop against /encode: what callers wait when requests come at a rate instead of one after the other.

    python -m benchmarks.load [--seconds 60] [--record]

In: a bundle and one picture, by default a digit. First the capacity, by a closed loop of wrk; then h2load offers 50 %
and 80 % of it, from so many connections that a request does not wait for another one's answer. Out: p50, p90, p99,
p99.9 and the maximum in milliseconds, and one line of JSON; `--record` also writes docs/results/load.json and a section
of docs/benchmarks.md. Generator and server share the machine.
"""

from __future__ import annotations

import argparse
import json
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.h2load import PER_CONNECTION, RAMP_S, fixed_rate
from benchmarks.open_loop import percentile_ms
from benchmarks.report import ROOT, command_line, machine, machine_line, table, write_result, write_section
from benchmarks.server_process import Server, our_server
from benchmarks.wrk import Request, closed_loop
from service.pictures.images import FITS, MEDIA_TYPES

PICTURE = ROOT / "tests" / "fixtures" / "pictures" / "digit_7.png"
SHARES = (0.5, 0.8)
CAPACITY_CONNECTIONS = 16
WARM_UP_S = 1.0
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99.9_ms": 99.9, "max_ms": 100.0}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    facts, command = machine(), command_line()
    request = request_of(options.picture, options.fit)
    with our_server(options.bundle.resolve(), threads=options.threads) as server:
        capacity = capacity_of(server, request, options.capacity_seconds)
        offered = {share: offer(server, request, share * capacity, options.seconds) for share in SHARES}
    result = {
        "command": command,
        "machine": facts,
        "bundle": options.bundle.name,
        "picture": options.picture.name,
        "threads": options.threads,
        "seconds": options.seconds,
        "capacity_per_s": round(capacity, 1),
        "offered": {f"{share:.0%}": found for share, found in offered.items()},
    }
    if options.record:
        write_result("load", result)
        write_section("load", page(result))
    print(json.dumps(result))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "mnist")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="what each request sends (a digit, 28x28)")
    parser.add_argument("--fit", choices=FITS, default=FITS[0], help="as in ?fit=")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, as VQSERVE_THREADS (1)")
    parser.add_argument("--seconds", type=float, default=60, help="of each rate")
    parser.add_argument("--capacity-seconds", type=float, default=6, help="of the closed loop before")
    parser.add_argument("--record", action="store_true", help="write docs/results/load.json and docs/benchmarks.md")
    return parser.parse_args(arguments)


def request_of(picture: Path, fit: str) -> Request:
    media_type = mimetypes.guess_type(picture.name)[0]
    if media_type not in MEDIA_TYPES:
        raise SystemExit(f"{picture} does not end as a picture does: PNG, JPEG, WebP or BMP")
    return Request(f"/encode?fit={fit}", picture.read_bytes(), {"Content-Type": media_type})


def capacity_of(server: Server, request: Request, seconds: float) -> float:
    """Requests answered per second while each of `CAPACITY_CONNECTIONS` sends the next one at once."""
    closed_loop(server.url, request, CAPACITY_CONNECTIONS, WARM_UP_S)
    closed = closed_loop(server.url, request, CAPACITY_CONNECTIONS, seconds)
    if closed.errors:
        raise SystemExit(f"{closed.errors} of {closed.requests} requests failed before the measurement")
    return closed.per_second


def offer(server: Server, request: Request, per_second: float, seconds: float) -> dict[str, Any]:
    before = server.usage()
    offered = fixed_rate(server.url, request, per_second, seconds)
    after = server.usage()
    latencies = offered.latencies(200)
    return {
        "offered_per_s": round(len(offered.answers) / seconds, 1),
        "answered_per_s": round(len(latencies) / seconds, 1),
        **{name: percentile_ms(latencies, percent) for name, percent in PERCENTILES.items()},
        "late_p99_ms": round(offered.late_p99_s * 1e3, 3),
        "cpu_s_per_1000": round((after.cpu_s - before.cpu_s) / (per_second * (seconds + RAMP_S)) * 1e3, 4),
        "statuses": offered.statuses(),
    }


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    columns = ("offered_per_s", "answered_per_s", *PERCENTILES, "late_p99_ms", "cpu_s_per_1000")
    rows = [(share, *(found[name] for name in columns)) for share, found in result["offered"].items()]
    failed = {
        share: {k: v for k, v in found["statuses"].items() if k != "200"} for share, found in result["offered"].items()
    }
    others = f"Answers other than 200: {failed}." if any(failed.values()) else "Every request was answered with 200."
    return "\n\n".join(
        (
            "## At a fixed rate",
            f"`{result['command']}` on {machine_line(result['machine'])}.",
            f"`{result['picture']}` to `/encode` for {result['seconds']:g} s at shares of the capacity of "
            f"{result['capacity_per_s']:,.0f} requests per second, which wrk measured with {CAPACITY_CONNECTIONS} "
            f"connections. h2load, on the same CPUs, sends {PER_CONNECTION:g} requests a second from each of as many "
            "connections as that takes, begun at different times. Latencies count from the moment a request was sent; "
            "`late_p99_ms` is how much later than its time the slowest percent was sent, because of the answer before "
            "it.",
            table(("of capacity", *columns), rows),
            others,
        )
    )


if __name__ == "__main__":
    main()
