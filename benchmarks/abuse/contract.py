"""schemathesis over the service's own OpenAPI file: no 5xx, no undocumented status or media type, no schema violation.

All of its checks are on, in an environment of its own. One is told more than it assumes: a schema cannot say that a
picture must have the model's size, or that one parameter needs another, so valid by schema may be answered with the
documented 406, 413 and 422.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, goal
from benchmarks.server_process import Server, our_server

SIZES = {"cases": (500, 20_000), "seed": (1, 1)}
WHAT = "Cases that schemathesis makes from `/openapi.json`, valid and invalid, with all of its checks."
REQUIREMENT = "schemathesis==4.32.0"
ENVIRONMENT = ROOT / ".venv-schemathesis"
CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "404", "406", "413", "422", "429"]
"""
_EXAMPLES = 150  # an operation and a run; a new seed makes others
_MOST_RUNS = 200


def run(bundle: Path, cases: int, seed: int) -> dict[str, Any]:
    program = install()
    total, runs = 0, 0
    failures, errors = Counter[str](), Counter[str]()
    with our_server(bundle) as server, tempfile.TemporaryDirectory() as folder:
        pids = server.pids()
        while total < cases and runs < _MOST_RUNS:
            report = run_once(program, server, Path(folder), min(_EXAMPLES, cases // 20 + 1), seed + runs)
            total, runs = total + report["test_cases"]["generated"], runs + 1
            failures.update({one_line(one): one["count"] for one in report["failures"]})
            errors.update({one["title"]: one["count"] for one in report["errors"]})
        died = server.pids() != pids
    return {
        "what": WHAT,
        "schemathesis": REQUIREMENT,
        "configuration": CONFIGURATION.strip(),
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


def install() -> Path:
    """The program, in its own environment: it pins other versions of what the service uses."""
    program = ENVIRONMENT / "bin" / "schemathesis"
    if not program.is_file():
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT]
        for command in ([sys.executable, "-m", "venv", str(ENVIRONMENT)], pip):
            subprocess.run(command, check=True)  # noqa: S603
    return program


def run_once(program: Path, server: Server, folder: Path, examples: int, seed: int) -> dict[str, Any]:
    """One run's JSON report. Exit status 1 only means that a check failed, which the report says too."""
    configuration, report = folder / "schemathesis.toml", folder / "report.json"
    configuration.write_text(CONFIGURATION)
    command = [str(program), "--config-file", str(configuration), "run", f"{server.url}/openapi.json"]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--checks", "all", "--continue-on-failure"]
    command += ["--phases", "examples,coverage,fuzzing", "--no-shrink", "--suppress-health-check", "all"]
    command += ["--report", "json", "--report-json-path", str(report)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode not in (0, 1) or not report.is_file():
        raise SystemExit(f"schemathesis ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(done.stdout if done.returncode else f"seed {seed}: nothing found", file=sys.stderr)
    found: dict[str, Any] = json.loads(report.read_text())
    report.unlink()
    return found


def one_line(failure: dict[str, Any]) -> str:
    return f"{failure['code']} {failure['title']}: {', '.join(failure['operations'])}"
