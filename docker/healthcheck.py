"""Ends with 0 when the service in this container answers /readyz with 200, otherwise with an error.

In: VQSERVE_PORT. The standard library only: the check runs every few seconds beside the service and must cost little.
"""

import os
import urllib.request

urllib.request.urlopen(f"http://127.0.0.1:{os.environ['VQSERVE_PORT']}/readyz", timeout=2).close()
