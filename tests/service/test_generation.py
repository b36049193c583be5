"""POST /generate against the naive sampler, in every representation that it speaks."""

from __future__ import annotations

from starlette.testclient import TestClient

from tests.service.conftest import Generating

GRID = (7, 7)


def test_generates_json(generator: TestClient, generating: Generating) -> None:
    r = generator.post("/generate", json={"n": 3, "seed": 7, "label": 1}, headers={"accept": "application/json"})
    print(r.text[:300])
    assert r.status_code == 200
