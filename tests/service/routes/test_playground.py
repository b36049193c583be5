"""The files of the playground as HTTP sends them; tests/browser has the page."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.routes import playground


def test_a_file_is_sent_in_one_turn() -> None:
    """Its head went out while a thread opened it. Behind answers that were not read its body then waited, inside: 1,024
    such strangers, who need no key, kept everybody else out."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        scope = {"type": "http", "method": "GET", "headers": [], "path_params": {"name": "main.js"}}
        answer = await playground.file(Request(scope))
        turn = answer(scope, asyncio.Queue[Message]().get, send)
        with pytest.raises(StopIteration):  # it awaits nothing
            turn.__await__().send(None)

    asyncio.run(ask())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["body"] == (playground.FOLDER / "main.js").read_bytes()
