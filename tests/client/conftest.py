"""A real server on a real socket, for the clients."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from service.app import create_app
from service.settings import Settings
from tests.conftest import Tiny

KEY = "a-key-for-tests"


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
