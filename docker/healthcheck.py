"""Ends with 0 when the service in this container answers /readyz with 200, otherwise with an error.

In: VQSERVE_HOST and VQSERVE_PORT. The standard library only: the check runs every few seconds beside the service and
must cost little. No proxy is asked, though Docker may have put one into the environment of every container.
"""

import os
import urllib.request

direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
here = "[::1]" if ":" in os.environ.get("VQSERVE_HOST", "") else "127.0.0.1"
direct.open(f"http://{here}:{os.environ['VQSERVE_PORT']}/readyz", timeout=2).close()
