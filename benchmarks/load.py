"""An open loop against /encode: what callers wait when requests come at a rate instead of one after the other.

    python -m benchmarks.load [--seconds 60] [--record]

In: a bundle and one digit. First the capacity: what is answered while this generator, which needs a CPU of its own,
offers as much as a closed loop of wrk had answered. Then requests arrive as a Poisson process at 50 % and at 80 % of
it. Out: p50, p90, p99, p99.9 and the maximum in milliseconds from the moment a
request was due, and one line of JSON; `--record` also writes docs/results/load.json and a section of
docs/benchmarks.md. Generator and server share the machine: `late_p99_ms` says how late the generator itself was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.open_loop import Offered, open_loop, percentile_ms
from benchmarks.report import ROOT, command_line, machine, machine_line, table, write_result, write_section
from benchmarks.server_process import Server, our_server
from benchmarks.wrk import Request, closed_loop

PICTURE = ROOT / "tests" / "fixtures" / "pictures" / "digit_7.png"
SHARES = (0.5, 0.8)
CAPACITY_CONNECTIONS = 16
WARM_UP_S = 1.0
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99.9_ms": 99.9, "max_ms": 100.0}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    facts, command = machine(), command_line()
    request = Request("/encode", PICTURE.read_bytes(), {"Content-Type": "image/png"})
    with our_server(options.bundle.resolve()) as server:
        capacity = capacity_of(server, request, options.capacity_seconds)
        offered = {share: offer(server, request, share * capacity, options.seconds) for share in SHARES}
    result = {
        "command": command,
        "machine": facts,
        "bundle": options.bundle.name,
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
    parser.add_argument("--seconds", type=float, default=60, help="of each rate")
    parser.add_argument("--capacity-seconds", type=float, default=6, help="of the closed loop before")
    parser.add_argument("--record", action="store_true", help="write docs/results/load.json and docs/benchmarks.md")
    return parser.parse_args(arguments)


def capacity_of(server: Server, request: Request, seconds: float) -> float:
    """Requests answered per second while more are offered than can be; later answers do not count."""
    closed_loop(server.url, request, CAPACITY_CONNECTIONS, WARM_UP_S)
    closed = closed_loop(server.url, request, CAPACITY_CONNECTIONS, seconds)
    if closed.errors:
        raise SystemExit(f"{closed.errors} of {closed.requests} requests failed before the measurement")
    offered = open_loop(server.host, server.port, request, closed.per_second, seconds)
    return sum(one.status == 200 and one.due_s + one.latency_s <= seconds for one in offered.answers) / seconds


def offer(server: Server, request: Request, per_second: float, seconds: float) -> dict[str, Any]:
    before = server.usage()
    offered = open_loop(server.host, server.port, request, per_second, seconds)
    after = server.usage()
    return {
        "offered_per_s": round(per_second, 1),
        "answered_per_s": round(offered.count(200) / seconds, 1),
        **latencies_ms(offered),
        "late_p99_ms": round(offered.late_p99_s * 1e3, 3),
        "cpu_s_per_1000": round((after.cpu_s - before.cpu_s) / max(len(offered.answers), 1) * 1e3, 4),
        "statuses": offered.statuses(),
    }


def latencies_ms(offered: Offered, status: int = 200) -> dict[str, float | None]:
    latencies = offered.latencies(status)
    return {name: percentile_ms(latencies, percent) for name, percent in PERCENTILES.items()}


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
            f"One digit to `/encode`, Poisson arrivals for {result['seconds']:g} s at shares of the capacity of "
            f"{result['capacity_per_s']:,.0f} requests per second that are answered when this generator, on the same "
            "CPUs, offers too many. Latencies count from the moment a request was due; `late_p99_ms` is how late the "
            "generator itself sent the slowest percent.",
            table(("of capacity", *columns), rows),
            others,
        )
    )


if __name__ == "__main__":
    main()
