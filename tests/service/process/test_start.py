"""Mistakes of whoever starts the service: `python -m service` says what to change, on one line."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import onnxruntime
import pytest
from starlette.testclient import TestClient
from uvicorn.config import STARTUP_FAILURE

from service.app import create_app, open_service
from service.bundle import sha256_file
from service.bundle.fields import GraphName, GraphSpec
from service.bundle.manifest import version_of
from service.inference.sessions import CUDA, DeviceError
from service.process import command_line as start
from service.process.shared_port import addresses_of
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.threads import LARGE, NoThread
from tests.conftest import Tiny
from tests.service.serving import answers, free_port, serving, until


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is served, and what `main` does to the environment and to logging stays in its test."""
    for name in ("VQSERVE_BUNDLES", "VQSERVE_PORT", "VQSERVE_HOST"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setenv("VQSERVE_PORT", "0")  # 8000 may be somebody's
    monkeypatch.setattr(start, "serve", lambda settings: None)
    monkeypatch.setattr(logging.config, "dictConfig", lambda config: None)
    yield


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VQSERVE_DEVICE", "gpu", "VQSERVE_DEVICE: Input should be 'auto', 'cuda' or 'cpu'"),
        ("VQSERVE_API_KEYS", "secret", "VQSERVE_API_KEYS: entry 1 must be name:key"),
        *(  # the service was open to all
            ("VQSERVE_API_KEYS", nothing, "VQSERVE_API_KEYS: holds no name:key pair; leave it empty where no key is")
            for nothing in (",", " ", "\n", " , \n,")
        ),
        ("VQSERVE_REQUIRE_API_KEYS", "true", "VQSERVE_REQUIRE_API_KEYS: VQSERVE_API_KEYS is empty"),
        ("VQSERVE_BUNDLES", "nowhere", "cannot start: nowhere/manifest.json does not exist: make a bundle with"),
        ("VQSERVE_BUNDLES", "m" * 300, f"cannot start: {'m' * 300}/manifest.json cannot be read: File name too long"),
        (
            "VQSERVE_CORS_ORIGINS",
            "localhost:3000",
            "VQSERVE_CORS_ORIGINS: 'localhost:3000' is no origin: write https://",
        ),
        ("VQSERVE_CORS_ORIGINS", "*, http://ok.example/", "VQSERVE_CORS_ORIGINS: 'http://ok.example/' is no origin"),
        *(
            ("VQSERVE_CORS_ORIGINS", origin, f"VQSERVE_CORS_ORIGINS: '{origin}' is no origin")  # none is ever sent
            for origin in (
                *("https://*.example.com", "https://Example.org", "https://shop.example:443"),
                *("http://shop.example:80", "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example"),
            )
        ),
        ("VQSERVE_MAX_PICTURES_PER_REQUEST", "20000", "VQSERVE_MAX_PICTURES_PER_REQUEST: Input should be less than"),
        ("VQSERVE_THREADS", "100000", "VQSERVE_THREADS: Input should be less than or equal to 1024"),
        ("VQSERVE_MAX_BATCH", "1" + "0" * 400, "VQSERVE_MAX_BATCH: Input should be less than or equal to 16383"),
        ("VQSERVE_MAX_GENERATE_BATCH", "100000", "VQSERVE_MAX_GENERATE_BATCH: Input should be less than or equal to"),
        ("VQSERVE_WATCH_BUNDLES_S", "1e-9", "VQSERVE_WATCH_BUNDLES_S: must be 0 or at least 0.1"),
        ("VQSERVE_WATCH_BUNDLES_S", "0.0999", "VQSERVE_WATCH_BUNDLES_S: must be 0 or at least 0.1"),
        ("VQSERVE_OTLP_ENDPOINT", "http://", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host"),
        ("VQSERVE_OTLP_ENDPOINT", "http://localhost:notaport", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host"),
        ("VQSERVE_OTLP_ENDPOINT", "http://localhost:65536", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host"),
        ("VQSERVE_OTLP_ENDPOINT", "http://[::1", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host"),
        ("VQSERVE_OTLP_ENDPOINT", "http://a b:4318", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host, without"),
        ("VQSERVE_OTLP_ENDPOINT", "http://localhost:4318\n", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host"),
        ("VQSERVE_OTLP_ENDPOINT", "ftp://localhost", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host"),
        ("VQSERVE_OTLP_ENDPOINT", "http://localhost:4318/v1/traces", "VQSERVE_OTLP_ENDPOINT: must be a URL with a"),
        ("VQSERVE_OTLP_ENDPOINT", "http://localhost:4318?key=1", "VQSERVE_OTLP_ENDPOINT: must be a URL with a host"),
    ],
)
def test_a_bad_value_ends_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        start.main([])
    assert str(ended.value.code).startswith(said)


def test_all_bad_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start told one, and with `docker compose up` a start takes its time."""
    for name, value in {"VQSERVE_PORT": "http", "VQSERVE_API_KEYS": "s3cret-key"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        start.main([])
    told = str(ended.value).splitlines()
    assert sorted(line.split(":")[0] for line in told) == ["VQSERVE_API_KEYS", "VQSERVE_PORT"]
    assert "s3cret" not in str(ended.value)


def test_an_option_that_is_empty_is_not_left_out() -> None:
    """`--bundle "$MINE"` without the variable served the shipped digits."""
    with pytest.raises(SystemExit, match=r"^VQSERVE_BUNDLES: name at least one bundle folder"):
        start.main(["--bundle", ""])


def test_help_names_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        start.main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("port", "host"):
        assert f"(default: {Settings.model_fields[name].default})" in printed
    assert "VQSERVE_*, listed in docs/configuration.md" in printed


TIMES = [name for name in Settings.model_fields if name.endswith(("_s", "_ms"))]


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e300", "inf", "nan"])
@pytest.mark.parametrize("name", TIMES)
def test_no_time_is_longer_than_a_clock_can_hold(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A number of 400 digits ended the start with an OverflowError."""
    monkeypatch.setenv(f"VQSERVE_{name.upper()}", value)
    with pytest.raises(SystemExit, match=rf"^VQSERVE_{name.upper()}: Input should be"):
        start.main([])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"MAX_WAIT_MS": "500", "REQUEST_DEADLINE_MS": "500"},
            "VQSERVE_MAX_WAIT_MS: a request would wait until its deadline, VQSERVE_REQUEST_DEADLINE_MS: 500 ms",
        ),
        (
            {"ACCESS_LOG": "true", "LOG_LEVEL": "warning"},
            "VQSERVE_LOG_LEVEL: 'warning' leaves out the lines of VQSERVE_ACCESS_LOG",
        ),
    ],
)
def test_settings_that_defeat_one_another_end_the_start(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], said: str
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"VQSERVE_{name}", value)
    with pytest.raises(SystemExit) as ended:
        start.main([])
    assert str(ended.value.code).startswith(said)


def test_settings_that_fit_one_another_do_not() -> None:
    Settings(max_wait_ms=499.5, request_deadline_ms=500)
    Settings(max_wait_ms=0, request_deadline_ms=1)
    for level in ("debug", "info"):
        Settings(access_log=True, log_level=level)
    for address in ("http://localhost:4318", "https://collector.example/otlp", "http://[::1]:4318"):
        Settings(otlp_endpoint=address)


def test_a_damaged_bundle_ends_the_start_also_with_several_workers(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path
) -> None:
    """uvicorn ends with status 0 when every one of several workers fails: nobody would start it again."""
    bundle = shutil.copytree(tiny.grey, tmp_path / "bundle")
    (bundle / "decoder.onnx").write_bytes(b"cut off")
    monkeypatch.setenv("VQSERVE_WORKERS", "2")
    with pytest.raises(SystemExit, match=r"graph decoder: .* has sha256"):
        start.main(["--bundle", str(bundle)])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_graph_that_onnxruntime_refuses_ends_the_start_with_a_status(
    tiny: Tiny, tmp_path: Path, workers: str
) -> None:
    """Only a worker sees it. The status of several was 0, so that nobody would start the service again; and after the
    reason came the server's traceback."""
    bundle = shutil.copytree(tiny.grey, tmp_path / "bundle")
    (bundle / "decoder.onnx").write_bytes(b"no graph")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["decoder"]["sha256"] = sha256_file(bundle / "decoder.onnx")
    graphs = {name: GraphSpec.model_validate(spec) for name, spec in manifest["graphs"].items()}
    manifest["version"] = version_of(cast(dict[GraphName, GraphSpec], graphs))
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    variables = {**os.environ, "VQSERVE_DEVICE": "cpu", "VQSERVE_WORKERS": workers, "VQSERVE_PORT": "0"}
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--host", "127.0.0.1"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == STARTUP_FAILURE, done.stderr
    said = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    reasons = [message for message in said if message.startswith(f"cannot start: {bundle}: a graph cannot be run: ")]
    assert len(reasons) >= 1 and all("decoder.onnx: " in reason for reason in reasons)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_cannot_be_served_ends_the_start_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, workers: str
) -> None:
    """With several workers the status was 0."""
    monkeypatch.setenv("VQSERVE_WORKERS", workers)
    monkeypatch.setenv("VQSERVE_DEVICE", "cpu")
    bundle = ["--bundle", str(tiny.grey)]
    with pytest.raises(SystemExit, match="are both named tiny: serve one of them, or change the name"):
        start.main([*bundle, *bundle])
    with pytest.raises(SystemExit, match=r"VQSERVE_HOST: 999\.1\.1\.1: "):
        start.main([*bundle, "--host", "999.1.1.1"])
    with pytest.raises(SystemExit, match=r"VQSERVE_HOST: a\.\.b: .*label"):
        start.main([*bundle, "--host", "a..b"])
    with pytest.raises(SystemExit, match=r"VQSERVE_HOST: 192\.0\.2\.1:\d+: Cannot assign requested address: this"):
        start.main([*bundle, "--host", "192.0.2.1"])  # of nobody: RFC 5737
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"VQSERVE_PORT: 127\.0\.0\.1:{port}: Address already in use: .* --port"):
            start.main([*bundle, "--host", "127.0.0.1", "--port", str(port)])


def test_a_port_that_needs_a_privilege_is_named(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    def refuse(probe: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SystemExit, match=r"VQSERVE_PORT: 127\.0\.0\.1:80: Permission denied: a port below 1024"):
        start.main(["--bundle", str(tiny.grey), "--port", "80"])


def test_several_workers_need_a_folder(monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path) -> None:
    """With a read-only file system and no /tmp it was a traceback."""
    monkeypatch.setenv("VQSERVE_WORKERS", "2")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(SystemExit, match="several workers count in files: No such file or directory: let TMPDIR name"):
        start.main(["--bundle", str(tiny.grey), "--port", "0"])


def two_workers(tiny: Tiny, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "service", "--bundle", str(tiny.grey), "--port", str(port)]
    variables = {**os.environ, "VQSERVE_DEVICE": "cpu", "VQSERVE_WORKERS": "2", "VQSERVE_DRAIN_S": "0"}
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def test_of_two_services_with_several_workers_one_has_the_port(tiny: Tiny) -> None:
    """Both started, and callers got either one: until the first listens, its port could be shared."""
    port = free_port()
    both = [two_workers(tiny, port) for _ in range(2)]
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 60)
        until(lambda: any(process.poll() is not None for process in both))
        serves, refused = sorted(both, key=lambda process: process.poll() is not None)
        assert serves.poll() is None and refused.wait() == 1
        assert refused.stderr is not None
        said = refused.stderr.read().splitlines()[-1]
        assert said.startswith(f"VQSERVE_PORT: 127.0.0.1:{port}: Address already in use: another process has this port")
    finally:
        for process in both:
            process.terminate()
            process.communicate(timeout=30)


def test_a_service_with_several_workers_starts_again_at_once(tiny: Tiny) -> None:
    """A connection that it has closed itself keeps its place for a minute: the port must be free all the same."""
    port = free_port()
    for _ in range(2):
        process = two_workers(tiny, port)
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 60)
            with socket.create_connection(("127.0.0.1", port)) as kept:
                kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert kept.recv(4096).startswith(b"HTTP/1.1 200")
                process.terminate()
                while kept.recv(4096):
                    pass
            process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 0


def test_as_many_files_may_be_open_as_the_machine_allows(tiny: Tiny) -> None:
    """Often 1,024 of far more: with as many connections every new one was reset, and nothing said so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
    try:
        with serving(tiny.grey) as (process, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("most", "warned"), [(1279, True), (1280, False), (resource.RLIM_INFINITY, False)])
def test_too_few_files_are_logged(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, caplog: pytest.LogCaptureFixture, most: int, warned: bool
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, most))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    start.main(["--bundle", str(tiny.grey), "--port", "0"])
    said = [message for message in caplog.messages if "VQSERVE_MAX_CONCURRENT_REQUESTS=1024 needs 1280" in message]
    assert len(said) == warned


@pytest.mark.parametrize(("workers", "fewest"), [(1, 41), (2, 49), (64, 545)])
def test_fewer_files_than_a_start_needs_end_it(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, workers: int, fewest: int
) -> None:
    """Several workers died one after the other, and none could be started again."""
    monkeypatch.setenv("VQSERVE_WORKERS", str(workers))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, fewest))
    start.main(["--bundle", str(tiny.grey)])
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, fewest - 1))
    said = rf"^cannot start: the limit of open files \(ulimit -Hn\) is {fewest - 1}: raise it to {fewest} or far more$"
    with pytest.raises(SystemExit, match=said):
        start.main(["--bundle", str(tiny.grey)])


def test_a_start_with_hardly_a_file_is_one_sentence(tiny: Tiny) -> None:
    """It was a traceback of the imports, of the event loop or of the server, or SIGABRT."""
    limited = ["sh", "-c", 'ulimit -n "$0"; exec "$@"']
    command = [sys.executable, "-m", "service", "--bundle", str(tiny.grey), "--port", "0"]
    for most in ("6", "8", "16"):
        done = subprocess.run([*limited, most, *command], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert done.stderr.startswith(f"cannot start: the limit of open files (ulimit -Hn) is {most}: raise it")


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="needs an onnxruntime without CUDA")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_cuda_that_is_not_there_ends_the_command_with_a_sentence(tiny: Tiny, workers: str) -> None:
    """A process of its own, as a user starts it: `main` called from here would find what `__main__` does not have."""
    command = [sys.executable, "-m", "service", "--bundle", str(tiny.grey), "--host", "127.0.0.1", "--port", "0"]
    variables = {**os.environ, "VQSERVE_DEVICE": "cuda", "VQSERVE_WORKERS": workers}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("VQSERVE_DEVICE=cuda: this onnxruntime has no CUDA")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("signal_of_end", "said"),
    [
        (signal.SIGKILL, "the check of the device was ended by SIGKILL, mostly for too little memory"),
        (signal.SIGSEGV, "the check of the device was ended by SIGSEGV"),
    ],
)
def test_a_check_of_the_device_that_is_killed_is_told(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, signal_of_end: int, said: str
) -> None:
    """The service ended without a word, with the status 247."""
    killed = subprocess.CompletedProcess[bytes]([], -signal_of_end)
    monkeypatch.setattr("service.process.command_line.subprocess.run", lambda *_, **__: killed)
    monkeypatch.setenv("VQSERVE_DEVICE", "cuda")
    with pytest.raises(SystemExit, match=f"^cannot start: {said}$"):
        start.main(["--bundle", str(tiny.grey)])


def test_what_only_the_address_can_be_wrong_about_is_told_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link-local address without its interface was an invalid VQSERVE_PORT, and `::` without IPv6 a traceback."""
    for number in (errno.EINVAL, errno.EAFNOSUPPORT):
        error = OSError(number, os.strerror(number))
        monkeypatch.setattr("service.process.command_line.socket.socket", Mock(side_effect=error))
        with pytest.raises(SystemExit, match=rf"^VQSERVE_HOST: fe80::1:\d+: {os.strerror(number)}$"):
            start._check_address(Settings(host="fe80::1"))


def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `localhost` is 127.0.0.1 and ::1 a taken second one ended the start after all models had been opened."""
    both = [socket.getaddrinfo(f"127.0.0.{n}", 0, type=socket.SOCK_STREAM)[0] for n in (1, 2)]

    def found(host: str, port: int, **_: object) -> list[object]:
        return [(*kind, (address, port)) for *kind, (address, _) in both]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"VQSERVE_PORT: two\.example:{port}: Address already in use: "):
            start._check_address(Settings(host="two.example", port=port))
    start._check_address(Settings(host="two.example", port=port))


def test_an_address_of_a_family_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single worker leaves it out too: /etc/hosts may name ::1 where the kernel has no IPv6."""
    unknown = (999, socket.SOCK_STREAM, 0, "", ("::1", 8000, 0, 0))
    (known,) = socket.getaddrinfo("127.0.0.1", 8000, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [known, unknown, known])
    assert addresses_of("localhost", 8000) == [(socket.AF_INET, ("127.0.0.1", 8000))]


def test_a_port_of_ipv4_is_free_for_ipv6() -> None:
    """`::` is of IPv6 only, and its start was refused beside a service on 0.0.0.0."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))  # noqa: S104 - to be in the way
        other.listen()
        start._check_address(Settings(host="::", port=other.getsockname()[1]))


def test_a_name_that_is_nearly_a_settings_is_logged(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VQSERVE_PROT", "9000")
    start.main(["--bundle", str(tiny.grey)])
    assert "VQSERVE_PROT is no setting and changes nothing; the nearest name is VQSERVE_PORT" in caplog.messages


def test_names_of_others_are_not_misspelt() -> None:
    theirs = ("PATH", "VQSERVE_URL", "VQSERVE_KEY", "VQSERVE_SERVICE_HOST", "VQSERVE_PORT_8000_TCP_ADDR")
    ours = tuple(f"VQSERVE_{name.upper()}" for name in Settings.model_fields)
    assert start.misspelt((*theirs, *ours)) == {}


def test_what_the_device_lacks_is_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(settings: Settings, probe: Path) -> None:
        raise DeviceError("VQSERVE_DEVICE=cuda: there is none")

    monkeypatch.setattr("service.registry.models.session_maker", refuse)
    with pytest.raises(DeviceError):
        open_service(Settings(bundles=(tiny.grey,)), Metrics())
    assert caplog.messages == ["cannot start: VQSERVE_DEVICE=cuda: there is none"]


@pytest.mark.parametrize("name", [LARGE, "required_3"])
def test_a_start_without_a_thread_is_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It was a traceback, with which the log did not say what prevents the start. Without those in which the server
    resolves its address it was SIGABRT, and no line at all."""
    starts = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        starts(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(NoThread), TestClient(create_app(Settings(bundles=(tiny.grey,), device="cpu"))):
        pass
    said = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert said == ["cannot start: can't start new thread: allow more threads (pids) or memory"]


def test_ctrl_c_before_the_server_hears_it_is_no_traceback() -> None:
    interrupted = (
        "import sys, types, runpy; command_line = types.ModuleType('service.process.command_line'); "
        "command_line.main = lambda: (_ for _ in ()).throw(KeyboardInterrupt); "
        "sys.modules['service.process.command_line'] = command_line; runpy.run_module('service', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
