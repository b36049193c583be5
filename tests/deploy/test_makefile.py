"""The Makefile: what `make help` lists, and that every Python module that a target runs exists."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
MODULES = sorted(set(re.findall(r"-m ([\w.]+)", MAKEFILE)) - {"venv", "pip", "pytest"})
TARGETS = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("module", MODULES)
def test_the_module_that_a_target_runs_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def test_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony.group(1).split()) == TARGETS
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in listed.stdout.splitlines()} == TARGETS


def test_port_reaches_the_service() -> None:
    """`make serve PORT=` sets it, and without PORT the service's own default holds."""
    plan = ["make", "-n", "serve"]
    with_port = subprocess.run([*plan, "PORT=9123"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "VQSERVE_PORT=9123" in with_port
    environment = {"PATH": "/usr/bin:/bin"}
    without = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    assert "VQSERVE_PORT" not in without


@pytest.mark.parametrize("path", ["Makefile", "docs/deployment.md", "CONTRIBUTING.md"])
def test_targets_that_are_named_exist(path: str) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", (ROOT / path).read_text()))
    assert named <= TARGETS


def test_ci_runs_check_and_test() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    failed_again = 'make test PYTEST_ARGS="-n 0 --last-failed --last-failed-no-failures none"'  # and nothing else
    lines = script.read_text().splitlines()
    forgets = "rm -f .pytest_cache/v/cache/lastfailed"  # or a run that was killed would pass by the last one's failures
    assert [line for line in lines if line.startswith(("make ", "rm "))] == [
        "make check",
        forgets,
        f"make test || {failed_again}",
    ]


@pytest.mark.parametrize("lacking", ["wrk", "h2load", "data/mnist"])
def test_bench_says_what_it_needs(lacking: str, tmp_path: Path) -> None:
    """It said so after minutes of the measurements before."""
    for program in {"wrk", "h2load"} - {lacking}:
        (tmp_path / program).symlink_to("/bin/true")
    if lacking != "data/mnist":
        (tmp_path / "data" / "mnist").mkdir(parents=True)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    plan, environment = [shutil.which("make") or "make", "bench"], {"PATH": str(tmp_path)}
    done = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode and done.stderr.startswith(
        "make bench needs wrk, h2load (apt-get install wrk nghttp2-client)"
    )


STUB = r"""#!/bin/sh
case "$*" in
  *version_info\[:2\]*) echo {version} ;;
  "-m venv "*) mkdir -p "$3/bin" && [ -e "$3/bin/python" ] || cp "$0" "$3/bin/python" ;;
esac
"""


@pytest.mark.parametrize(("there", "kept"), [("3 11", False), ("3 12", True), (None, False)])
def test_an_environment_of_another_python_is_made_anew(there: str | None, kept: bool, tmp_path: Path) -> None:
    """`python3.12 -m venv` leaves the interpreter of the one that is there, also where it is gone."""
    python = tmp_path / "python"
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / ".venv-ray" / "bin").mkdir(parents=True)
    inside = tmp_path / ".venv-ray" / "bin" / "python"
    if there is None:
        inside.symlink_to("/nowhere")
    for stub, version in ((python, "3 12"), (inside, there)):
        if version is not None:
            stub.write_text(STUB.format(version=version))
            stub.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv-ray/other"):
        (tmp_path / name).touch()
    subprocess.run(["make", ".venv-ray/installed", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, check=True)
    assert "echo 3 12" in inside.read_text() and (inside.parents[1] / "installed").is_file()
    assert (inside.parents[1] / "other").exists() == kept
