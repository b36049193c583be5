"""`python -m export.renew BUNDLE`: give a bundle the samplers that this version writes, which draw the same codes in
less time. Its version stays, so that codes and containers made with it stay valid; no training run is needed."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.build import ExportError, replace_bundle, save_graph, temporary_beside
from export.prior_graphs import PriorGraphWriter
from export.prior_reader import UnreadableError, read_prior
from export.verify import Sessions, VerificationError, compare_samplers
from service.bundle import MANIFEST_FILE, NOT_IN_VERSION, Bundle, BundleError, GraphName, load_bundle


def renew(folder: Path) -> list[GraphName]:
    """Replace the samplers of the bundle in `folder` by those that this version writes; returns which have changed.

    Raises:
        BundleError: the folder holds no bundle that can be served.
        ExportError: it has no prior, or its prior was not written by `export`. UnreadableError: the same.
        VerificationError: a new graph draws other codes than the teacher-forced prior; nothing was written.
    """
    bundle = load_bundle(folder)
    graphs, compared = _written_now(bundle)
    target = folder.resolve()
    with temporary_beside(target) as temporary:
        renewed = Path(temporary) / "bundle"
        shutil.copytree(target, renewed)
        manifest = json.loads((target / MANIFEST_FILE).read_text(encoding="utf-8"))
        changed = [name for name, model in graphs.items() if _renewed(renewed, manifest["graphs"], name, model)]
        if changed:
            manifest["parity"]["sampled_codes_compared"] = compared
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            (renewed / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
            load_bundle(renewed)
            replace_bundle(target, renewed, Path(temporary) / "previous")
    return changed


def _written_now(bundle: Bundle) -> tuple[dict[GraphName, onnx.ModelProto], int]:
    """All graphs of the prior, and how many codes its samplers drew as the teacher-forced graph does."""
    spec, codes = bundle.manifest.prior, bundle.manifest.codes
    if spec is None:
        raise ExportError(f"{bundle.folder} has no prior, so no samplers")
    old = onnx.load(bundle.graph_path("prior"))
    prior = read_prior(old, codes.codebook_size, spec.label_count)
    table = np.array(spec.frequency_table, np.int32)
    graphs = PriorGraphWriter(prior).all(codes.width, table)
    if graphs["prior"].SerializeToString(deterministic=True) != old.SerializeToString(deterministic=True):
        raise ExportError(f"{bundle.folder}: the weights of its prior cannot be read exactly: export it again")
    return graphs, compare_samplers(Sessions.of(graphs), table, (codes.height, codes.width), prior)


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.renew", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of a bundle, which is replaced as a whole")
    folder = parser.parse_args(arguments).bundle
    try:
        changed = renew(folder)
    except KeyboardInterrupt:
        print("ended by Ctrl-C: nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    except (BundleError, ExportError, UnreadableError, VerificationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {', '.join(changed) or 'nothing'} renewed, version unchanged")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the temporary folder is removed
    sys.exit(main())
