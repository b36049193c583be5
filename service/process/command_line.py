"""The command of the service: `python -m service --bundle models/mnist --port 8000`.

In: options and `VQSERVE_*` variables; an option wins over its variable. Out: a server that runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import logging.config
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from uvicorn.config import STARTUP_FAILURE

from service.bundle import BundleError, load_bundles
from service.process.descriptors import OF_A_START, raise_limit
from service.process.ending import end_after_ctrl_c, end_at_hangup, tell_why_it_ends
from service.process.shared_port import SharedPort, addresses_of
from service.process.supervisor import Supervisor
from service.settings import PREFIX, Settings
from service.telemetry.logs import log_config
from service.telemetry.metric_files import SHARED_METRICS, shared_folder

log = logging.getLogger("service.main")
APP = "service.app:create_app"
_OF_A_WORKER = 8  # descriptors, in the supervisor: it has five, and some more while it starts one
_OTHER_DESCRIPTORS = 256  # files, pipes, and connections that are idle or wait to be refused
_ADVICE = {  # of what refuses an address
    errno.EADDRINUSE: ": another process has this port; stop it, or choose another port with --port",
    errno.EADDRNOTAVAIL: ": this machine does not have it; 127.0.0.1 is for its own callers, 0.0.0.0 for all",
    errno.EACCES: ": a port below 1024 needs a privilege; choose a higher one with --port",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. What prevents the start is a SystemExit with a sentence."""
    _to_environment(_parse(arguments))
    settings = read_settings()
    logging.config.dictConfig(log_config(settings.log_level))
    for name, nearest in misspelt(os.environ).items():
        log.warning("%s is no setting and changes nothing; the nearest name is %s", name, nearest)
    _raise_descriptor_limit(settings)
    _check_bundles(settings)
    _check_device(settings)
    _check_address(settings)
    os.environ.pop(SHARED_METRICS, None)  # of another program: one worker shares its metrics with nobody
    if settings.workers == 1:
        serve(settings)
        return
    with ExitStack() as at_the_end:
        try:
            folder = at_the_end.enter_context(shared_folder())
        except OSError as error:
            reason = f"several workers count in files: {error.strerror}: let TMPDIR name a folder with room"
            sys.exit(f"cannot start: {reason}")
        os.environ[SHARED_METRICS] = str(folder)  # read by prometheus_client when a worker imports it
        serve(settings)


def serve(settings: Settings) -> None:
    """With one worker in this process, else in as many below a supervisor."""
    options: dict[str, Any] = {
        "factory": True,
        "host": settings.host,
        "port": settings.port,
        "loop": "uvloop",
        "http": "service.http.protocol:OnePacket",
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # nothing here depends on the caller's address, so nobody needs to be trusted with it
        "log_config": log_config(settings.log_level),
        "timeout_graceful_shutdown": settings.grace_s,
        "timeout_keep_alive": settings.keep_alive_s,
        "workers": settings.workers,  # else uvicorn takes WEB_CONCURRENCY
    }
    end_at_hangup()
    if settings.workers == 1:
        tell_why_it_ends()
        uvicorn.run(APP, **options)  # after SIGTERM it does not come back
        end_after_ctrl_c()
    config = uvicorn.Config(APP, **options)
    try:
        # Elsewhere than on Linux the kernel does not deal connections to all the sockets of a port.
        on_linux = sys.platform == "linux"
        listeners = SharedPort.kept_on_all(settings.host, settings.port) if on_linux else [config.bind_socket()]
    except OSError as error:
        sys.exit(_refused(settings, error))
    for listener in listeners:
        log.info("%d workers on %s port %d", settings.workers, *listener.getsockname()[:2])
    supervisor = Supervisor(config, listeners, Path(os.environ[SHARED_METRICS]), settings.drain_s)
    supervisor.run()
    status = STARTUP_FAILURE if supervisor.failed_to_start else 0
    if multiprocessing.active_children():  # which cannot be killed, and multiprocessing would wait for them at the end
        atexit.register(os._exit, status)
    sys.exit(status)


def read_settings(**given: Any) -> Settings:
    """From the environment, where not `given`; a wrong one ends the process with a line for each."""
    try:
        return Settings(**given)
    except ValidationError as error:
        sys.exit("\n".join(_told(one) for one in error.errors()))


def _told(wrong: ErrorDetails) -> str:
    reason = wrong["ctx"]["error"] if wrong["type"] == "value_error" else wrong["msg"]
    return f"{PREFIX}{'.'.join(map(str, wrong['loc'])).upper()}: {reason}"


def misspelt(variables: Iterable[str]) -> dict[str, str]:
    """Names of variables that are nearly a setting's -> that setting's. What is further off may be somebody else's:
    Kubernetes and the client have variables with this prefix too."""
    known = [name.upper() for name in Settings.model_fields]
    given = (name.removeprefix(PREFIX) for name in variables if name.startswith(PREFIX))
    near = {name: get_close_matches(name, known, n=1, cutoff=0.7) for name in given if name not in known}
    return {PREFIX + name: PREFIX + found[0] for name, found in near.items() if found}


# What would end the start later ends it here, with one sentence and before there are workers.


def _check_bundles(settings: Settings) -> None:
    try:
        load_bundles(settings.bundles)
    except BundleError as error:
        sys.exit(f"cannot start: {error}")


def _check_device(settings: Settings) -> None:
    if settings.device == "cuda":
        status = subprocess.run([sys.executable, "-m", "service.inference.device_probe"], check=False).returncode
        if status < 0:
            hint = ", mostly for too little memory" if status == -signal.SIGKILL else ""
            sys.exit(f"cannot start: the check of the device was ended by {signal.Signals(-status).name}{hint}")
        if status:
            sys.exit(status)


def _check_address(settings: Settings) -> None:
    try:
        addresses = addresses_of(settings.host, settings.port)
    except (OSError, UnicodeError) as error:  # of a name that has an empty or too long part, a UnicodeError
        sys.exit(f"{PREFIX}HOST: {settings.host}: {getattr(error, 'strerror', None) or error}")
    try:
        for family, address in addresses:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:  # as it will listen: `::` is of IPv6 only
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        sys.exit(_refused(settings, error))


def _refused(settings: Settings, error: OSError) -> str:
    name = "PORT" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "HOST"
    advice = _ADVICE.get(error.errno or 0, "")
    return f"{PREFIX}{name}: {settings.host}:{settings.port}: {error.strerror}{advice}"


def _raise_descriptor_limit(settings: Settings) -> None:
    fewest = OF_A_START + _OF_A_WORKER * settings.workers + len(settings.bundles)
    most, needed = raise_limit(fewest), settings.max_concurrent_requests + _OTHER_DESCRIPTORS
    if most < needed:
        log.warning(
            "the limit of open files (ulimit -Hn) is %d, and %sMAX_CONCURRENT_REQUESTS=%d needs %d: connections beyond "
            "it are reset",
            most,
            PREFIX,
            settings.max_concurrent_requests,
            needed,
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    fields = Settings.model_fields
    (bundle,) = fields["bundles"].default
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve VQ-VAE bundles over HTTP.",
        epilog=f"Every setting is a variable {PREFIX}*, listed in docs/configuration.md; an option wins over its own.",
    )
    served = f"bundle to serve; may be repeated (default: {bundle})"
    parser.add_argument("--bundle", action="append", metavar="FOLDER", help=served)
    parser.add_argument("--port", type=int, help=f"port to listen on (default: {fields['port'].default})")
    parser.add_argument("--host", help=f"address to listen on (default: {fields['host'].default})")
    return parser.parse_args(arguments)


def _to_environment(options: argparse.Namespace) -> None:
    """Options become variables, because worker processes read their settings from the environment."""
    bundles = None if options.bundle is None else ",".join(options.bundle)
    given = {"BUNDLES": bundles, "PORT": options.port, "HOST": options.host}
    for name, value in given.items():
        if value is not None:
            os.environ[f"{PREFIX}{name}"] = str(value)
