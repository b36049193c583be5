"""What a benchmark leaves behind. In: a result as a dictionary. Out: docs/results/NAME.json, a section of
docs/benchmarks.md between two comments, and one line of JSON on standard output.

The JSON file also says which command made it, on what machine, and how busy the machine was when it began.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"


def machine() -> dict[str, Any]:
    """Taken before the measurement starts: afterwards the load would be the benchmark's own."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
    }


def machine_line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cpu']}, {facts['cpus']} CPUs, Python {facts['python']}, onnxruntime {facts['onnxruntime']}, "
        f"load average before the run {facts['load_average_1min']}"
    )


def command_line() -> str:
    """`python -m benchmarks.peers --record`, whatever folder it was started from."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).name
    return " ".join(["python -m", module, *sys.argv[1:]])


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def write_section(name: str, markdown: str, page: Path = PAGE) -> None:
    """Put `markdown` between the comments of section `name`; a new section goes to the end of the page."""
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Benchmarks\n"
    page.write_text(with_section(text, name, markdown), encoding="utf-8")


def with_section(text: str, name: str, markdown: str) -> str:
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    section = f"{begin}\n{markdown.strip()}\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{section}\n"
    before, rest = text.split(begin, 1)
    if end not in rest:
        raise SystemExit(f"docs/benchmarks.md has {begin!r} without {end!r}: put it back where the section ends")
    return before + section + rest.split(end, 1)[1]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def goal(
    figure: str, value: float | None, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """One figure beside its goal. A figure that could not be measured does not meet it."""
    met = value is not None and (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    wanted = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    return {"figure": figure, "value": value if value is None else round(value, 4), "goal": wanted, "met": met}


def goal_table(goals: Iterable[dict[str, Any]]) -> str:
    rows = (
        (g["figure"], "not measured" if g["value"] is None else f"{g['value']:g}", g["goal"], g["met"]) for g in goals
    )
    return table(("figure", "measured", "goal", "met"), ((*row[:3], "yes" if row[3] else "**no**") for row in rows))


def _field(path: Path, name: str) -> str | None:
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
