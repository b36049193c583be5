"""LitServe, fast queue. Its default request is JSON, so the picture travels as base64 at /predict.

PEER_WORKERS says how many API servers and workers there are, one of each if not given.
PEER_BATCH above 1 collects that many for at most PEER_WAIT_MS.
"""

from __future__ import annotations

import base64
import os
from typing import Any

import litserve as ls
from shared import encode, open_session, port

WORKERS = int(os.environ.get("PEER_WORKERS", "1"))
BATCH, WAIT_MS = int(os.environ.get("PEER_BATCH", "1")), float(os.environ.get("PEER_WAIT_MS", "0"))


class Encoder(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.session = open_session()

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["img"])

    def predict(self, pictures: Any) -> Any:
        """One picture, or a list of them where batches are on."""
        return encode(self.session, [pictures])[0] if BATCH == 1 else encode(self.session, pictures)

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Encoder(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1e3)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True)
    server.run(host="127.0.0.1", port=port(), num_api_servers=WORKERS, log_level="warning", generate_client_file=False)
