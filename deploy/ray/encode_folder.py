"""Encode a folder of pictures on a Ray cluster: `python -m deploy.ray.encode_folder IN OUT`.

In: pictures under IN, which every node sees under the same path, as it does OUT and the bundle. Out: container shards
and their indexes under OUT (deploy/ray/shards.py), and one line of JSON. The same command goes on after any
interruption; shards that are finished stay as they are. RAY_ADDRESS names a cluster, otherwise this machine is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    import ray
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}: pip install '.[service,cpu,ray]' in the repository")

from deploy.ray.plan import Job, PlanError, missing, plan
from deploy.ray.shards import ShardEncoder, read_index
from service.bundle import BundleError, load_bundle
from service.codec import DEFAULT_LIMITS
from service.errors import utf8
from service.pictures.images import FITS
from service.process.command_line import read_settings
from service.settings import Settings

MOST_PICTURES = DEFAULT_LIMITS.max_pictures  # of a container


class Worker:
    """An actor of the job: opens the bundle once, then encodes shard after shard."""

    def __init__(self, job: Job, bundle: Path, out: Path, settings: Settings) -> None:
        self._encoder = ShardEncoder(bundle, settings)
        self._job, self._out = job, out

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A shard that failed is a row too: raised, the error was a traceback and ended the other shards."""
        node = ray.get_runtime_context().get_node_id()
        try:
            shard = self._encoder.encode(self._job, self._out, int(row["id"]))
        except (OSError, PlanError) as error:
            return {"id": row["id"], "encoded": 0, "node": node, "failed": utf8(str(error))}
        return {"id": shard.shard, "encoded": shard.encoded, "node": node, "failed": ""}


def encode_folder(job: Job, bundle: Path, out: Path, settings: Settings, workers: int, gpus: float = 0.0) -> Job:
    """Plan or take up the job, encode what is missing, and check that every picture has its place.

    Raises:
        PlanError: `out` holds another job, or shards are still missing at the end.
    """
    job = plan(job, out)
    (out / "shards").mkdir(exist_ok=True)
    todo = missing(job, out)
    if todo:
        print(f"{job.shards - len(todo)} of {job.shards} shards are there, encoding {len(todo)}", file=sys.stderr)
        _encode(todo, job, bundle, out, settings, min(workers, len(todo)), gpus)
    if left := missing(job, out):
        raise PlanError(f"{len(left)} shards are missing, the first is {left[0]}: run the same command again")
    for part in (out / "shards").glob(".*.part"):  # of workers that were killed
        part.unlink()
    return job


def _encode(todo: list[int], job: Job, bundle: Path, out: Path, settings: Settings, workers: int, gpus: float) -> None:
    """Ray replaces actors whose node dies and gives their rows to others; the shards' names make that harmless."""
    rows = ray.data.from_items([{"id": shard} for shard in todo], override_num_blocks=len(todo))
    done = rows.map(
        Worker,
        fn_constructor_args=(job, bundle, out, settings),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    for row in done.iter_rows():
        said, why = ("failed", f": {row['failed']}") if row["failed"] else (f"{row['encoded']} pictures", "")
        print(f"shard {row['id']}: {said} on node {row['node']}{why}", file=sys.stderr)


def summary(job: Job, out: Path, seconds: float) -> dict[str, object]:
    """What lies in `out`, read from there."""
    shards = [read_index(out, number) for number in range(job.shards)]
    encoded, refused = sum(shard.encoded for shard in shards), sum(len(shard.refused) for shard in shards)
    if encoded + refused != job.pictures:
        raise PlanError(f"{encoded} encoded and {refused} refused are not the {job.pictures} of the plan: remove {out}")
    total = sum(shard.bytes for shard in shards)
    return {"shards": job.shards, "encoded": encoded, "refused": refused, "bytes": total, "seconds": round(seconds, 1)}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    begun = time.monotonic()
    out, bundle = options.output.resolve(), options.bundle.resolve()
    settings = read_settings(threads=1)
    try:
        manifest = load_bundle(bundle).manifest
        source = str(options.input.resolve())
        if source != utf8(source):
            raise PlanError(f"{utf8(source)} is not UTF-8, as the plan is: give the folder another name")
        job = Job(
            source=source,
            model=manifest.name,
            version=manifest.version,
            fit=options.fit,
            pictures_per_shard=options.pictures_per_shard,
            max_pixels=settings.max_pixels,
        )
        ray.init(ignore_reinit_error=True)
        workers = options.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        job = encode_folder(job, bundle, out, settings, workers, options.gpus)
        print(json.dumps(summary(job, out, time.monotonic() - begun)))
    except (BundleError, PlanError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    (default_bundle,) = Settings.model_fields["bundles"].default
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.encode_folder", description="Encode a folder on Ray.")
    parser.add_argument("input", type=Path, help="folder of pictures, searched with its sub-folders")
    parser.add_argument("output", type=Path, help="folder for the shards; the same one goes on with an old job")
    parser.add_argument("--bundle", type=Path, default=default_bundle, help="bundle to encode with")
    parser.add_argument("--fit", choices=FITS, default="exact", help="what to do with another size, as ?fit= does")
    parser.add_argument(
        "--pictures-per-shard", type=int, default=1024, help=f"at most {MOST_PICTURES}, so that readers accept it"
    )
    parser.add_argument("--workers", type=int, default=0, help="encoders at once; 0: one a CPU of the cluster")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs an encoder; 0.25 puts four on one")
    options = parser.parse_args(arguments)
    if not 1 <= options.pictures_per_shard <= MOST_PICTURES:
        parser.error(f"--pictures-per-shard must lie in 1..{MOST_PICTURES}")
    return options


if __name__ == "__main__":
    sys.exit(main())
