"""Builds the images, brings the compose file up and breaks it on purpose: `make check-containers`.

In: a Docker engine; `--skip gpu --skip training` leaves the large images out. Out: one JSON document on standard output
with what each check saw; the exit status is 1 when one did not hold. Nothing of it stays but the images.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from engine import (
    DOCKER,
    ROOT,
    TAIL,
    CheckError,
    Compose,
    Container,
    ask,
    connect,
    docker,
    image_bytes,
    run,
    wait_for,
)
from PIL import Image

BASE = "python:3.11-slim-bookworm"
LARGEST_ADDED_BYTES = 250_000_000
IMAGES = {"cpu": "service", "gpu": "service-gpu", "training": "training"}
CLIENTS = 16
Facts = dict[str, Any]

# Prometheus from Debian's packages, in place of the image that the compose file names: no other registry is needed.
PROMETHEUS = f"""FROM {BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus \\
 && mkdir -p /prometheus && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]
"""


def png_of_a_digit() -> bytes:
    """A 28 x 28 grey picture, a bright ring."""
    y, x = np.mgrid[:28, :28] - 13.5
    ring = np.exp(-(((np.hypot(x, y) - 8) / 2) ** 2))
    file = io.BytesIO()
    Image.fromarray((255 * ring).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def require(holds: bool, seen: object) -> None:
    if not holds:
        raise CheckError(str(seen))


def builds(kind: str) -> Facts:
    begun = time.monotonic()
    run([*DOCKER, "build", "-f", f"docker/{IMAGES[kind]}.Dockerfile", "-t", f"vqserve:{kind}", "."])
    added = image_bytes(f"vqserve:{kind}") - image_bytes(BASE)
    if kind == "cpu":
        require(added <= LARGEST_ADDED_BYTES, f"adds {added} bytes to its base")
    return {"added_megabytes": round(added / 1e6, 1), "build_seconds": round(time.monotonic() - begun, 1)}


def answers_curl(compose: Compose) -> Facts:
    """`docker compose up`, then the line that a first caller types."""
    begun = time.monotonic()
    compose.up("service")
    seconds = round(time.monotonic() - begun, 1)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "x.png"
        picture.write_bytes(png_of_a_digit())
        url = f"localhost:{compose.variables['PORT']}/encode"
        answer = json.loads(run(["curl", "-sS", "--fail-with-body", "-F", f"img=@{picture}", url]))
    require(answer["shape"] == [len(answer["codes"]), len(answer["codes"][0])], answer)
    return {"seconds_to_healthy": seconds, "model": answer["model"], "shape": answer["shape"]}


def confined(compose: Compose) -> Facts:
    """Not root, nothing writable but /tmp, no capability, memory and processes limited, no torch, one onnxruntime."""
    container = compose.healthy("service")
    user = container.python("import os; print(os.getuid())")
    status = container.python("print(open('/proc/self/status').read())")
    caps = {line.split()[0]: line.split()[1] for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs"))}
    read_only = container.python("open('/app/x', 'w')", ok=False)
    container.python("open('/tmp/x', 'w').write('x')")
    no_torch = container.python("import torch", ok=False)
    limits = container.facts["HostConfig"]
    require(user != "0", f"runs as uid {user}")
    require("Read-only file system" in read_only, read_only)
    require(int(caps["CapEff:"], 16) == 0 and caps["NoNewPrivs:"] == "1", caps)
    require("ModuleNotFoundError" in no_torch, no_torch)
    require(limits["Memory"] > 0 and limits["NanoCpus"] > 0 and limits["PidsLimit"] > 0, limits)
    require(limits["LogConfig"]["Config"]["max-size"] == "10m", limits["LogConfig"])
    require(limits["RestartPolicy"]["Name"] == "unless-stopped", limits["RestartPolicy"])
    return {"uid": int(user), "memory_limit_bytes": limits["Memory"], "cpus": limits["NanoCpus"] / 1e9}


def loses_nothing_on_sigterm(compose: Compose) -> Facts:
    """Callers that stop when /readyz says 503, as a load balancer does, get an answer to everything they sent.

    A request that reaches the service after the signal may be told to ask another instance (503); none may be dropped.
    """
    container = compose.up("service")
    address, body = container.address, png_of_a_digit()
    outcomes: Counter[str] = Counter()
    leave = threading.Event()

    def call_on() -> None:
        while not leave.is_set():
            try:
                status, _, _ = ask(address, "POST", "/encode", body, {"Content-Type": "image/png"})
                outcomes[str(status)] += 1
            except OSError as error:
                outcomes[type(error).__name__] += 1

    def watch() -> None:
        while ask(address, "GET", "/readyz")[0] == 200:
            time.sleep(0.02)
        leave.set()

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        callers = [pool.submit(call_on) for _ in range(CLIENTS)]
        watcher = pool.submit(watch)
        time.sleep(3)
        before = sum(outcomes.values())
        begun = time.monotonic()
        docker("stop", "--time", "40", container.identity)
        seconds = time.monotonic() - begun
        leave.set()
        for job in (*callers, watcher):
            job.result()
    code = container.facts["State"]["ExitCode"]
    require(outcomes.keys() <= {"200", "503"}, dict(outcomes))
    require(before > 0 and code in (0, 143), f"{before} answers before the signal, exit status {code}")
    told = {"answered": outcomes["200"], "sent_elsewhere": outcomes["503"], "dropped": 0}
    return told | {"answers_after_signal": sum(outcomes.values()) - before, "stop_seconds": round(seconds, 1)}


def refuses_when_full(compose: Compose) -> Facts:
    """With as many requests inside as may be, more are answered 429 with Retry-After, and those inside are not lost."""
    most = 8
    container = compose.up("service", VQSERVE_MAX_CONCURRENT_REQUESTS=str(most))
    picture = png_of_a_digit()
    inside = [connect(container.address) for _ in range(most)]
    for connection in inside:  # all but the last byte, so that each stays inside
        connection.putrequest("POST", "/encode")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Content-Length", str(len(picture)))
        connection.endheaders(picture[:-1])
    wait_for("429 with all places taken", lambda: ask(container.address, "GET", "/models")[0] == 429, 10)
    status, headers, _ = ask(container.address, "POST", "/encode", picture, {"Content-Type": "image/png"})
    require(status == 429 and 1 <= int(headers["retry-after"]) <= 60, (status, headers))
    require(ask(container.address, "GET", "/readyz")[0] == 200, "not ready while it is full")
    for connection in inside:
        connection.send(picture[-1:])
    statuses = Counter(connection.getresponse().status for connection in inside)
    for connection in inside:
        connection.close()
    require(statuses == {200: most}, dict(statuses))
    wait_for("200 after the requests inside", lambda: ask(container.address, "GET", "/models")[0] == 200, 10)
    return {"inside": most, "answered": statuses[200], "retry_after": int(headers["retry-after"])}


def monitored(compose: Compose) -> Facts:
    """Prometheus accepts the configuration and the rules, scrapes the service and raises no alarm."""
    docker("build", "-t", "vqserve-check-prometheus", "-", text=PROMETHEUS)
    compose.variables["PROMETHEUS_IMAGE"] = "vqserve-check-prometheus"
    service = compose.up("service")
    ask(service.address, "POST", "/encode", png_of_a_digit(), {"Content-Type": "image/png"})
    compose("--profile", "monitoring", "up", "-d", "--no-build", "--no-deps", "prometheus")
    container = compose.healthy("prometheus")
    rules = docker("exec", container.identity, "promtool", "check", "config", "/etc/prometheus/prometheus.yml")

    def query(expression: str) -> list[Any]:
        path = f"http://127.0.0.1:9090 {expression}"
        command = ["promtool", "query", "instant", "-o", "json", *path.split(" ", 1)]
        found: list[Any] = json.loads(docker("exec", container.identity, *command))
        return found

    seconds = wait_for("a scrape of the service", lambda: bool(query('vqserve_requests_total{route="/encode"}')), 60)
    firing = [series["metric"]["alertname"] for series in query('ALERTS{alertstate="firing"}')]
    require(not firing, firing)
    return {"rules": int(rules.split(" rules found")[0].split()[-1]), "seconds_to_first_scrape": seconds}


def trains_and_reloads(compose: Compose) -> Facts:
    """The training job exports into the volume, and the running service answers with the new version."""
    service = compose.up("service", VQSERVE_WATCH_BUNDLES_S="1")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        random = np.random.default_rng(0)
        pictures = random.integers(0, 256, (64, 28, 28), np.uint8)
        labels = np.arange(64, dtype=np.int64) % 10
        data = Path(folder) / "tiny.npz"
        np.savez(data, x_train=pictures, y_train=labels, x_test=pictures, y_test=labels)
        config = Path(folder) / "mnist.yaml"  # its name is that of the bundle
        config.write_bytes((ROOT / "training" / "configs" / "tiny.yaml").read_bytes())
        for path in (data, config):
            path.chmod(0o644)
        before = version_of(service)
        begun = time.monotonic()
        words = "--data data/tiny.npz name=mnist"
        variables = {"DATA": folder, "CONFIG": "data/mnist.yaml", "FIT_ARGS": words}
        compose("--profile", "train", "run", "--rm", "trainer", **variables)
    seconds = round(time.monotonic() - begun, 1)
    reload = wait_for("the service serves the new version", lambda: version_of(service) != before, 30)
    return {"train_and_export_seconds": seconds, "reload_seconds": reload}


def version_of(service: Container) -> str:
    return str(json.loads(ask(service.address, "GET", "/models/mnist")[2])["version"])


LINKS = """
import glob, os, subprocess, onnxruntime
onnxruntime.preload_dlls()
site = os.path.dirname(os.path.dirname(onnxruntime.__file__))
os.environ["LD_LIBRARY_PATH"] = ":".join(glob.glob(site + "/nvidia/*/lib"))
names = glob.glob(site + "/onnxruntime/capi/libonnxruntime_providers_cuda.so")
names += [name for name in glob.glob(site + "/nvidia/*/lib/*.so*")]
lines = [line for name in names for line in subprocess.check_output(["ldd", name], text=True).splitlines()]
print(" ".join(sorted({line.split()[0] for line in lines if "not found" in line})))
"""


def gpu_image_is_whole(_: Compose) -> Facts:
    """Every CUDA library links but the driver's own; without a GPU the start fails and says so, and CPU still works."""
    options = ("run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")  # noqa: S108 - inside the container
    missing = docker(*options, "vqserve:gpu", "python", "-c", LINKS).split()
    require(set(missing) <= {"libcuda.so.1"}, f"libraries that nothing provides: {missing}")
    if Path("/dev/nvidiactl").exists():
        return {"missing": missing, "gpu": True}
    command = [*DOCKER, *options, "vqserve:gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - DOCKER and our own words
    said = (done.stdout + done.stderr)[-TAIL:]
    reason = re.search(r"VQSERVE_DEVICE=cuda: [\w .,:-]+", said)
    if done.returncode == 0 or reason is None:
        raise CheckError(f"without a GPU the start ended with {done.returncode}: {said}")
    name = docker("run", "-d", "--rm", "-e", "VQSERVE_DEVICE=cpu", "vqserve:gpu").strip()
    try:
        on_cpu = Container(name)
        wait_for("the GPU image is ready on CPU", lambda: on_cpu.health == "healthy", 120)
        status = ask(on_cpu.address, "POST", "/encode", png_of_a_digit(), {"Content-Type": "image/png"})[0]
    finally:
        docker("kill", name)
    require(status == 200, f"/encode on CPU answers {status}")
    return {"missing": missing, "gpu": False, "start_without_gpu": reason.group()}


def compose_file_is_valid(compose: Compose) -> Facts:
    """This compose reads the file with every profile."""
    compose("--profile", "gpu", "--profile", "monitoring", "--profile", "train", "config", "-q")
    return {"compose": run([*compose.command[:-2], "version", "--short"]).strip()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--skip", action="append", default=[], choices=["gpu", "training"], help="a large image")
    skipped = parser.parse_args().skip
    compose = Compose()
    checks: dict[str, Callable[[], Facts]] = {
        "compose_file": lambda: compose_file_is_valid(compose),
        "build_cpu": lambda: builds("cpu"),
        "curl": lambda: answers_curl(compose),
        "confined": lambda: confined(compose),
        "sigterm_under_load": lambda: loses_nothing_on_sigterm(compose),
        "full_queue": lambda: refuses_when_full(compose),
        "monitoring": lambda: monitored(compose),
    }
    if "training" not in skipped:
        checks |= {"build_training": lambda: builds("training"), "train": lambda: trains_and_reloads(compose)}
    if "gpu" not in skipped:
        checks |= {"build_gpu": lambda: builds("gpu"), "gpu_image": lambda: gpu_image_is_whole(compose)}
    seen: dict[str, Facts] = {}
    try:
        for name, check in checks.items():
            seen[name] = outcome_of(name, check)
    finally:
        compose.down()
    passed = all(facts["passed"] for facts in seen.values())
    engine = docker("version", "--format", "{{.Server.Version}}").strip()
    print(json.dumps({"engine": engine, "skipped": skipped, "checks": seen, "passed": passed}, indent=2))
    return 0 if passed else 1


def outcome_of(name: str, check: Callable[[], Facts]) -> Facts:
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        return {"passed": True, **check()}
    except CheckError as error:
        return {"passed": False, "why": str(error)}


if __name__ == "__main__":
    sys.exit(main())
