"""What a refused request has sent is free as soon as it is answered."""

from __future__ import annotations

import gc

from starlette.testclient import TestClient

from service.pictures.images import _FewParts
from tests.conftest import PICTURES


def test_a_refused_body_does_not_wait_for_the_garbage_collector(client: TestClient) -> None:
    """The problem's traceback held the frames that held the problem, and with them 30 MB a request."""
    cut_off = (PICTURES / "digit_7.png").read_bytes()[:150]
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            assert client.post("/encode", content=cut_off, headers={"content-type": "image/png"}).status_code == 422
        alive = sum(type(one) is _FewParts for one in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 1  # of the last request, until its task is gone
