"""Which answer an Accept header asks for."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from service.errors import NotAcceptable
from service.wire.negotiate import choose

PNG, WEBP, JSON = "image/png", "image/webp", "application/json"
OFFERED = (PNG, WEBP, JSON)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", PNG),
        ("*/*", PNG),
        (" , ,", PNG),
        ("image/*", PNG),
        ("application/*;q=0.1", JSON),
        ("APPLICATION/JSON", JSON),
        ("application/json;charset=utf-8", JSON),
        ("application/json;q=0.5,image/webp;q=0.6", WEBP),
        ("image/png;q=0,*/*", WEBP),
        ("image/*;q=0, */*;q=0.1", JSON),
        ("image/webp;q=0.2, */*", PNG),
        ("image/png;q=nan, image/webp;q=0.1", WEBP),
        ("image/png;q=-1, image/webp;q=0.1", WEBP),
        # equals
        ("application/json, image/webp", WEBP),
        ("application/json, text/plain, */*", JSON),
        ("*/*, application/json", JSON),
        ("image/*, application/json", JSON),
        ("image/webp, image/*, */*;q=0.8", WEBP),
        ("*/*, image/*", PNG),
    ],
)
def test_what_is_wanted_most(accept: str, expected: str) -> None:
    assert choose(accept, OFFERED) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "*", "*/*;q=0", "image/png;q=", "image/png;q=nan", "image/png;q=-1", "a/b," * 64 + "*/*"]
)
def test_what_is_not_wanted_is_not_sent(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        choose(accept, OFFERED)


def test_json_is_the_answer_to_libraries_that_name_it_beside_all_others(client: TestClient) -> None:
    """What axios and Angular send where nothing is said: both got a PNG, and read it as text."""
    headers = {"accept": "application/json, text/plain, */*"}
    response = client.post("/decode", json={"codes": [[0] * 7] * 7}, headers=headers)
    assert response.headers["content-type"] == JSON and len(response.json()["items"]) == 1
