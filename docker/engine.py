"""What the container checks talk to: the Docker engine, one compose project, and the service over HTTP.

In: commands of `docker` and compose (1.29 or 2), the environment variables DOCKER and COMPOSE name others. Out: their
answers as text or JSON, and a `CheckError` that quotes what a command printed when it failed.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT = "vqserve-check"
DOCKER = shlex.split(os.environ.get("DOCKER", "docker"))
TAIL = 1500  # characters of a failed command's output that a report shows


class CheckError(Exception):
    """A check did not hold; the message says what was seen."""


def run(command: list[str], variables: Mapping[str, str] | None = None, text: str = "", ok: bool = True) -> str:
    """The standard output of a command; with `ok`, a failure is a CheckError."""
    done = subprocess.run(  # noqa: S603 - the words come from this folder's files
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | dict(variables or {}),
    )
    if ok and done.returncode:
        raise CheckError(f"{shlex.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-TAIL:]}")
    return done.stdout if ok else done.stdout + done.stderr


def docker(*arguments: str, text: str = "", ok: bool = True) -> str:
    return run([*DOCKER, *arguments], text=text, ok=ok)


def compose_command() -> list[str]:
    """Compose 2 is a plug-in of docker, compose 1 a program of its own."""
    if "COMPOSE" in os.environ:
        return shlex.split(os.environ["COMPOSE"])
    plugin = [*DOCKER, "compose", "version"]
    if subprocess.run(plugin, capture_output=True, check=False).returncode == 0:  # noqa: S603 - DOCKER is the caller's
        return plugin[:-1]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise CheckError("no compose: install the docker compose plug-in, or docker-compose 1.29")


def image_bytes(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(what: str, holds: Callable[[], bool], seconds: float) -> float:
    """Seconds until `holds()`; a CheckError when it takes longer than allowed."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > seconds:
            raise CheckError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    return round(time.monotonic() - begun, 1)


@dataclass
class Compose:
    """One compose project on ports of its own, so that it disturbs nothing that runs already."""

    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.command = [*compose_command(), "-p", PROJECT]
        for name in ("PORT", "GPU_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"):
            self.variables.setdefault(name, str(free_port()))

    def __call__(self, *arguments: str, **variables: str) -> str:
        return run([*self.command, *arguments], self.variables | variables)

    def up(self, service: str, **variables: str) -> Container:
        """Start or replace one service and wait until its health check passes."""
        self("up", "-d", "--no-build", "--no-deps", "--force-recreate", service, **variables)
        return self.healthy(service)

    def healthy(self, service: str) -> Container:
        container = Container(self("ps", "-q", service).strip())
        try:
            wait_for(f"{service} is healthy", lambda: container.health == "healthy", 120)
        except CheckError as error:
            raise CheckError(f"{error}; its log ends: {container.log()[-TAIL:]}") from error
        return container

    def down(self) -> None:
        self("--profile", "gpu", "--profile", "monitoring", "--profile", "train", "down", "-v", "--remove-orphans")


@dataclass(frozen=True)
class Container:
    identity: str

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(docker("inspect", self.identity))[0]
        return facts

    @property
    def health(self) -> str:
        return str(self.facts["State"]["Health"]["Status"])

    @property
    def address(self) -> str:
        """Inside the engine's network: past the port proxy, which accepts connections that the service refuses."""
        (network,) = self.facts["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def python(self, code: str, ok: bool = True) -> str:
        return docker("exec", self.identity, "python", "-c", code, ok=ok).strip()

    def log(self) -> str:
        return docker("logs", self.identity, ok=False)


def connect(address: str) -> http.client.HTTPConnection:
    """`address` is a host, with a port where it is not the service's own."""
    host, _, port = address.partition(":")
    return http.client.HTTPConnection(host, int(port or 8000), timeout=60)


def ask(
    address: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request on a connection of its own."""
    connection = connect(address)
    try:
        connection.request(method, path, body or None, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
