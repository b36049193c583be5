"""Server-Timing: what a request that asks for it is told about its stages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.call import Stage, noted_stages, server_timing
from service.routes.decoding import read_codes
from tests.conftest import PICTURES

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PNG = {"content-type": "image/png"}
ASKED = {"x-server-timing": "1"}
MakeClient = Callable[..., TestClient]


def test_stages_come_in_their_order_and_a_repeated_one_is_summed() -> None:
    stages = [("run", 0.010, 0.012), ("read", 0.001, 0.0015), ("run", 0.020, 0.021)]
    assert server_timing(stages) == b"read;dur=0.500, run;dur=3.000"


def test_what_overlaps_within_a_stage_counts_once() -> None:
    """Pictures of several sizes run at once: a request of 976 ms had runs of 1,207 ms."""
    stages = [("run", 0.010, 0.030), ("run", 0.040, 0.050), ("run", 0.012, 0.020), ("run", 0.025, 0.035)]
    assert server_timing(stages) == b"run;dur=35.000"


@pytest.mark.parametrize("inline_ms", [0, 100])
def test_the_stages_of_encode_fit_into_the_request(make_client: MakeClient, inline_ms: int) -> None:
    client = make_client(inline_ms=inline_ms)
    answer = client.post("/encode", content=DIGIT, headers={**PNG, **ASKED})
    found = re.findall(r"([a-z_]+);dur=(\d+\.\d{3})", answer.headers["server-timing"])
    assert [name for name, _ in found] == ["read", "decode_picture", "queue", "run", "encode_answer"]
    assert sum(float(ms) for _, ms in found) <= answer.elapsed.total_seconds() * 1e3


@pytest.mark.parametrize("accept", ["application/json", "application/vnd.vqserve.codes"])
def test_the_stages_of_decode_have_its_time(
    monkeypatch: pytest.MonkeyPatch, make_client: MakeClient, accept: str
) -> None:
    """Unpacking a container, three quarters of its time, was in no stage, nor was the parsing of JSON."""

    async def slowly(*given: Any) -> Any:
        await asyncio.sleep(0.05)
        return await read_codes(*given)

    client = make_client()
    encoded = client.post("/encode", content=DIGIT, headers={**PNG, "accept": accept}).content
    monkeypatch.setattr("service.routes.decoding.read_codes", slowly)
    answer = client.post("/decode", content=encoded, headers={"content-type": accept, **ASKED})
    found = dict(re.findall(r"([a-z_]+);dur=(\d+\.\d{3})", answer.headers["server-timing"]))
    assert set(found) == {"read", "queue", "run", "encode_answer"}
    assert float(found["read" if accept == "application/json" else "run"]) >= 50


def test_who_does_not_ask_is_not_told(make_client: MakeClient) -> None:
    client = make_client()
    for headers in ({}, {"x-server-timing": "0"}):
        assert "server-timing" not in client.post("/encode", content=DIGIT, headers={**PNG, **headers}).headers


def test_one_request_does_not_tell_of_another(make_client: MakeClient) -> None:
    client = make_client()
    first, second = (client.post("/encode", content=DIGIT, headers={**PNG, **ASKED}) for _ in range(2))
    assert "server-timing" not in client.get("/models", headers=ASKED).headers
    assert first.headers["server-timing"].count("read;") == second.headers["server-timing"].count("read;") == 1


def test_a_pipelined_request_notes_nothing_for_the_one_before_it(make_client: MakeClient) -> None:
    """A server begins it in the context of that one, whose list grew by the stages of all that followed."""
    client = make_client()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/encode",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }
    before: list[Stage] = []
    sent: list[int] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": DIGIT}

    async def send(message: dict[str, object]) -> None:
        sent.append(message.get("status", 0))  # type: ignore[arg-type]

    async def ask() -> None:
        noted_stages.set(before)
        await client.app(scope, receive, send)  # type: ignore[arg-type]

    assert client.portal is not None
    client.portal.call(lambda: asyncio.create_task(ask(), context=copy_context()))
    assert sent == [200, 0]
    assert before == []
