"""The fenced blocks of a page, run as a reader runs them.

In: a Markdown page. `sh` blocks are a script, one after the other in one shell. `console` blocks are a transcript: what
follows `$ ` is run, and what it prints is what the page shows below it. Out: a finished script, or the transcript as it
really is. `python -m tests.docs.blocks` writes that into README.md.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.service.serving import serving

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BUNDLE = ROOT / "models" / "mnist"
ADDRESS = "localhost:8000"
CONSOLE = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
COMMAND = re.compile(r"^\$ (.*(?:(?<=\\)\n.*)*)\n", re.MULTILINE)  # a backslash at the end of a line goes on


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def checkout(folder: Path) -> Path:
    """A folder that looks like the repository's root to whoever reads it; what is written into it stays there.

    Of the bundles it has the one that the pages use: an export writes through a link, and models/ of a reader who has
    followed the tutorial holds models/mine.
    """
    for name in ("training", "export", "service", "vqserve", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "models").mkdir()
    (folder / "models" / BUNDLE.name).symlink_to(BUNDLE)
    return folder


def run_script(script: str, folder: Path) -> str:
    """What the script prints. It runs in bash, in a session that ends with it, with this Python as `python`."""
    binaries = folder / ".bin"
    binaries.mkdir(exist_ok=True)
    for name, module in (("python", ""), ("vqserve", "-m vqserve")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (binaries / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euo", "pipefail", "-c", f"trap 'jobs -p | xargs -r kill; wait' EXIT\n{script}"]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    if ran.returncode:
        raise AssertionError(f"{script}\n{ran.stdout}\n{ran.stderr}")
    return ran.stdout


def replay(block: str, address: str, folder: Path) -> str:
    """The transcript, with what the commands print against the service at `address`."""
    lines = []
    for command in COMMAND.findall(block):
        printed = run_script(command.replace(ADDRESS, address), folder).replace(address, ADDRESS)
        lines += [f"$ {command}\n", printed if printed.endswith("\n") or not printed else f"{printed}\n"]
    return "".join(lines)


def replayed(text: str) -> str:
    """The page with all its transcripts made anew against models/mnist."""
    with tempfile.TemporaryDirectory() as folder, serving(BUNDLE) as (_, url):
        place, address = checkout(Path(folder)), url.removeprefix("http://")
        return CONSOLE.sub(lambda match: replay(match[0], address, place), text)


def late_port() -> int:
    """A port for a service that starts much later: none that the kernel gives to connections until then."""
    for port in random.sample(range(20_000, 32_000), 100):  # below those of `ip_local_port_range`
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("of a hundred ports none is free")


if __name__ == "__main__":
    README.write_text(replayed(README.read_text(encoding="utf-8")), encoding="utf-8")
