"""Five times as many requests as the service can answer: whom it answers, how fast it refuses the rest, what it costs.

Two loads: batches of 64 pictures, which overload the engine, and single digits, which overload the event loop that has
to read and refuse them. The goals are for queues that are kept short; those of the default settings, which stay long,
are measured to compare. The unloaded state is a tenth of the capacity. The load comes from h2load, whose own part of
the CPU is small.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.abuse.common import DIGIT, batch_request
from benchmarks.h2load import fixed_rate
from benchmarks.open_loop import FAILED, percentile_ms
from benchmarks.report import goal
from benchmarks.server_process import our_server
from benchmarks.wrk import Request, closed_loop

SIZES = {"seconds": (3.0, 60.0), "factor": (5.0, 5.0)}
WHAT = (
    "Requests at five times the capacity, with VQSERVE_SHORT_QUEUE_IN_OVERLOAD=true: batches of 64, and single digits."
)
CAPACITY_CONNECTIONS = 4
UNLOADED_SHARE = 0.1
MAX_GROWTH_MB, MAX_SLOWDOWN, MAX_REFUSAL_MS = 100, 2, 50
MIN_ANSWERED = 0.5  # of the capacity: refusing must leave time to answer
LOADS: dict[str, Callable[[Path], Request]] = {"batches": batch_request, "digits": lambda _: DIGIT}
SHORT_QUEUE: dict[str, object] = {"short_queue_in_overload": True}


def run(bundle: Path, seconds: float, factor: float) -> dict[str, Any]:
    cases, long_queue = {}, {}
    for load, request_of in LOADS.items():
        request = request_of(bundle)
        capacity = capacity_of(bundle, request, max(2.0, seconds / 10))
        cases[load] = overload(bundle, request, SHORT_QUEUE, capacity, seconds, factor)
        long_queue[load] = overload(bundle, request, {}, capacity, seconds, factor)
    return {
        "what": f"{WHAT} {compared(long_queue)}",
        "cases": cases,
        "long_queue": long_queue,
        "goals": [one for load, case in cases.items() for one in goals(load, case)],
    }


def compared(long_queue: dict[str, dict[str, Any]]) -> str:
    """One sentence, of the same figures with a queue that stays long."""
    told = [
        f"{load} answered at {_shown(slowdown_of(case))} times the unloaded p99, {case['answered_by_capacity']:.2f} of "
        f"the capacity, and refused in {_shown(case['refused_p99_ms'])} ms (p99)"
        for load, case in long_queue.items()
    ]
    return f"By default: {'; '.join(told)}."


def _shown(number: float | None) -> str:
    return "no" if number is None else f"{number:.1f}"


def capacity_of(bundle: Path, request: Request, seconds: float) -> float:
    """Answered per second with the default settings, whose queue refuses none of a few connections."""
    with our_server(bundle) as server:
        closed_loop(server.url, request, CAPACITY_CONNECTIONS, 1)
        closed = closed_loop(server.url, request, CAPACITY_CONNECTIONS, seconds)
    if closed.errors:
        raise SystemExit(f"{closed.errors} of {closed.requests} requests failed before the overload began")
    return closed.per_second


def overload(
    bundle: Path, request: Request, settings: dict[str, object], capacity: float, seconds: float, factor: float
) -> dict[str, Any]:
    with our_server(bundle, **settings) as server:
        unloaded = fixed_rate(server.url, request, UNLOADED_SHARE * capacity, max(2.0, seconds / 3))
        before = server.usage().rss_bytes
        peak = [before]

        def look() -> None:
            peak[0] = max(peak[0], server.usage().rss_bytes)

        loaded = fixed_rate(server.url, request, factor * capacity, seconds, during=look)
        after = server.usage().rss_bytes
    answered, refused = loaded.latencies(200), loaded.latencies(429)
    return {
        "settings": settings,
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(len(loaded.answers) / seconds, 1),
        "answered_per_s": round(len(answered) / seconds, 1),
        "answered_by_capacity": round(len(answered) / seconds / capacity, 3),
        "statuses": loaded.statuses(),
        "unloaded_p99_ms": percentile_ms(unloaded.latencies(200), 99),
        "answered_p50_ms": percentile_ms(answered, 50),
        "answered_p99_ms": percentile_ms(answered, 99),
        "refused_p99_ms": percentile_ms(refused, 99),
        "refused_max_ms": percentile_ms(refused, 100),
        "sent_late_p99_ms": round(loaded.late_p99_s * 1e3, 3),
        "peak_growth_mb": round((max(peak[0], after) - before) / 1e6, 1),
        "not_answered": loaded.count(FAILED),
        "server_errors": sum(loaded.count(status) for status in range(500, 600)),
    }


def slowdown_of(case: dict[str, Any]) -> float | None:
    slow, fast = case["answered_p99_ms"], case["unloaded_p99_ms"]
    return slow / fast if slow is not None and fast is not None else None


def goals(name: str, case: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        goal(f"{name}: p99 of the answered / p99 unloaded", slowdown_of(case), at_most=MAX_SLOWDOWN),
        goal(f"{name}: answered per second / capacity", case["answered_by_capacity"], at_least=MIN_ANSWERED),
        goal(f"{name}: p99 of the refusals, ms", case["refused_p99_ms"], at_most=MAX_REFUSAL_MS),
        goal(f"{name}: growth of memory at its peak, MB", case["peak_growth_mb"], at_most=MAX_GROWTH_MB),
        goal(f"{name}: 5xx, broken or unanswered", case["server_errors"] + case["not_answered"], at_most=0),
    ]
