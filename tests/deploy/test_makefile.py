"""The Makefile: what `make help` lists, and that every Python module that a target runs exists."""

from __future__ import annotations

import importlib.util
import re
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
    assert re.findall(r"^make .*$", script.read_text(), re.MULTILINE) == ["make check", f"make test || {failed_again}"]
