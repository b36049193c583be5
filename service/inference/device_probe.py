"""Whether the device that the settings ask for is what runs: `python -m service.inference.device_probe`.

In: `VQSERVE_*` variables. Out: nothing, or an exit status of 1 and one sentence. It is a process of its own, because
CUDA keeps what it has taken until its process ends, and the supervisor of several workers needs none of it.
"""

from __future__ import annotations

import sys

from service.bundle import BundleError, load_bundle
from service.inference.sessions import DeviceError, session_maker
from service.settings import Settings


def main() -> None:
    settings = Settings()
    try:
        session_maker(settings, load_bundle(settings.bundles[0]).graph_path("decoder"))
    except (BundleError, DeviceError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
