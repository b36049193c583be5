"""The servers of benchmarks/peers.py as data: how each is installed, started and asked for the codes of one picture."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import ROOT
from benchmarks.server_process import Server, free_port, our_server, running
from benchmarks.wrk import Request

SERVERS = Path(__file__).parent / "peer_servers"
BOUNDARY = "------------------------d74496d66958873e"  # as long as curl's
PNG = {"Content-Type": "image/png"}
_ALWAYS = ("onnxruntime", "numpy", "pillow")


class CannotInstall(RuntimeError):
    """pip could not make the environment; the message is its error."""


@dataclass(frozen=True)
class Contestant:
    """`environment` names the peer's virtual environment; None: this one, running our service with `settings`."""

    name: str
    family: str  # compared with each other at their best: "mosec" and "mosec, batch 16" are one family
    request: Request
    environment: str | None = None
    requirements: Sequence[str] = ()
    command: Sequence[str] = ()
    ready_path: str = "/"
    variables: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)

    @contextmanager
    def serving(self, bundle: Path) -> Iterator[Server]:
        if self.environment is None:
            with our_server(bundle, **self.settings) as server:
                yield server
            return
        port = free_port()
        variables = {"PEER_ENCODER": str(bundle / "encoder_quantizer.onnx"), "PEER_PORT": str(port), **self.variables}
        command = [str(folder_of(self.environment) / "bin" / self.command[0]), *self.command[1:]]
        with running([part.replace("PORT", str(port)) for part in command], port, self.ready_path, variables) as server:
            yield server


def folder_of(environment: str) -> Path:
    return ROOT / f".venv-peers-{environment}"


def install(contestant: Contestant) -> None:
    """Make the environment unless it is there with exactly these requirements.

    Raises:
        CannotInstall: pip failed.
    """
    if contestant.environment is None:
        return
    folder, wanted = folder_of(contestant.environment), pinned((*_ALWAYS, *contestant.requirements))
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_text() == "\n".join(wanted):
        return
    make = [sys.executable, "-m", "venv", str(folder)]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    for command in (make, pip):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - pins of this folder
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise CannotInstall("\n".join(errors) or f"exit status {done.returncode}")
    stamp.write_text("\n".join(wanted))


def pinned(requirements: Sequence[str]) -> list[str]:
    """The versions of constraints.txt for those named there. The rest of a peer's dependencies are its own choice:
    some ask for others than ours."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    return [f"{name}=={versions[name.split('[')[0]]}" if "==" not in name else name for name in requirements]


def multipart(picture: bytes) -> tuple[bytes, dict[str, str]]:
    """What `curl -F img=@digit.png` sends."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="img"; filename="digit.png"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def contestants(picture: bytes) -> list[Contestant]:
    """Ours first. One worker where the name says no other number, one onnxruntime thread a session, no access log."""
    return [*_ours(picture), *_python_servers(picture), *_batching_servers(picture)]


def _ours(picture: bytes) -> list[Contestant]:
    form, form_headers = multipart(picture)
    key = {"X-API-Key": "benchmark-key"}
    every_feature = {"api_keys": f"benchmark:{key['X-API-Key']}", "access_log": "true"}
    return [
        Contestant("vqserve, form", "vqserve form", Request("/encode", form, form_headers)),
        Contestant("vqserve, raw", "vqserve raw", Request("/encode", picture, PNG)),
        Contestant("vqserve, raw, 2 workers", "vqserve raw", Request("/encode", picture, PNG), settings={"workers": 2}),
        Contestant(
            "vqserve, raw, keys and access log",
            "vqserve every feature",
            Request("/encode", picture, {**PNG, **key}),
            settings=every_feature,
        ),
    ]


def _python_servers(picture: bytes) -> list[Contestant]:
    """What one would write with a web framework."""
    form, form_headers = multipart(picture)
    return [
        _plain("FastAPI, form", "serve_fastapi.py", Request("/form", form, form_headers), "/docs"),
        _plain("FastAPI, raw", "serve_fastapi.py", Request("/raw", picture, PNG), "/docs"),
        _plain("bare ASGI, raw", "serve_asgi.py", Request("/", picture, PNG), "/"),
    ]


def _batching_servers(picture: bytes) -> list[Contestant]:
    """Frameworks made to serve models."""
    return [
        _mosec("mosec", Request("/inference", picture, PNG)),
        _mosec("mosec, batch 16, wait 1 ms", Request("/inference", picture, PNG), PEER_BATCH="16", PEER_WAIT_MS="1"),
        _mosec("mosec, 2 workers", Request("/inference", picture, PNG), PEER_WORKERS="2"),
        _mosec(
            "mosec, 2 workers, batch 16, wait 1 ms",
            Request("/inference", picture, PNG),
            PEER_WORKERS="2",
            PEER_BATCH="16",
            PEER_WAIT_MS="1",
        ),
        _litserve("LitServe", picture),
        _litserve("LitServe, batch 16, wait 2 ms", picture, PEER_BATCH="16", PEER_WAIT_MS="2"),
        _litserve(
            "LitServe, 2 workers, batch 16, wait 2 ms", picture, PEER_WORKERS="2", PEER_BATCH="16", PEER_WAIT_MS="2"
        ),
        _litserve("LitServe, 2 workers", picture, PEER_WORKERS="2"),
        _bentoml("BentoML", Request("/encode", picture, PNG)),
        _bentoml("BentoML, 2 workers", Request("/encode", picture, PNG), PEER_WORKERS="2"),
        Contestant(
            "Ray Serve",
            "Ray Serve",
            Request("/encode", picture, PNG),
            environment="ray",
            requirements=("ray[serve]",),
            command=("python", str(SERVERS / "serve_ray.py")),
            ready_path="/-/healthz",
            variables={"RAY_USAGE_STATS_ENABLED": "0"},
        ),
    ]


def _plain(name: str, file: str, request: Request, ready_path: str) -> Contestant:
    return Contestant(
        name,
        name,
        request,
        environment="plain",
        requirements=("fastapi", "uvicorn", "uvloop", "httptools", "python-multipart==0.0.34"),
        command=("python", str(SERVERS / file)),
        ready_path=ready_path,
    )


def _mosec(name: str, request: Request, **variables: str) -> Contestant:
    return Contestant(
        name,
        "mosec",
        request,
        environment="mosec",
        requirements=("mosec",),
        command=("python", str(SERVERS / "serve_mosec.py")),
        variables=variables,
    )


def _bentoml(name: str, request: Request, **variables: str) -> Contestant:
    return Contestant(
        name,
        "BentoML",
        request,
        environment="bentoml",
        requirements=("bentoml==1.4.39",),
        command=(
            *("bentoml", "serve", "serve_bentoml:Encoder", "--working-dir", str(SERVERS)),
            *("--host", "127.0.0.1", "--port", "PORT"),
        ),
        ready_path="/readyz",
        variables={"BENTOML_DO_NOT_TRACK": "true", **variables},
    )


def _litserve(name: str, picture: bytes, **variables: str) -> Contestant:
    body = json.dumps({"img": base64.b64encode(picture).decode()}).encode()
    return Contestant(
        name,
        "LitServe",
        Request("/predict", body, {"Content-Type": "application/json"}),
        environment="litserve",
        requirements=("litserve",),
        command=("python", str(SERVERS / "serve_litserve.py")),
        ready_path="/health",
        variables=variables,
    )
