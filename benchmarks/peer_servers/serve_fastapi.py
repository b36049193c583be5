"""FastAPI on uvicorn, one process: /form takes multipart, /raw the picture as the body."""

from __future__ import annotations

from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Request
from shared import encode, open_session, port

app = FastAPI()
session = open_session()


@app.post("/form")
async def form(img: Annotated[bytes, File()]) -> dict[str, Any]:
    return encode(session, [img])[0]


@app.post("/raw")
async def raw(request: Request) -> dict[str, Any]:
    return encode(session, [await request.body()])[0]


if __name__ == "__main__":
    uvicorn.run(app, port=port(), access_log=False, log_level="warning")
