"""`python -m export RUN BUNDLE [--data D]`: write the bundle of a finished run, verified against PyTorch on its test
pictures."""

from __future__ import annotations

import argparse
import signal
import sys

from training.arguments import folder_named
from training.printing import status_of


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("run", type=folder_named, help="folder of a finished `python -m training fit`")
    parser.add_argument("bundle", type=folder_named, help="folder to write; an older bundle there is replaced")
    parser.add_argument("--data", help="where the run's pictures are now, if they are not at its data.source")
    return _export(parser.parse_args(arguments))


def _export(options: argparse.Namespace) -> int:
    """PyTorch takes seconds to import: here, so that --help does not wait and Ctrl-C is no traceback."""
    from export.build import build_bundle
    from export.sessions import VerificationError
    from export.target import ExportError
    from service.bundle import BundleError
    from training.errors import TrainingError

    try:
        manifest, size_bytes = build_bundle(options.run, options.bundle, options.data)
    except (BundleError, ExportError, TrainingError, VerificationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.bundle}: {manifest.name} {manifest.version[:12]}, {size_bytes / 1e6:.1f} MB")
    print(manifest.model_dump_json(include={"quality", "parity"}, indent=1))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that temporary folders are removed
    sys.exit(status_of(main))
