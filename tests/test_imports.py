"""Imports point one way: the service knows nothing of training, and the network libraries stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "service": {"training", "export", "torch", "onnx", "onnxscript", "lightning", "client", "tests"},
    "client": {"training", "export", "torch", "onnx", "tests"},
    "training": {"export", "onnx", "onnxruntime", "fastapi", "client", "tests"},
    "export": {"fastapi", "client", "tests"},
}
FROM_SERVICE = {"training": ("service.bundle",), "export": ("service.bundle", "service.codec")}


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


@pytest.mark.parametrize("package", sorted(FROM_SERVICE))
def test_only_the_torch_free_contract_is_taken_from_the_service(package: str) -> None:
    taken = {(file, name) for file, name in imports(package) if name.split(".")[0] == "service"}
    assert taken
    assert [(file, name) for file, name in taken if not name.startswith(FROM_SERVICE[package])] == []
