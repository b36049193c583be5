"""The kill test: many streams, half of which disconnect midway; slots, memory and threads must return.

    python -m benchmarks.generation_kill --bundle models/mnist --requests 500 [--record]

In: a bundle. Out: one JSON line with what the server held before and after; exit status 1 where something stayed;
`--record` also writes docs/results/generation_kill.json and a section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.report import command_line, machine, machine_line, table, write_result, write_section
from benchmarks.server_process import our_server, usage_of

EVENTS = {"accept": "text/event-stream"}
AT_ONCE = 32  # connections
MEMORY_SLACK_KIB = 32 << 10  # an allocator keeps some pages


@dataclass(frozen=True)
class State:
    """Of a server that has nothing to do."""

    threads: int
    memory_kib: int
    samples_in_flight: float
    busy_slots: float
    requests_in_flight: float


@dataclass(frozen=True)
class Report:
    before: State
    after: State
    whole: int  # streams that were read to their last event
    broken: int  # that were closed after their first row
    cancelled_samples: float

    @property
    def leaks(self) -> list[str]:
        left = [
            name
            for name in ("threads", "samples_in_flight", "busy_slots", "requests_in_flight")
            if getattr(self.after, name) > getattr(self.before, name)
        ]
        return left + ["memory_kib"] * (self.after.memory_kib > self.before.memory_kib + MEMORY_SLACK_KIB)


async def kill(address: str, pid: int, requests: int, samples: int) -> Report:
    """Streams of `samples` samples, every second one closed after its first row, against a server process."""
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(_stream(client, seed, samples, leave=seed % 2 == 1) for seed in range(AT_ONCE)))
        before = await settled(client, pid)
        cancelled = await _metric(client, "generate_cancelled_samples_total")
        done = await asyncio.gather(*(_stream(client, seed, samples, leave=seed % 2 == 1) for seed in range(requests)))
        after = await settled(client, pid)
        cancelled = await _metric(client, "generate_cancelled_samples_total") - cancelled
    return Report(before, after, sum(done), requests - sum(done), cancelled)


async def _stream(client: httpx.AsyncClient, seed: int, samples: int, leave: bool) -> bool:
    """Whether it was read to its end."""
    body = {"n": samples, "seed": seed}
    async with client.stream("POST", "/generate", json=body, headers=EVENTS) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if leave and line == "event: row":
                return False
            if line == "event: done":
                return True
    raise RuntimeError("the stream ended before its last event")


async def settled(client: httpx.AsyncClient, pid: int, seconds: float = 10) -> State:
    """The state once nothing is in flight but the question itself, or what it is after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        state = await _state(client, pid)
        idle = state.samples_in_flight == 0 and state.busy_slots == 0 and state.requests_in_flight <= 1
        if idle or time.monotonic() > end:
            return state
        await asyncio.sleep(0.05)


async def _state(client: httpx.AsyncClient, pid: int) -> State:
    usage = usage_of([pid])
    return State(
        usage.threads,
        usage.rss_bytes >> 10,
        await _metric(client, "generate_samples_in_flight"),
        await _metric(client, "generate_busy_slots"),
        await _metric(client, "requests_in_flight"),
    )


async def _metric(client: httpx.AsyncClient, name: str) -> float:
    page = (await client.get("/metrics")).text
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if re.match(rf"vqserve_{name}[ {{]", line))


def page(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    held = [(name, result["before"][name], result["after"][name]) for name in result["before"]]
    return "\n\n".join(
        (
            "## Streams that are broken off",
            f"`{result['command']}` on {machine_line(result['machine'])}.",
            f"{result['whole'] + result['broken']} streams, {AT_ONCE} at once, {result['broken']} of them closed after "
            f"their first row; {result['cancelled_samples']:g} samples were cancelled. The first {AT_ONCE} streams "
            "come before the first look. The request that is in flight is the look itself.",
            table(("the idle server holds", "before", "after"), held),
            f"What stayed: {', '.join(result['leaks']) or 'nothing'}.",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation_kill", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("models/mnist"))
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--samples", type=int, default=8, help="samples of each request")
    parser.add_argument("--record", action="store_true", help="write docs/results/generation_kill.json and the page")
    options = parser.parse_args()
    head = {"benchmark": "generation_kill", "command": command_line(), "machine": machine()}
    with our_server(options.bundle) as server:
        report = asyncio.run(kill(server.url, server.pid, options.requests, options.samples))
    result = {**head, **asdict(report), "leaks": report.leaks}
    if options.record:
        write_result("generation_kill", result)
        write_section("generation_kill", page(result))
    print(json.dumps(result))
    sys.exit(1 if report.leaks else 0)


if __name__ == "__main__":
    main()
