"""Imports point one way: the service knows nothing of training, and the network libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "service": {"training", "export", "torch", "onnx", "onnxscript", "lightning", "vqserve", "tests"},
    "vqserve": {"training", "export", "torch", "onnx", "tests"},
    "training": {"export", "onnx", "onnxruntime", "fastapi", "vqserve", "tests"},
    "export": {"fastapi", "vqserve", "tests"},
}
FROM_SERVICE = {
    "training": ("service.bundle", "service.pictures.pixels"),
    "export": ("service.bundle", "service.prior.shear"),
}
LAYERS = {  # the packages of each, and the modules that stand alone
    "service": (
        "errors stopping setting_values bundle",
        "call threads codec pictures wire",
        "settings telemetry",
        "inference process",
        "registry",
        "prior",
        "routes",
        "http",
        "app",
        "reference __main__",
    ),
    "training": (
        "arguments errors printing config_faults",
        "config",
        "data models",
        "runs",
        "report",
        "fit",
        "compare",
        "__main__",
    ),
    "export": (
        "graphs",
        "sessions target reference_sampler cuda_coverage device_parity",
        "verify_prior gpu_check",
        "verify",
        "build",
        "renewal",
        "renew __main__",
    ),
}
RUN_THE_SERVICE = {"export/device_parity.py", "export/gpu_check.py"}  # they check what runs; both without torch


def imports(package: str) -> set[tuple[str, str]]:
    """(file, imported module) of every import statement in the package."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {(path.relative_to(ROOT).as_posix(), name) for name in names}
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_point_one_way(package: str) -> None:
    assert [(file, name) for file, name in imports(package) if name.split(".")[0] in FORBIDDEN[package]] == []


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_a_package_is_made_of_layers(package: str) -> None:
    """Each module takes only what stands before it in `LAYERS`, or beside it in the same package."""
    place = {name: n for n, names in enumerate(LAYERS[package]) for name in names.split()}
    taken = [(Path(file), name.split(".")) for file, name in imports(package) if name.startswith(f"{package}.")]
    found = {(file.with_suffix("").parts[1], parts[1]) for file, parts in taken}
    assert {layer for edge in found for layer in edge} <= set(place)
    assert [edge for edge in sorted(found) if edge[0] != edge[1] and place[edge[0]] <= place[edge[1]]] == []


@pytest.mark.parametrize("package", sorted(FROM_SERVICE))
def test_only_the_torch_free_contract_is_taken_from_the_service(package: str) -> None:
    taken = {(file, name) for file, name in imports(package) if name.split(".")[0] == "service"}
    taken = {(file, name) for file, name in taken if file not in RUN_THE_SERVICE}
    assert taken
    assert [(file, name) for file, name in taken if not name.startswith(FROM_SERVICE[package])] == []


def test_what_training_and_export_take_needs_nothing_of_the_service() -> None:
    """The training image installs no web framework: an import that leads to one would break it, and no test here."""
    modules = sorted({name for names in FROM_SERVICE.values() for name in names})
    code = f"import sys, {', '.join(modules)}\nprint({{'starlette', 'fastapi', 'orjson'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_gpu_check_needs_no_torch() -> None:
    """Its environment is that of the GPU service and onnx."""
    theirs = {name for file, name in imports("export") if file in RUN_THE_SERVICE}
    ours = {name for name in theirs if name.split(".")[0] == "export"}
    assert not {name.split(".")[0] for name in theirs} & {"torch", "training"}
    assert ours == {"export.device_parity"}


def test_the_pinned_versions_are_among_those_that_are_admitted() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for line in sum(project["optional-dependencies"].values(), project["dependencies"])]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert len(asked) > 30
    for one in asked:
        assert one.specifier.contains(pinned[one.name.lower()]), one
