"""schemathesis over the service's own OpenAPI file: no 5xx, no undocumented status or media type, no schema violation.

All of its checks are on, with the configuration of the test of the same kind, which says what a schema cannot: that a
picture must have the model's size. Every fourth run asks for a model that is not there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, goal
from benchmarks.server_process import Server, our_server

SIZES = {"cases": (500, 20_000), "seed": (1, 1)}
WHAT = "Cases that schemathesis makes from `/openapi.json`, valid and invalid, with all of its checks."
CONFIGURATION = ROOT / "tests" / "service" / "routes" / "schemathesis.toml"
NO_MODEL = "no-such-model"
_EXAMPLES = 150  # an operation and a run; a new seed makes others
_MOST_RUNS = 200


def run(bundle: Path, cases: int, seed: int) -> dict[str, Any]:
    name = json.loads((bundle / "manifest.json").read_text())["name"]
    examples = min(_EXAMPLES, cases // 20 + 1)
    total, runs = 0, 0
    failures, errors = Counter[str](), Counter[str]()
    with our_server(bundle) as server, tempfile.TemporaryDirectory() as folder:
        pids = server.pids()
        while total < cases and runs < _MOST_RUNS:
            model = NO_MODEL if runs % 4 == 3 else name
            report = run_once(server, Path(folder), model, examples, seed + runs)
            total, runs = total + report["test_cases"]["generated"], runs + 1
            failures.update({one_line(one): one["count"] for one in report["failures"]})
            errors.update({one["title"]: one["count"] for one in report["errors"]})
        died = server.pids() != pids
    return {
        "what": WHAT,
        "schemathesis": version("schemathesis"),
        "runs": runs,
        "failures": dict(failures),
        "errors": dict(errors),
        "goals": [
            goal("cases", total, at_least=cases),
            goal("failed checks", failures.total(), at_most=0),
            goal("errors of schemathesis itself", errors.total(), at_most=0),
            goal("processes that died", int(died), at_most=0),
        ],
    }


def run_once(server: Server, folder: Path, model: str, examples: int, seed: int) -> dict[str, Any]:
    """One run's JSON report. Exit status 1 only means that a check failed, which the report says too."""
    report = folder / "report.json"
    program = Path(sys.executable).with_name("schemathesis")
    command = [str(program), "--config-file", str(CONFIGURATION), "run", f"{server.url}/openapi.json"]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--checks", "all", "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--no-shrink", "--suppress-health-check", "all"]
    command += ["--report", "json", "--report-json-path", str(report)]
    environment = {**os.environ, "MODEL": model}
    done = subprocess.run(  # noqa: S603 - the words stand above
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1) or not report.is_file():
        raise SystemExit(f"schemathesis ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(done.stdout if done.returncode else f"seed {seed}: nothing found", file=sys.stderr)
    found: dict[str, Any] = json.loads(report.read_text())
    report.unlink()
    return found


def one_line(failure: dict[str, Any]) -> str:
    return f"{failure['code']} {failure['title']}: {', '.join(failure['operations'])}"
