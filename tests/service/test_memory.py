"""Freed blocks leave the process, also after a large one has been freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CHURN = """
import random, sys
from pathlib import Path
from service.memory import give_freed_memory_back

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

assert sys.argv[1] == "default" or give_freed_memory_back()
source = random.Random(0)
small = []
before = resident_mib()
for _ in range(200):
    block = bytearray(source.randrange(1 << 20, 30 << 20))
    small.append(bytearray(500))  # what a request leaves behind, above the block where that came from the heap
    del block
print(resident_mib() - before)
"""


def grown_mib(mode: str) -> float:
    command = [sys.executable, "-c", CHURN, mode]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_large_blocks_are_given_back() -> None:
    assert grown_mib("fixed") < 4 < grown_mib("default")
