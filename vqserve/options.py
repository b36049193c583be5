"""The options of the `vqserve` command. In: its commands. Out: a parser, which refuses what is no number."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from vqserve.connection import LONGEST_S, TIMEOUT_S
from vqserve.files import STANDARD

FITS = ("exact", "resize", "pad")
WHOLE = r"[+-]?[0-9]+"  # Python also reads `1_0`, ` 5` and the digits of other scripts, which the service refuses
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
NAMES_OF_STANDARD_INPUT = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
NAMES_OF_STANDARD_OUTPUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

Command = Callable[[argparse.Namespace], None]


def parser(description: str | None, summaries: dict[Command, str]) -> argparse.ArgumentParser:
    """Each command is a function, by whose name it is called, and which the parsed options hold as `run`."""
    whole = argparse.ArgumentParser(
        prog="vqserve", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for run, summary in summaries.items():
        command = commands.add_parser(run.__name__, help=summary, description=summary)
        command.set_defaults(run=run)
        _add_common(command, run.__name__)
        _add_special(command, run.__name__)
    return whole


def parse(whole: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """As `whole.parse_args`, but inputs may also stand behind options that follow other inputs."""
    options, others = whole.parse_known_args(arguments)
    end = others.index("--") if "--" in others else len(others)  # what follows it is no option
    known = all(other == STANDARD or not other.startswith("-") for other in others[:end])
    if others and not (known and "inputs" in options):
        whole.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        more = [source(other) for other in others[:end] + others[end + 1 :]]
    except argparse.ArgumentTypeError as error:
        whole.error(f"argument INPUT: {error}")
    if more:
        options.inputs += more
    return options


def _add_common(command: argparse.ArgumentParser, name: str) -> None:
    if name != "generate":
        some = "*" if name == "info" else "+"
        command.add_argument(
            "inputs", nargs=some, type=source, metavar="INPUT", help="file, folder, or - for standard input"
        )
    where = command.add_mutually_exclusive_group()
    where.add_argument("--url", help="a running service (default: $VQSERVE_URL)")
    where.add_argument("--bundle", type=folder, help="a bundle folder, to work without a service")
    command.add_argument("--model", type=text, help="name of the service's model; its default one without it")
    command.add_argument("--key", help="API key (default: $VQSERVE_KEY)")
    wait = f"longest wait for a connection, and for each next part of an answer (default: {TIMEOUT_S:g})"
    command.add_argument("--timeout", type=seconds, default=TIMEOUT_S, metavar="SECONDS", help=wait)


def _add_special(command: argparse.ArgumentParser, name: str) -> None:
    if name in ("encode", "score"):
        size = "one of another size than the model's is refused (exact, the default), scaled (resize) or padded (pad)"
        command.add_argument("--fit", choices=FITS, default="exact", help=size)
    if name in ("encode", "decode", "generate"):
        default = "the current folder" if name == "generate" else "beside the input, of - standard output"
        help_text = f"folder, file of the one result, or - for standard output (default: {default})"
        command.add_argument("-o", "--output", type=place, help=help_text)
        command.add_argument("-f", "--force", action="store_true", help="replace files that are there")
    if name == "encode":
        weight = "weight of a bit against distortion, 0 to 4 (default: 0)"
        command.add_argument("--effort", type=number, default=0.0, help=weight)
        form = command.add_mutually_exclusive_group()
        form.add_argument("--together", action="store_true", help="pictures of one size into one container")
        form.add_argument("--codes", action="store_true", help="write the codes as JSON instead of a container")
    if name == "score":
        command.add_argument("--label", type=label, help="number or name of the label under which to score")
        command.add_argument("--by-label", action="store_true", help="also the bits under each label in turn")
    if name == "generate":
        _add_wishes(command)


def _add_wishes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--n", type=whole, default=1, help="how many (default: 1)")
    command.add_argument("--label", type=label, help="number or name of the label")
    command.add_argument("--seed", type=whole, help="reproduces the pictures; part of the file names")
    command.add_argument("--temperature", type=number, help="below 1 safer, above 1 wilder (default: 1)")
    command.add_argument("--top-k", type=whole, help="draw from the so many most likely codes only")
    command.add_argument("--top-p", type=number, help="draw from the most likely codes that reach this probability")
    command.add_argument("--guidance", type=number, help="how far to push towards the label, 1 to 8; 1.5 is clear")


def named(text: str) -> str:
    """Raises ArgumentTypeError for no name at all, as of a variable that is not set: it would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: write . for the current folder")
    return text


def source(text: str) -> str:
    """As `named`. Standard input is `-` by any name: its result was to be a file beside /dev/stdin."""
    return STANDARD if text in NAMES_OF_STANDARD_INPUT else named(text)


def place(text: str) -> str:
    """As `named`. Standard output is `-` by any name: behind `>> FILE`, /dev/stdout is that file, and was replaced."""
    return STANDARD if text in NAMES_OF_STANDARD_OUTPUT else named(text)


def text(given: str) -> str:
    """Raises ArgumentTypeError for no name at all, and for bytes that are none in the terminal's encoding: no URL holds
    them."""
    if not given:
        raise argparse.ArgumentTypeError("the name is empty: leave --model out for the default one")
    if not given.isprintable():
        raise argparse.ArgumentTypeError(f"{given!r} has signs that no name of a model has")
    return given


def folder(text: str) -> Path:
    """Raises ArgumentTypeError as `named`."""
    return Path(named(text))


def label(text: str) -> int | str:
    """A number where it is one, else a name, which only the model knows. `1_0` is a name."""
    return int(text) if re.fullmatch(WHOLE, text) else text


def whole(text: str) -> int:
    """Raises ArgumentTypeError."""
    if not re.fullmatch(WHOLE, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def number(text: str) -> float:
    """Raises ArgumentTypeError for what JSON cannot carry: words, `nan`, and what no float holds."""
    if not re.fullmatch(NUMBER, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


def seconds(text: str) -> float:
    """Raises ArgumentTypeError for what is no time to wait."""
    value = number(text)
    if not 0 < value <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text} seconds are not above 0 and at most {LONGEST_S:g}")
    return value
