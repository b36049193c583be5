"""Ends with 0 when the service in this container answers /readyz with 200, otherwise with an error.

In: VQSERVE_PORT. The standard library only: the check runs every few seconds beside the service and must cost little.
No proxy is asked, though Docker may have put one into the environment of every container.
"""

import os
import urllib.request

direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
direct.open(f"http://127.0.0.1:{os.environ['VQSERVE_PORT']}/readyz", timeout=2).close()
