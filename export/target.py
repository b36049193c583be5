"""The folder that a bundle is written to: what may be replaced there, and how.

In: the folder that was named, and one in which a bundle is complete. Out: the bundle in its place, or `ExportError` and
all as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.bundle import MANIFEST_FILE


class ExportError(ValueError):
    """The run cannot become a bundle; the message says why."""


def resolved(folder: Path) -> Path:
    """The folder by its absolute name; of a link, what it points at.

    Raises:
        ExportError: the link points at itself.
    """
    target = Path(os.path.realpath(folder))
    if target.is_symlink():
        raise ExportError(f"{folder} is a link that leads back to itself: choose another folder")
    return target


def require_replaceable(bundle_folder: Path) -> None:
    """The target is not there yet, or a bundle and nothing else: what it holds is deleted."""
    if any(path.exists() and not path.is_dir() for path in bundle_folder.parents):
        raise ExportError(f"{bundle_folder} cannot be a folder: a file is in its path. Choose another one")
    if not bundle_folder.exists():
        return
    files = _files_of_bundle(bundle_folder)
    if not files:
        raise ExportError(f"{bundle_folder} exists and is not a bundle: choose another folder")
    others = sorted({path.name for path in bundle_folder.iterdir()} - files)
    if others:
        raise ExportError(
            f"{bundle_folder} holds more than a bundle, which would be deleted: move {', '.join(others)} away, or "
            "choose another folder"
        )


def _files_of_bundle(folder: Path) -> set[str]:
    """The manifest and the files that it names. None where it is not one of ours, of whatever version: web pages and
    browser extensions have some too."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return set()
    if not (isinstance(manifest, dict) and {"format_version", "graphs"} <= manifest.keys()):
        return set()
    graphs = manifest["graphs"].values() if isinstance(manifest["graphs"], dict) else ()
    return {MANIFEST_FILE, *(str(graph.get("file")) for graph in graphs if isinstance(graph, dict))}


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A folder to write a bundle in, before it becomes `target`.

    Raises:
        ExportError: nothing may be written beside the target; or there is no room for the bundle, or no right to move
            it there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-")
    except OSError as error:
        raise ExportError(
            f"{target.parent} cannot be written to ({error.strerror}): correct its permissions, or "
            "choose another folder"
        ) from error
    try:
        with temporary as folder:
            yield Path(folder)
    except OSError as error:
        raise ExportError(
            f"{target} cannot be written ({_reason(error)}): make room there, correct its permissions, or "
            "choose another folder"
        ) from error


def _reason(error: OSError) -> str:
    """Of a copied folder it is that of the first file: `shutil.Error` lists (from, to, reason)."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][2])
    return error.strerror or str(error)


def replace_bundle(bundle_folder: Path, folder: Path, previous: Path) -> None:
    """Put `folder` in the place of a bundle, which is back there if that fails or is interrupted.

    All of it is on the disk first: else a power cut might leave empty files, and no older bundle.
    """
    for path in folder.iterdir():
        _to_disk(path)
    with suppress(OSError):  # some network disks can do so with files only
        _to_disk(folder)
    try:
        if bundle_folder.exists():
            bundle_folder.rename(previous)
        folder.rename(bundle_folder)
    finally:
        if previous.exists() and not bundle_folder.exists():
            previous.rename(bundle_folder)


def _to_disk(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
