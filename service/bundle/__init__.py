"""The bundle: a folder with `manifest.json` and ONNX graphs that describe themselves.

In: the path of a bundle folder. Out: a checked `Bundle` (manifest + absolute paths), or a `BundleError` that names
the field that does not match. Nothing that is loaded can execute code: JSON and ONNX only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.bundle.fields import GraphName, GraphSpec
from service.bundle.manifest import FORMAT_VERSION, Manifest
from service.bundle.no_manifest import why_no_bundle

MANIFEST_FILE = "manifest.json"


class BundleError(ValueError):
    """The folder is not a bundle that this service can serve; the message says which field and what to do."""


@dataclass(frozen=True)
class Bundle:
    """`folder` is what was named, and what a reload reads again. It may be a link that leads elsewhere by then:
    `opened` is where it led when it was read, and all graphs come from there."""

    folder: Path
    manifest: Manifest
    opened: Path | None = None

    def graph_path(self, name: GraphName) -> Path:
        return (self.opened or self.folder) / self.manifest.graphs[name].file

    def where(self, name: GraphName) -> str:
        """How a message names a graph: `models/mine/decoder.onnx: graph decoder`."""
        return f"{self.folder / self.manifest.graphs[name].file}: graph {name}"


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle folder.

    Raises:
        BundleError: no manifest, another format version, an invalid field, a graph file that is missing or whose hash
            differs from the manifest's, or a file that cannot be read.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    with _readable(path):
        if not path.is_file():
            raise BundleError(why_no_bundle(folder, MANIFEST_FILE))
        opened = folder.resolve()
    manifest = _read_manifest(opened / MANIFEST_FILE)
    for name, graph in manifest.graphs.items():
        _check_graph_file(opened / graph.file, name, graph)
    return Bundle(folder.absolute(), manifest, opened)


def _read_manifest(path: Path) -> Manifest:
    with _readable(path):
        content = path.read_bytes()
    try:
        data = json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # the second for deep nesting
        raise BundleError(f"{path} is not JSON: {error}") from error
    found = data.get("format_version") if isinstance(data, dict) else None
    if type(found) is not int or found != FORMAT_VERSION:
        raise BundleError(f"{path}: format_version is {found!r}, this service reads {FORMAT_VERSION}: export it again")
    try:
        return Manifest.model_validate_json(content, strict=True)  # which refuses halves of characters too
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}") from error


def load_bundles(folders: Iterable[Path]) -> list[Bundle]:
    """Raises BundleError as `load_bundle`, and where two have one name."""
    bundles = [load_bundle(folder) for folder in folders]
    by_name: dict[str, Bundle] = {}
    for bundle in bundles:
        first = by_name.setdefault(bundle.manifest.name, bundle)
        if first is not bundle:
            both = f"{bundle.folder} and {first.folder} are both named {bundle.manifest.name}"
            raise BundleError(f"{both}: serve one of them, or change the name in the manifest.json of one")
    return bundles


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever keeps the file from being read is a fault of the bundle."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _check_graph_file(path: Path, name: str, graph: GraphSpec) -> None:
    with _readable(path):
        if not path.is_file():
            raise BundleError(f"graph {name}: {path} does not exist")
        digest = sha256_file(path)
    if digest != graph.sha256:
        raise BundleError(f"graph {name}: {path} has sha256 {digest[:12]}..., the manifest says {graph.sha256[:12]}...")
