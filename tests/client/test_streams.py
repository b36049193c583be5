"""Streams of both clients, against a scripted service."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from service.errors import DeadlinePassed, NotReady, Problem, problem_body, problem_type
from tests.client.scripted import DONE, scripted
from vqserve import AsyncClient, Client, Generation, ProblemError, Row, UnexpectedAnswerError
from vqserve.events import Events

ROWS = [("row", {"row": row, "items": [{"codes": [row, row + 1]}]}) for row in range(2)]


def events(*parts: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in parts)


def stream(text: str, asynchronous: bool) -> list[Row | Generation]:
    transport, seen = scripted(httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"}))
    if asynchronous:

        async def call() -> list[Row | Generation]:
            async with AsyncClient("http://x", transport=transport) as client:
                return [value async for value in client.stream(n=1, seed=7)]

        values = asyncio.run(call())
    else:
        with Client("http://x", transport=transport) as client:
            values = list(client.stream(n=1, seed=7))
    assert json.loads(seen[0].content) == {"n": 1, "seed": 7}
    return values


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_gives_rows_and_then_the_generation(asynchronous: bool) -> None:
    first, second, last = stream(": hello\n\n" + events(*ROWS, ("done", DONE)), asynchronous)
    assert isinstance(first, Row) and isinstance(second, Row) and isinstance(last, Generation)
    assert (second.row, second.codes.tolist()) == (1, [[1, 2]])
    assert (last.seed, last.items[0].bits, last.items[0].png) == (7, 12.5, b"\x89PNG")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_that_breaks_off_is_an_error(asynchronous: bool) -> None:
    with pytest.raises(UnexpectedAnswerError, match="before its last event"):
        stream(events(*ROWS), asynchronous)
    endless = {"instance": "x", "status": float("inf"), "type": "t", "title": "no problem", "detail": ""}
    for unknown in ({"detail": "half a problem"}, ["no problem"], endless):  # the last was an OverflowError
        with pytest.raises(UnexpectedAnswerError, match=r"unknown error: .*problem"):
            stream(events(*ROWS, ("error", unknown)), asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("problem", [NotReady("The service is shutting down."), DeadlinePassed("It took too long.")])
def test_a_stream_that_the_service_ends_is_a_problem(problem: Problem, asynchronous: bool) -> None:
    """It used to be an UnexpectedAnswerError, which says that this is another server or another version of it."""
    with pytest.raises(ProblemError) as raised:
        stream(events(*ROWS, ("error", problem_body(problem, "an-id"))), asynchronous)
    error = raised.value
    assert (error.status, error.type) == (problem.status, problem_type(problem.slug))
    assert (error.title, error.detail, error.request_id) == (problem.title, problem.detail, "an-id")


@pytest.mark.parametrize(("event", "data"), [("row", '{"row": 0, "it'), ("row", "{}"), ("done", "[]"), ("error", "{")])
def test_a_broken_event_is_an_unexpected_answer(event: str, data: str) -> None:
    """It was a bare JSONDecodeError, KeyError or TypeError."""
    read = Events()
    with pytest.raises(UnexpectedAnswerError, match=f"unknown event '{event}'"):
        [value for line in (f"event: {event}", f"data: {data}", "") for value in read.feed(line)]
