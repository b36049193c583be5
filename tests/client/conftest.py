"""A real server on a real socket for the clients, and where the command works."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from service.app import create_app
from service.settings import Settings
from tests.conftest import PICTURES, Tiny
from tests.tiny_bundle import oracle_codes, oracle_pixels

KEY = "a-key-for-tests"
DIGITS = [PICTURES / f"digit_{n}.png" for n in (0, 1, 7)]


@contextmanager
def serving(tiny: Tiny, **settings: Any) -> Iterator[str]:
    """The URL of the tiny bundles on a socket."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(Settings(**{**tiny.settings, **settings}))
    server = uvicorn.Server(uvicorn.Config(app, ws="none", log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def server_url(tiny: Tiny) -> Iterator[str]:
    """Asks for `KEY`."""
    with serving(tiny, api_keys=f"tests:{KEY}") as url:
        yield url


@pytest.fixture(params=["offline", "online"])
def where(request: pytest.FixtureRequest, tiny: Tiny, server_url: str) -> list[str]:
    return ["--bundle", str(tiny.grey)] if request.param == "offline" else ["--url", server_url, "--key", KEY]


def expected(path: Path, tiny: Tiny) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels = np.asarray(Image.open(path))[None, ..., None]
    return oracle_pixels(oracle_codes(pixels, tiny.grey_weights), tiny.grey_weights, 1)[0, :, :, 0]
