"""Abuse the service and say how it took it.

    python -m benchmarks.abuse overload|slow-clients|malformed|kill|soak|contract [--record]

In: a bundle. Out: figures beside their goals as one line of JSON, exit status 1 when a goal is missed; `--record` runs
at full length and also writes docs/results/abuse_NAME.json and a section of docs/benchmarks.md. Without it everything
is short: a try, whose figures mean little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.abuse import contract, kill, malformed, overload, slow_clients, soak
from benchmarks.abuse.common import write_record
from benchmarks.report import ROOT, command_line, machine

ABUSES = {
    "overload": overload,
    "slow-clients": slow_clients,
    "malformed": malformed,
    "kill": kill,
    "soak": soak,
    "contract": contract,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    abuse = ABUSES[options.abuse]
    given = {name: getattr(options, name) for name in abuse.SIZES}
    sizes = {name: given[name] or size[options.record] for name, size in abuse.SIZES.items()}
    facts, command = machine(), command_line()
    found = abuse.run(options.bundle.resolve(), **sizes)
    result = {"command": command, "machine": facts, "bundle": options.bundle.name, **sizes, **found}
    if options.record:
        write_record(options.abuse, result)
    print(json.dumps(result))
    return 0 if all(goal["met"] for goal in found["goals"]) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="abuse", required=True)
    for name, abuse in ABUSES.items():
        command = commands.add_parser(name, help=(abuse.__doc__ or "").split("\n")[0])
        command.add_argument("--bundle", type=Path, default=ROOT / "models" / "mnist")
        command.add_argument("--record", action="store_true", help="full length; write the result and the page")
        for size, (short, full) in abuse.SIZES.items():
            shown = f"default {short}, {full} with --record"
            command.add_argument(f"--{size.replace('_', '-')}", type=type(full), default=None, help=shown)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
