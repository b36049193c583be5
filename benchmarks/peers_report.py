"""What benchmarks/peers.py says about its points: means over rounds, the best setting of each family, goals, a page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from benchmarks.contestants import Contestant
from benchmarks.report import goal, goal_table, machine_line, table

CONNECTIONS = (1, 16, 64)
BATCH = 64
BATCH_CONNECTIONS = (1, 4)

Point = dict[str, float]
Best = dict[str, dict[int, dict[str, Any]]]  # family -> connections -> point


def summary(rounds: Sequence[Point]) -> dict[str, Any]:
    """The mean of rates and costs, the median of latencies, the sum of errors, and every round's rate."""
    found: dict[str, Any] = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        if name == "errors":
            found[name] = int(sum(values))
        else:
            found[name] = round(median(values) if name in ("p50_ms", "p99_ms") else mean(values), 4)
    if "requests_per_s" in found:
        found["rounds_per_s"] = [one["requests_per_s"] for one in rounds]
    return found


def best_of_families(wanted: Sequence[Contestant], servers: dict[str, Any]) -> Best:
    """For each family and number of connections the setting with the most requests per second."""
    best: Best = {}
    for contestant in wanted:
        for connections, point in servers.get(contestant.name, {}).items():
            current = best.setdefault(contestant.family, {}).get(connections)
            if current is None or point["requests_per_s"] > current["requests_per_s"]:
                best[contestant.family][connections] = {**point, "name": contestant.name}
    return best


def goals(best: Best, servers: dict[str, Any], batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Requests per second of each at its best setting for that load, which the figure names."""
    found = []
    for ours, peer, at_least in (
        ("vqserve form", "FastAPI, form", 1.3),
        ("vqserve raw", "mosec", 1.0),
        ("vqserve raw", "LitServe", 3.0),
        ("vqserve raw", "BentoML", 6.0),
    ):
        for connections in CONNECTIONS:
            names = " / ".join(name_of(best, family, connections) for family in (ours, peer))
            label = f"requests/s at {connections} connections: {names}"
            found.append(goal(label, ratio(best, ours, peer, connections), at_least=at_least))
    for name in ("vqserve, form", "vqserve, raw", "vqserve, raw, 2 workers"):
        point = servers.get(name, {}).get(64)
        value = point["p99_ms"] / point["p50_ms"] if point else None
        found.append(goal(f"p99 / p50 at 64 connections: {name}", value, at_most=2))
    http = max(batch[f"http_per_s_at_{connections}"] for connections in BATCH_CONNECTIONS)
    found.append(goal(f"npy of {BATCH} over HTTP / session.run alone", http / batch["alone_per_s"], at_least=0.7))
    return found


def name_of(best: Best, family: str, connections: int) -> str:
    point = best.get(family, {}).get(connections)
    return point["name"] if point else family


def ratio(best: Best, ours: str, peer: str, connections: int) -> float | None:
    above, below = best.get(ours, {}).get(connections), best.get(peer, {}).get(connections)
    return above["requests_per_s"] / below["requests_per_s"] if above and below else None


def page(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    header = ("server", *(f"{c} connections" for c in CONNECTIONS), "memory, MB", "errors")
    rows = [(name, *row(points)) for name, points in result["servers"].items()]
    batch = result["batch"]
    over_http = ", ".join(f"{batch[f'http_per_s_at_{c}']:,.0f} at {c} connections" for c in BATCH_CONNECTIONS)
    absent = [f"- {name}: {reason.splitlines()[0]}" for name, reason in result["absent"].items()]
    parts = [
        "## Beside other servers",
        f"`{result['command']}` on {machine_line(result['machine'])}.",
        f"One PNG digit ({result['picture_bytes']} bytes) in, its codes as JSON out, the encoder of "
        f"`{result['bundle']}` on one onnxruntime thread, wrk on the same machine, {result['seconds']:g} s a cell, "
        f"mean of {result['rounds']} rounds. A cell is requests per second (p50, p99 in ms) CPU seconds per 1,000 "
        "requests. All servers gave the same codes; they have one worker where the name says no other number. LitServe "
        "is sent JSON with base64, the others the picture itself. BentoML is measured without its batching, which "
        "takes lists. What processes share counts once as memory.",
        table(header, rows),
        f"Batches of {BATCH} pictures as npy: {over_http} against {batch['alone_per_s']:,.0f} pictures per second of "
        "`session.run` alone.",
        goal_table(result["goals"]),
        *(["Not measured:", "\n".join(absent)] if absent else []),
    ]
    return "\n\n".join(parts)


def row(points: dict[int, dict[str, Any]]) -> list[str]:
    cells = []
    for point in points.values():
        latencies = f"({point['p50_ms']:.3g}, {point['p99_ms']:.3g})"
        cells.append(f"{point['requests_per_s']:,.0f} {latencies} {point['cpu_s_per_1000']:.2f}")
    memory = points[CONNECTIONS[-1]]["pss_mb"]
    return [*cells, f"{memory:.0f}", str(sum(point["errors"] for point in points.values()))]
