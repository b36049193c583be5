"""Both clients, where a TLS connection breaks after its handshake."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from vqserve import AsyncClient, Client, Retries

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
NO_RECORD = b"no record of TLS\r\n" * 9


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For 127.0.0.1, with its key in one file."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    new += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run(new, check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


class Breaking(threading.Thread):
    """Each connection gets `beginning` as it should be, and then what is no TLS."""

    def __init__(self, certificate: Path, beginning: bytes) -> None:
        super().__init__()
        self.listening, self.connections = socket.create_server(("127.0.0.1", 0)), 0
        self._beginning, self._context = beginning, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)

    def run(self) -> None:
        while True:
            connection, _ = self.listening.accept()
            with connection:
                if not connection.recv(1, socket.MSG_PEEK):
                    return
                self.connections += 1
                with self._context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1 << 16)
                    if self._beginning:
                        tls.sendall(self._beginning)
                    os.write(tls.fileno(), NO_RECORD)
                    with suppress(ConnectionError):
                        while os.read(tls.fileno(), 1 << 16):  # until the client closes: what is unread would reset it
                            pass

    def stop(self) -> None:
        socket.create_connection(self.listening.getsockname()).close()
        self.join()
        self.listening.close()


@pytest.fixture
def breaking(request: pytest.FixtureRequest, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaking]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = Breaking(certificate, request.param)
    server.start()
    yield server
    server.stop()


async def asked(client: AsyncClient, of_stream: bool) -> Any:
    async with client:
        return [one async for one in client.stream()] if of_stream else await client.models()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("breaking", "attempts"), [(b"", 3), (STREAM, 1)], indirect=["breaking"])
def test_tls_that_breaks_is_a_network_that_fails(breaking: Breaking, attempts: int, asynchronous: bool) -> None:
    """With asyncio it was a bare ssl.SSLError, at the first attempt."""
    url, retries = f"https://127.0.0.1:{breaking.listening.getsockname()[1]}", Retries(3, first_pause_s=0)
    of_stream = attempts == 1  # which has begun
    with pytest.raises(httpx.ReadError) as raised:
        if asynchronous:
            asyncio.run(asked(AsyncClient(url, retries=retries), of_stream))
        else:
            with Client(url, retries=retries) as client:
                _ = list(client.stream()) if of_stream else client.models()
    assert raised.value.request.url.path == ("/generate" if of_stream else "/models")
    assert breaking.connections == attempts
