"""/metrics as others see it: promtool's linter, a real Prometheus that scrapes it, and two workers behind one page."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.telemetry.metrics import Metrics
from tests.conftest import PICTURES
from tests.service.conftest import Generating
from tests.service.serving import answers, busy, free_port, serving, until

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PNG = {"content-type": "image/png"}
ALERTS = Path(__file__).parents[3] / "docker" / "prometheus" / "alerts.yml"
WORKERS = 2
SLOTS = 8
MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="module")
def two_workers(generating: Generating) -> Iterator[str]:
    """The address of a service of two processes, each with a prior."""
    variables = {"VQSERVE_WORKERS": str(WORKERS), "VQSERVE_MAX_GENERATE_BATCH": str(SLOTS)}
    with serving(*generating.folders, **variables) as (_, address):
        yield address


def total(address: str, sample: str, **labels: str) -> float:
    """The sum of a sample over the label sets that have these labels."""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    found = [one for family in families for one in family.samples if one.name == sample]
    return sum(one.value for one in found if labels.items() <= one.labels.items())


NEW_CONNECTIONS = httpx.Limits(max_keepalive_connections=0)


def worker_of(response: httpx.Response) -> str:
    """The part of a made request id that is the process's own."""
    return response.headers["x-request-id"].partition("-")[0]


def everything(service: httpx.Client) -> list[httpx.Response]:
    """A picture encoded to codes and to a container, both decoded, samples drawn and scored."""
    as_container = {"accept": "application/vnd.vqserve.codes"}
    encoded = service.post("/encode", content=DIGIT, headers=PNG)
    container = service.post("/encode", content=DIGIT, headers={**PNG, **as_container})
    asked = {"n": 2, "seed": 7, "label": 1}
    return [
        encoded,
        container,
        service.post("/decode", json={"codes": encoded.json()["codes"]}),
        service.post("/decode", content=container.content, headers={"content-type": as_container["accept"]}),
        service.post("/generate", json=asked, headers={"accept": "application/x-npy"}),
        service.post("/score", content=DIGIT, headers=PNG),
    ]


def test_two_workers_do_everything_alike_and_count_together(two_workers: str) -> None:
    """Enough rounds at once that both processes take part; the page then holds all of it, whoever answers."""
    rounds = 12
    until(lambda: total(two_workers, "vqserve_generate_slots", model="digits") == SLOTS * WORKERS, 60)
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=two_workers, limits=NEW_CONNECTIONS) as service:
        results = list(pool.map(everything, [service] * rounds))
    assert {response.status_code for responses in results for response in responses} == {200}
    assert len({worker_of(response) for responses in results for response in responses}) == WORKERS
    for responses in zip(*results, strict=True):
        assert len({response.content for response in responses}) == 1, "the workers differ"
    drawn = np.load(BytesIO(results[0][4].content))
    assert (drawn.shape, drawn.dtype) == ((2, 28, 28, 1), np.uint8)
    for _ in range(4):  # whichever worker answers
        requests = {
            route: total(two_workers, "vqserve_requests_total", route=route, status="200")
            for route in ("/encode", "/decode", "/generate", "/score")
        }
        assert requests == {"/encode": 2 * rounds, "/decode": 2 * rounds, "/generate": rounds, "/score": rounds}
        assert total(two_workers, "vqserve_batch_pictures_sum", model="digits", stage="encode") == 3 * rounds
        assert total(two_workers, "vqserve_generate_rows_total", model="digits") == 2 * 7 * rounds
        assert total(two_workers, "vqserve_generate_samples_in_flight") == 0
        assert total(two_workers, "vqserve_queued_pictures") == 0
        assert total(two_workers, "vqserve_model_info", model="digits") == 1


def test_promtool_finds_nothing_to_complain_about(two_workers: str) -> None:
    promtool = _installed("promtool")
    httpx.post(f"{two_workers}/encode", content=DIGIT, headers=PNG)
    page = httpx.get(f"{two_workers}/metrics").content
    result = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_prometheus_scrapes_what_the_service_counted(two_workers: str, tmp_path: Path) -> None:
    httpx.post(f"{two_workers}/encode", content=DIGIT, headers=PNG)
    expected = total(two_workers, "vqserve_requests_total", route="/encode")
    with _prometheus(two_workers.removeprefix("http://"), tmp_path) as prometheus:

        def value(query: str) -> float | None:
            found = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}).json()["data"]["result"]
            return float(found[0]["value"][1]) if found else None

        until(lambda: value('up{job="vqserve"}') == 1, 20)
        until(lambda: value('sum(vqserve_requests_total{route="/encode"})') == expected, 20)
        middle = "histogram_quantile(0.5, sum by (le) (vqserve_request_duration_seconds_bucket{route='/encode'}))"
        assert 1e-5 < (value(middle) or 0) < 1
        assert value("count(vqserve_model_info)") == 3
        rules = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        until(lambda: all(rule["health"] != "err" for group in rules for rule in group["rules"]))
        targets = httpx.get(f"{prometheus}/api/v1/targets").json()["data"]["activeTargets"]
        assert [target["lastError"] for target in targets] == [""]


def _installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: apt-get install prometheus")
    return found


@contextmanager
def _prometheus(target: str, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes `target` four times a second and knows the alert rules that ship."""
    address = f"127.0.0.1:{free_port()}"
    configuration = {
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "vqserve", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))  # YAML reads JSON
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command = [_installed("prometheus"), *options, f"--web.listen-address={address}", "--log.level=warn"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(f"http://{address}/-/ready"), 30)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


class _Gate:
    """A session that waits until it may run."""

    def __init__(self, session: Any) -> None:
        self.session, self.open = session, threading.Event()

    def run(self, *arguments: Any) -> Any:
        self.open.wait(10)
        return self.session.run(*arguments)


def test_the_page_shows_the_queue_as_it_is_when_it_is_asked_for(make_client: MakeClient) -> None:
    """It used to be written after each run only, so that a stalled engine showed the queue of before."""
    client = make_client(inline_ms=0)
    engine = client.app.state.service.models.get("tiny").engine  # type: ignore[attr-defined]
    engine._encoder = gate = _Gate(engine._encoder)

    def queued() -> str:
        page = client.get("/metrics").text
        return next(line for line in page.splitlines() if line.startswith('vqserve_queued_pictures{model="tiny"}'))

    def shows(count: int) -> Callable[[], bool]:
        return lambda: queued().endswith(f" {count}.0")

    with ThreadPoolExecutor(4) as pool:
        for waiting in range(4):  # the first one runs
            pool.submit(client.post, "/encode", content=DIGIT, headers=PNG)
            until(shows(waiting))
            until(lambda: busy(engine._encode))
        assert shows(3)()
        gate.open.set()
    assert shows(0)()


def test_the_page_takes_a_tenth_of_the_time_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is needed to ask: eight strangers without pause made the others wait for 150 ms."""
    now, rendered = 0.0, 0

    def render(_: Metrics) -> bytes:
        nonlocal now, rendered
        now, rendered = now + 0.01, rendered + 1
        return b"%d" % rendered

    monkeypatch.setattr("service.telemetry.metrics.perf_counter", lambda: now)
    monkeypatch.setattr(Metrics, "_render", render)
    metrics = Metrics()
    while now < 100:
        now += 0.001
        assert metrics.render() == b"%d" % rendered
    assert rendered * 0.01 == pytest.approx(100 * 0.1 + 0.5, abs=0.05)


def test_every_page_of_a_process_says_when_it_was_started(make_client: MakeClient) -> None:
    before, client = time.time(), make_client()
    pages = [client.get("/metrics").text for _ in range(2)]
    lines = {line for page in pages for line in page.splitlines() if line.startswith("vqserve_start_time_seconds ")}
    (started,) = (float(line.split()[1]) for line in lines)
    assert before <= started <= time.time()


def test_a_closed_engine_leaves_no_queue_on_the_page(make_client: MakeClient) -> None:
    client = make_client(inline_ms=0)
    engine = client.app.state.service.models.get("tiny").engine  # type: ignore[attr-defined]
    engine._encoder = gate = _Gate(engine._encoder)
    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(client.post, "/encode", content=DIGIT, headers=PNG)]
        until(lambda: busy(engine._encode))  # the others wait behind it, and not in one batch with it
        sent += [pool.submit(client.post, "/encode", content=DIGIT, headers=PNG) for _ in range(2)]
        until(lambda: 'vqserve_queued_pictures{model="tiny"} 2.0' in client.get("/metrics").text)
        client.portal.call(engine.close, "The engine has failed.")  # type: ignore[union-attr]
        assert 'vqserve_queued_pictures{model="tiny"} 0.0' in client.get("/metrics").text
        gate.open.set()
    assert {future.result().status_code for future in sent} == {503}


def test_an_answer_to_head_sends_no_body(make_client: MakeClient) -> None:
    client = make_client()
    assert int(client.head("/models").headers["content-length"]) > 0
    assert "vqserve_sent_bytes_total 0.0" in client.get("/metrics").text
