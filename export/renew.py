"""`python -m export.renew BUNDLE`: give a bundle the samplers that this version writes, which draw what its prior and
the frequency table of its manifest say, in less time. So did those that they replace, unless somebody has edited the
bundle: they are not compared. Its version stays, so that codes and containers made with it stay valid; no training run
is needed."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from training.arguments import folder_named
from training.printing import status_of


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.renew", description=__doc__)
    parser.add_argument("bundle", type=folder_named, help="folder of a bundle, which is replaced as a whole")
    return _renew(parser.parse_args(arguments).bundle)


def _renew(folder: Path) -> int:
    """PyTorch takes seconds to import: here, so that --help does not wait and Ctrl-C is no traceback."""
    from export.renewal import renew
    from export.sessions import VerificationError
    from export.target import ExportError
    from service.bundle import BundleError

    try:
        changed = renew(folder)
    except (BundleError, ExportError, VerificationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {', '.join(changed) or 'nothing'} renewed, version unchanged")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the temporary folder is removed
    sys.exit(status_of(main))
