"""The page of a comparison: what stands outside its markers stays, and one that cannot be written is told first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import TINY
from tests.training.runs.test_writing import largest_file
from training.__main__ import main
from training.compare.model_report import END, START, write_page
from training.runs.writing import WriteError

RESULT: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.compare.model_report.section", lambda result: "new\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# Mine\n\nold\n", f"# Mine\n\nold\n\n{START}\nnew\n{END}\n"),
        (f"one {START}\nold\n{END} two", f"one {START}\nnew\n{END} two"),
    ],
)
def test_what_stands_outside_the_markers_stays(tmp_path: Path, before: str, after: str) -> None:
    page = tmp_path / "model-report.md"
    page.write_text(before)
    for _ in range(2):
        write_page(RESULT, tmp_path)
        assert page.read_text() == after


def test_a_page_for_which_there_is_no_room_stays_as_it_was(tmp_path: Path) -> None:
    """It was cut to nothing before its new text was written."""
    page = tmp_path / "model-report.md"
    page.write_text("mine\n" * 1000)
    with largest_file(1000), pytest.raises(WriteError, match=r"model-report\.md cannot be written"):
        write_page(RESULT, tmp_path)
    assert page.read_text() == "mine\n" * 1000 and list(tmp_path.iterdir()) == [page]


def broken(text: bytes) -> Callable[[Path], object]:
    return lambda docs: (docs / "model-report.md").write_bytes(text)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (broken(f"mine\n{START}\nmine".encode()), "once each, in this order, or neither: correct it"),
        (broken(f"mine\n{END}\nmine".encode()), "once each"),
        (broken(f"{END}\nmine\n{START}".encode()), "once each"),
        (broken(f"{START}\n{END}\nmine\n{START}\n{END}".encode()), "once each"),
        (broken(b"caf\xe9"), "model-report.md is not UTF-8: convert it, or choose another --docs"),
        (lambda docs: (docs / "results").touch(), "results is a file: choose another --docs"),
        (lambda docs: (docs / "pictures").touch(), "pictures is a file: choose another --docs"),
    ],
)
def test_a_page_that_cannot_be_written_is_told_before_the_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], said: str
) -> None:
    """After hours of training it was a traceback; beside one marker alone a second section was written, and the next
    call deleted all that stood between them."""
    spoil(tmp_path)
    assert main(["compare", "--config", str(TINY), "--data", "nowhere", "--docs", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
