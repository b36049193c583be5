"""A bundle with the samplers that this version writes, of which `export.renew` is the command line.

In: the folder of a bundle. Out: the same folder, whose graphs of the prior are new where they differ; the manifest
keeps the hash by which each counted, and with it the version. All or nothing.
"""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from export.build import save_graph
from export.graphs.prior_graphs import PriorGraphWriter
from export.graphs.prior_reader import UnreadableError, read_prior
from export.sessions import Sessions
from export.target import ExportError, replace_bundle, resolved, temporary_beside
from export.verify_prior import SAMPLES, compare_pixel_by_pixel, compare_samplers
from service.bundle import MANIFEST_FILE, Bundle, load_bundle
from service.bundle.fields import NOT_IN_VERSION, GraphName
from training.models.prior import PixelCNN
from training.report.evaluation import grids_a_batch

ROWS = 4  # of codes that the entropy decoder's graphs are compared on: each row sees those above it


def renew(folder: Path) -> list[GraphName]:
    """Replace the samplers of the bundle in `folder` by those that this version writes; returns which have changed.

    Raises:
        BundleError: the folder holds no bundle that can be served.
        ExportError: it has no prior, or its prior was not written by `export`; or it cannot be written.
        VerificationError: a new graph computes something else than the teacher-forced prior; nothing was written.
    """
    target = resolved(folder)
    bundle = load_bundle(folder)
    graphs, compared = _written_now(bundle)
    with temporary_beside(target) as temporary:
        renewed = temporary / "bundle"
        shutil.copytree(target, renewed)
        for path in (renewed, *renewed.iterdir()):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)  # the files of a bundle may be write-protected
        manifest = json.loads((target / MANIFEST_FILE).read_text(encoding="utf-8"))
        changed = [name for name, model in graphs.items() if _renewed(renewed, manifest["graphs"], name, model)]
        if changed:
            manifest["parity"]["sampled_codes_compared"] = compared
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            (renewed / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
            load_bundle(renewed)
            replace_bundle(target, renewed, temporary / "previous")
    return changed


def _written_now(bundle: Bundle) -> tuple[dict[GraphName, onnx.ModelProto], int]:
    """All graphs of the prior, and how many codes its samplers drew as the teacher-forced graph does."""
    spec, codes = bundle.manifest.prior, bundle.manifest.codes
    if spec is None:
        raise ExportError(f"{bundle.folder} has no prior, so no samplers")
    try:
        old = onnx.load(bundle.graph_path("prior"))
        prior = read_prior(old, codes.codebook_size, spec.label_count)
    except DecodeError as error:
        raise ExportError(f"{bundle.folder}: the graph `prior` is no ONNX: export it again") from error
    except UnreadableError as error:
        raise ExportError(f"{bundle.folder}: {error}: export it again") from error
    table = np.array(spec.frequency_table, np.int32)
    graphs = PriorGraphWriter(prior).all(codes.width, table)
    if graphs["prior"].SerializeToString(deterministic=True) != old.SerializeToString(deterministic=True):
        raise ExportError(f"{bundle.folder}: the weights of its prior cannot be read exactly: export it again")
    run = Sessions.of(graphs)
    _compare_decoders(run, prior, codes.width)
    return graphs, compare_samplers(run, table, (codes.height, codes.width), prior)


def _compare_decoders(run: Sessions, prior: PixelCNN, width: int) -> None:
    """`prior_context` and `prior_pixel` are replaced too, and containers of years are read with them."""
    random = np.random.default_rng(0)
    grids = min(SAMPLES, grids_a_batch(ROWS * width, prior.codebook_size))
    codes = random.integers(0, prior.codebook_size, (grids, ROWS, width))
    compare_pixel_by_pixel(run, codes, random.integers(0, prior.label_count + 1, grids))


def _renewed(folder: Path, entries: dict[str, Any], name: GraphName, model: onnx.ModelProto) -> bool:
    """Write the graph and its entry in the manifest; false where the bundle has it already."""
    before = entries.get(name)
    spec = save_graph(folder, name, model)
    if before is not None and before["sha256"] == spec.sha256:
        return False
    if before is not None and before["file"] != spec.file:
        (folder / before["file"]).unlink()
    entries[name] = spec.model_dump(mode="json", exclude={"counts_as"})
    if name not in NOT_IN_VERSION:
        if before is None:
            raise ExportError(f"{name} would be new, and with it the version: export the bundle again")
        entries[name]["counts_as"] = before.get("counts_as") or before["sha256"]
    return True
