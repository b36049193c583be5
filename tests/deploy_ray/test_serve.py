"""The application under Ray Serve answers as it does alone, on two nodes, and goes on when one of them dies."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from ray import serve

from deploy.ray.serve import Arguments, application, build_app, settings_of
from service.settings import Settings
from service.telemetry.logs import log_config
from tests.deploy_ray.conftest import TwoNodes
from tests.tiny_bundle import oracle_codes, write_tiny_bundle

KEY = "shown-to-nobody"


@pytest.fixture
def port(two_nodes: TwoNodes, unused_tcp_port: int) -> Iterator[int]:
    serve.start(http_options={"host": "127.0.0.1", "port": unused_tcp_port})
    yield unused_tcp_port
    serve.shutdown()


def encode(port: int, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/encode", file.getvalue(), {"Content-Type": "image/png", "X-API-Key": KEY}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - this machine
        body: dict[str, Any] = json.load(answer)
    return body


def running_replicas() -> int:
    status = serve.status().applications["default"].deployments["vqserve"]
    return int(status.replica_states.get("RUNNING", 0))


def wait_for(seconds: float, holds: Any) -> None:
    begun = monotonic()
    while not holds():
        assert monotonic() - begun < seconds
        sleep(0.2)


def test_a_replica_logs_as_the_service_and_is_the_only_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log was not configured, and VQSERVE_WORKERS divided its threads."""
    configured: list[dict[str, Any]] = []
    created: list[Settings] = []
    monkeypatch.setattr("logging.config.dictConfig", configured.append)
    monkeypatch.setattr("deploy.ray.serve.create_app", created.append)
    monkeypatch.setenv("VQSERVE_WORKERS", "4")
    monkeypatch.setenv("VQSERVE_LOG_LEVEL", "warning")
    build_app(settings_of(Arguments()))
    assert created[0].workers == 1
    assert configured == [log_config("warning")]


@pytest.mark.parametrize(("given", "cpus", "threads"), [("0", 2.5, 2), ("0", 0.5, 1), ("3", 2.0, 3)])
def test_a_replica_has_threads_for_its_own_cpus(
    monkeypatch: pytest.MonkeyPatch, given: str, cpus: float, threads: int
) -> None:
    """Ray limits it to none: each replica had as many as its machine has CPUs."""
    monkeypatch.setenv("VQSERVE_THREADS", given)
    assert settings_of(Arguments(cpus_per_replica=cpus)).threads == threads
    assert settings_of(Arguments(gpus_per_replica=0.5)).device == "cuda"


def test_replicas_answer_and_one_of_two_nodes_may_die(
    tmp_path: Path, port: int, two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_tiny_bundle(tmp_path / "bundle")
    monkeypatch.setenv("VQSERVE_BUNDLES", str(tmp_path / "bundle"))
    monkeypatch.setenv("VQSERVE_DEVICE", "cpu")
    monkeypatch.setenv("VQSERVE_API_KEYS", f"tests:{KEY}")
    serve.run(application(Arguments(min_replicas=2, max_replicas=2, cpus_per_replica=1)))
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    expected = oracle_codes(pixels[None, :, :, None], weights)[0].tolist()
    wait_for(60, lambda: running_replicas() == 2)
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    assert list(logs.rglob("runtime_env*.log"))  # the environment of the replicas stood in them
    assert [path for path in logs.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
    assert [encode(port, pixels)["codes"] for _ in range(20)] == [expected] * 20

    two_nodes.kill(two_nodes.nodes[0].node_id)
    wait_for(60, lambda: running_replicas() == 1)
    assert [encode(port, pixels)["codes"] for _ in range(20)] == [expected] * 20


def test_a_bad_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="max_replica"):
        Arguments.model_validate({"max_replica": 3})
