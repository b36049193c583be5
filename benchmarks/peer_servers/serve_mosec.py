"""mosec: a Rust front end and PEER_WORKERS workers. PEER_BATCH above 1 collects that many for at most PEER_WAIT_MS."""

from __future__ import annotations

import os
import sys
from typing import Any

from mosec import Server, Worker
from shared import encode, open_session, port

WORKERS = int(os.environ.get("PEER_WORKERS", "1"))
BATCH, WAIT_MS = int(os.environ.get("PEER_BATCH", "1")), int(os.environ.get("PEER_WAIT_MS", "0"))


class Encoder(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.session = open_session()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Any) -> Any:
        """One picture, or a list of them where batches are on."""
        return encode(self.session, [data])[0] if BATCH == 1 else encode(self.session, data)


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(port()), "--timeout", "30000", "--log-level", "warning"]
    server = Server()
    server.append_worker(Encoder, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
