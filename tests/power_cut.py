"""What a power cut would leave: the order in which contents and names reach the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def on_the_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Becomes `name: its content`, or `name: a folder`, for all that is synced, and `name -> name` for a rename."""
    done: list[str] = []
    sync, renames = os.fsync, {name: getattr(Path, name) for name in ("rename", "replace")}

    def noting_sync(number: int) -> None:
        sync(number)
        path = Path(f"/proc/self/fd/{number}").resolve()
        done.append(f"{path.name}: {path.read_text() if path.is_file() else 'a folder'}")

    def noting(name: str) -> None:
        def rename(path: Path, target: Path) -> None:
            done.append(f"{path.name} -> {target.name}")
            renames[name](path, target)

        monkeypatch.setattr(Path, name, rename)

    monkeypatch.setattr("os.fsync", noting_sync)
    noting("rename")
    noting("replace")
    return done
