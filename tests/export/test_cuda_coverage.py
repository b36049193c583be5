"""The check that whole graphs run on CUDA: the prior passes, what cannot run there is found, sub-graphs included."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from export.cuda_coverage import main, uncovered
from service.bundle.fields import GraphName
from tests.training.conftest import ROOT

FLOATS = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4])
RESULT = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 4])


def model(*nodes: onnx.NodeProto, opset: int = 18, element: int = TensorProto.FLOAT) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", element, ["B", 4])
    y = helper.make_tensor_value_info("y", element, ["B", 4])
    graph = helper.make_graph(list(nodes), "graph", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_every_graph_of_the_prior_is_covered(models: dict[GraphName, onnx.ModelProto]) -> None:
    assert [node for graph in models.values() for node in uncovered(graph)] == []


def test_an_operator_without_a_kernel_is_named_with_its_types() -> None:
    (missing,) = uncovered(model(helper.make_node("Asinh", ["x"], ["y"], name="curve")))
    assert str(missing) == "curve: Asinh-9 (T=float) has no CUDA kernel"


def test_the_command_checks_something_or_says_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a graph it said that every node has a kernel; what is no graph was a traceback, as were an empty file and
    an operator that ONNX has not."""
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "MODEL.onnx" in capsys.readouterr().err
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    (tmp_path / "empty.onnx").touch()
    onnx.save(model(helper.make_node("Nope", ["x"], ["y"])), tmp_path / "nope.onnx")
    for path in (tmp_path / f"{name}.onnx" for name in ("no", "missing", "empty", "nope")):
        with pytest.raises(SystemExit, match=f"^error: {path} cannot be read as a graph: "):
            main([str(path)])
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit, match=f"^error: {tmp_path / 'none'} cannot be read as a graph: "):
        main([str(tmp_path / "none")])
    assert main([str(ROOT / "models/mnist")]) == 0  # a folder's name was no graph
    assert "11 graphs: every node has" in capsys.readouterr().out


def test_a_type_without_a_kernel_is_found() -> None:
    """Round has CUDA kernels for float, double and float16; Floor on bfloat16 has none."""
    assert uncovered(model(helper.make_node("Floor", ["x"], ["y"]))) == []
    (missing,) = uncovered(model(helper.make_node("Floor", ["x"], ["y"]), element=TensorProto.BFLOAT16))
    assert (missing.operator, missing.types) == ("Floor", {"T": "bfloat16"})


def test_a_node_inside_an_if_is_found() -> None:
    branch = helper.make_graph(
        [helper.make_node("Asinh", ["x"], ["inner"], name="deep")],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["B", 4])],
    )
    other = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner2"])],
        "else",
        [],
        [helper.make_tensor_value_info("inner2", TensorProto.FLOAT, ["B", 4])],
    )
    true = helper.make_node("Constant", [], ["true"], value=helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    choice = helper.make_node("If", ["true"], ["y"], then_branch=branch, else_branch=other)
    assert [missing.node for missing in uncovered(model(true, choice))] == ["deep"]


def test_a_newer_schema_than_the_kernels_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel marked with one version covers only that version."""
    kernels = {"Relu": [[13, 2147483647, {"T": ["float"]}]]}
    monkeypatch.setattr("export.cuda_coverage._kernels", lambda: kernels)
    relu = helper.make_node("Relu", ["x"], ["y"])
    assert uncovered(model(relu, opset=13)) == []
    assert [missing.version for missing in uncovered(model(relu, opset=14))] == [14]


def test_an_operator_of_another_domain_is_not_covered() -> None:
    graph = helper.make_graph(
        [helper.make_node("Mystery", ["x"], ["y"], domain="elsewhere")], "graph", [FLOATS], [RESULT]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    found = uncovered(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    assert [missing.operator for missing in found] == ["Mystery"]


def test_the_command_tells_by_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(model(helper.make_node("Relu", ["x"], ["y"])), good)
    onnx.save(model(helper.make_node("Asinh", ["x"], ["y"])), bad)
    assert main([str(good)]) == 0
    assert main([str(good), str(bad)]) == 1
    assert "Asinh-9" in capsys.readouterr().out
