"""A bare ASGI function on uvicorn: no framework, no checks, no routes. What is left is the floor."""

from __future__ import annotations

import json
from typing import Any

import uvicorn
from shared import encode, open_session, port

session = open_session()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = json.dumps(encode(session, [body])[0]).encode() if body else b"{}"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(app, port=port(), access_log=False, log_level="warning", lifespan="off")
