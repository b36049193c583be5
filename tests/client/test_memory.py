"""What a picture that is more than there is memory for does to the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.inference.sessions import SessionMaker
from service.prior.sampling import RowSampler
from tests.client.conftest import DIGITS
from tests.conftest import Tiny
from tests.tiny_bundle import tiny_prior, write_tiny_bundle
from vqserve import Client
from vqserve.command_line import main
from vqserve.offline import Offline

NO_MEMORY = "it needs more memory than there is"
OF_ONNXRUNTIME = RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")


def failing_at(number: int, error: Exception) -> Any:
    """A function of another one and what that takes, which call number `number` of it fails instead."""
    calls: list[Any] = []

    def call(real: Any, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == number:
            raise error
        return real(*given)

    return call


def encoded(where: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The messages about three pictures, of which the second one is refused."""
    assert main(["encode", *where, *map(str, DIGITS), "-o", f"{out}/"]) == 1
    assert sorted(path.name for path in out.iterdir()) == ["digit_0.vqc", "digit_7.vqc"]
    return capsys.readouterr().err.splitlines()


def test_a_picture_without_memory_is_refused_alone(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback, and the end of the folder."""
    kind: Any = Offline if "--bundle" in where else Client
    compress, fails = kind.compress, failing_at(2, MemoryError("Unable to allocate 9. GiB"))
    monkeypatch.setattr(kind, "compress", lambda *given, **more: fails(lambda: compress(*given, **more)))
    said = [f"vqserve: {DIGITS[1]}: {NO_MEMORY}", "vqserve: 1 of 3 files were refused"]
    assert encoded(where, tmp_path / "out", capsys) == said


@pytest.mark.parametrize("graph", ["encoder_quantizer", "prior"])
def test_a_graph_without_memory_refuses_one_picture(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As above: onnxruntime has errors of its own."""
    folder, opened, fails = tmp_path / "digits", SessionMaker.open, failing_at(2, OF_ONNXRUNTIME)
    write_tiny_bundle(folder, "digits", prior=tiny_prior(10))

    class Full:
        def __init__(self, maker: SessionMaker, path: Path) -> None:
            self.session, self.name = opened(maker, path), path.stem

        def run(self, *given: Any) -> Any:
            return fails(self.session.run, *given) if self.name == graph else self.session.run(*given)

    monkeypatch.setattr(SessionMaker, "open", lambda maker, path: Full(maker, path))
    refused, last = encoded(["--bundle", str(folder)], tmp_path / "out", capsys)
    reason = f"{folder}: a graph needs more memory than there is: {OF_ONNXRUNTIME}"
    assert refused == f"vqserve: {DIGITS[1]}: {reason}" and last == "vqserve: 1 of 3 files were refused"


@pytest.mark.parametrize("error", [MemoryError(), OF_ONNXRUNTIME])
def test_drawing_without_memory_has_a_message(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback."""
    folder = tmp_path / "digits"
    write_tiny_bundle(folder, "digits", prior=tiny_prior(10))
    fails = failing_at(1, error)
    monkeypatch.setattr(RowSampler, "advance", lambda *given: fails(None, *given))
    assert main(["generate", "--bundle", str(folder), "-o", f"{tmp_path}/x.png"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vqserve: ") and "needs more memory than there is" in line


def test_a_bundle_without_memory_has_a_message(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback."""
    fails = failing_at(1, MemoryError())
    monkeypatch.setattr("vqserve.offline.load_bundle", lambda folder: fails(None, folder))
    assert main(["encode", "--bundle", str(tiny.grey), str(DIGITS[0])]) == 1
    assert capsys.readouterr().err == f"vqserve: {NO_MEMORY}\n"
