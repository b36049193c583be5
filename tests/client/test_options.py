"""What the command makes of its arguments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.client.conftest import DIGITS
from vqserve.command_line import SUMMARIES, main
from vqserve.options import parse, parser


@pytest.mark.parametrize(
    ("arguments", "inputs"),
    [
        (["encode", "a.png", "--fit", "pad", "b.png", "-o", "x/", "c.png", "-"], ["a.png", "b.png", "c.png", "-"]),
        (["encode", "a.png", "-f", "--", "-b.png", "--"], ["a.png", "-b.png", "--"]),
        (["info", "a.vqc", "--timeout", "5", "b.vqc"], ["a.vqc", "b.vqc"]),
        (["info", "--timeout", "5"], []),
    ],
)
def test_inputs_may_stand_behind_options(arguments: list[str], inputs: list[str]) -> None:
    """Those behind a second option were `unrecognized arguments`."""
    assert parse(parser(None, SUMMARIES), arguments).inputs == inputs


def test_a_command_takes_the_inputs_behind_its_options(where: list[str], tmp_path: Path) -> None:
    first, second = map(str, DIGITS[:2])
    assert main(["encode", first, *where, second, "-o", f"{tmp_path}/out/"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["digit_0.vqc", "digit_1.vqc"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "a.png", "--nope", "b.png"], "unrecognized arguments: --nope b.png"),
        (["encode", "a.png", "-f", "b.png", "--nope"], "unrecognized arguments: b.png --nope"),
        (["generate", "--n", "2", "a.png"], "unrecognized arguments: a.png"),
        (["encode", "a.png", "-f", ""], "argument INPUT: the name is empty"),
        (["encode", "-f"], "the following arguments are required: INPUT"),
    ],
)
def test_what_is_no_argument_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_an_empty_name_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    """`info` said that the service has no such route."""
    for command in ("info", "generate"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--url", "http://127.0.0.1:9", "--model", ""])
        said = "argument --model: the name is empty: leave --model out for the default one"
        assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--n", "--seed", "--top-k", "--temperature", "--top-p", "--guidance", "--timeout"])
@pytest.mark.parametrize("given", ["1_0", " 5", "5 ", "٣", "³", "0x5", "five", "", "+", ".", "1e", "nan", "inf"])
def test_what_only_python_reads_is_no_number(option: str, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`1_0` was 10, and `٣` was 3."""
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--url", "http://127.0.0.1:9", option, given])
    kind = "whole number" if option in ("--n", "--seed", "--top-k") else "number"
    assert ended.value.code == 2 and f"argument {option}: {given!r} is no {kind}\n" in capsys.readouterr().err


def test_numbers_are_read_as_they_are_written() -> None:
    values = {"--temperature": (".5", 0.5), "--top-p": ("+1.", 1.0), "--guidance": ("15e-1", 1.5)}
    numbers = {**values, "--seed": ("0123", 123), "--n": ("+4", 4), "--top-k": ("-1", -1), "--timeout": ("2E1", 20.0)}
    arguments = [one for option, (text, _) in numbers.items() for one in (option, text)]
    read = vars(parse(parser(None, SUMMARIES), ["generate", *arguments]))
    for option, (_, value) in numbers.items():
        assert read[option[2:].replace("-", "_")] == value


def test_every_option_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Three of `generate` had their name alone."""
    for command in SUMMARIES:
        with pytest.raises(SystemExit):
            main([command.__name__, "--help"])
        _, _, listed = capsys.readouterr().out.partition("options:\n")
        options = re.findall(r"^  -.*(?:\n {3,}.*)*", listed, re.MULTILINE)
        assert len(options) > 5 and all(re.search(r"\S\s{2,}\S", option) for option in options), options
