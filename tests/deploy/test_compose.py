"""The compose file and the Dockerfiles, read as files. `make check-containers` builds and runs them."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
# Fixed by the image, because ports and health checks are built on them.
FIXED = {"VQSERVE_HOST", "VQSERVE_PORT"}


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_every_setting_passes_through(name: str) -> None:
    settings = {f"VQSERVE_{field.upper()}" for field in Settings.model_fields}
    differing = SERVICES[name]["environment"].keys() ^ (settings - FIXED)
    assert not differing, f"x-settings in docker-compose.yml and service/settings.py differ in {differing}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    container = SERVICES[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert "mem_limit" in container
    assert "restart" in container


def test_only_the_cpu_service_starts_without_a_profile() -> None:
    assert [name for name, container in SERVICES.items() if "profiles" not in container] == ["service"]


def test_only_the_gpu_profile_asks_for_a_gpu() -> None:
    """An engine without the NVIDIA runtime refuses a reservation even for a service that is not needed."""
    asking = [name for name, container in SERVICES.items() if "deploy" in container]
    assert asking == ["service-gpu"]
    assert SERVICES["service-gpu"]["profiles"] == ["gpu"]


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_compose_waits_longer_than_the_service_drains(name: str) -> None:
    needed = float(Settings.model_fields["drain_s"].default) + float(Settings.model_fields["grace_s"].default)
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > needed


def commands_of_the_training_job(folder: Path, config: str) -> list[str]:
    """What its shell runs, one command a line, with `config` in place of the default."""
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    shell, option, script = SERVICES["trainer"]["command"]
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "CONFIG": config, "FIT_ARGS": "--data data/mine trainer.seed=2"}
    command = [shell, option, script.replace("$$", "$")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_training_job_writes_where_the_services_look(tmp_path: Path) -> None:
    bundles = {mount.split(":")[0]: mount.split(":")[1] for mount in SERVICES["trainer"]["volumes"]}["bundles"]
    (default,) = Settings.model_fields["bundles"].default
    config = SERVICES["trainer"]["environment"]["CONFIG"].removeprefix("${CONFIG:-").removesuffix("}")
    assert commands_of_the_training_job(tmp_path, config) == [
        f"-m training fit --config {config} --out runs/mnist --resume --data data/mine trainer.seed=2",
        f"-m export runs/mnist {Path(bundles).name}/{default.name}",
    ]
    assert SERVICES["service"]["volumes"] == [f"bundles:/app/{default.parent}:ro"]


def test_run_and_bundle_of_the_training_job_are_called_as_its_configuration(tmp_path: Path) -> None:
    """Every CONFIG was trained in runs/job and replaced bundles/mnist, which the service then served as its digits."""
    fit, export = commands_of_the_training_job(tmp_path, "training/configs/photos-f8.yaml")
    assert "--out runs/photos-f8 " in fit and export == "-m export runs/photos-f8 bundles/photos-f8"


def test_the_volume_of_bundles_begins_alike_with_either_container() -> None:
    """It began with the first one's folder: after a training that came first, the shipped bundles were missing."""
    copied = {path.name: path.read_text() for path in DOCKERFILES}
    assert "COPY --chown=10001:10001 models models\n" in copied["service.Dockerfile"]
    assert "COPY --chown=10001:10001 models bundles\n" in copied["training.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_build_on_one_base_and_do_not_run_as_root(path: Path) -> None:
    lines = path.read_text().splitlines()
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert bases == {"python:3.11-slim-bookworm"}
    assert "USER 10001:10001" in lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert not any(line.startswith("# syntax") for line in lines)


def test_serving_installs_no_torch_and_one_onnxruntime() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    distributions = {extra: {re.split(r"[\[<>=~!; ]", item)[0] for item in items} for extra, items in extras.items()}
    assert not {"torch", "lightning", "onnx"} & (distributions["service"] | distributions["cpu"] | distributions["gpu"])
    assert distributions["cpu"] == {"onnxruntime"}
    assert distributions["gpu"] == {"onnxruntime-gpu"}


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    items = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if not line.startswith("#")}
    assert {re.split(r"[\[<>=~!; ]", item)[0].lower() for item in items} <= pinned


class ServerOfIPv6(HTTPServer):
    address_family = socket.AF_INET6


@pytest.mark.parametrize(("made", "host"), [(HTTPServer, "127.0.0.1"), (ServerOfIPv6, "::1")])
@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY"])
def test_the_health_check_asks_no_proxy(proxy: str, made: type[HTTPServer], host: str) -> None:
    """Docker puts the proxies of its client's configuration into every container. Of IPv6 it asked an address on which
    nobody listened."""
    with made((host, 0), Ready) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {proxy: "http://127.0.0.1:9", "VQSERVE_PORT": str(server.server_port), "VQSERVE_HOST": host}
        check = [sys.executable, "-I", str(ROOT / "docker/healthcheck.py")]
        done = subprocess.run(check, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.path == "/readyz"
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Not to the test's output."""


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_a_reload_on_many_cores_has_threads_enough(name: str) -> None:
    """Ten sessions of a thread a core, twice while a model is reloaded: 256 were too few for 16 cores."""
    limit = SERVICES[name]["pids_limit"]
    assert isinstance(limit, int)  # docker-compose 1 hands it on as it is, and a variable would be text
    assert limit > 2 * 10 * 128


@pytest.mark.parametrize("path", ["docker-compose.yml", "docs/deployment.md"])
def test_a_volume_is_removed_after_its_containers(path: str) -> None:
    """Docker refuses to remove it while one has it, also a stopped one."""
    with_it = {
        profile for one in SERVICES.values() if "bundles:" in str(one["volumes"]) for profile in one.get("profiles", ())
    }
    down, _, _ = (ROOT / path).read_text().partition("docker volume rm vqserve_bundles")
    assert set(re.findall(r"--profile (\w+)", re.findall("docker compose (.*) down", down)[-1])) == with_it


@pytest.mark.parametrize("dockerfile", ["service.Dockerfile", "service-gpu.Dockerfile"])
def test_the_images_can_send_spans(dockerfile: str) -> None:
    """Compose passes VQSERVE_OTLP_ENDPOINT on, and without the extra the service would not start."""
    assert "VQSERVE_OTLP_ENDPOINT" in SERVICES["service"]["environment"]
    assert re.search(r"\.\[service,otel,(cpu|gpu)\]", (ROOT / "docker" / dockerfile).read_text())
