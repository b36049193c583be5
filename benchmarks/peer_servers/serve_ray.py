"""Ray Serve: its HTTP proxy and one replica, a local cluster of this machine's cores."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from shared import encode, open_session, port
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=100, logging_config=LoggingConfig(enable_access_log=False))
class Encoder:
    def __init__(self) -> None:
        self.session = open_session()

    async def __call__(self, request: Request) -> dict[str, Any]:
        return encode(self.session, [await request.body()])[0]


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port(), "access_log": False})
    serve.run(Encoder.bind(), route_prefix="/encode", blocking=True)
