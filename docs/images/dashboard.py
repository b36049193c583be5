"""The Grafana dashboard with real data, drawn without Grafana: `python -m docs.images.dashboard [--seconds 150]`.

In: the dashboard that compose provisions, models/mnist and models/photos, Debian's prometheus and chromium. Out:
dashboard.png. The service runs under load (docs/images/dashboard_load.py), Prometheus scrapes it every second, and what
Prometheus answers to each panel's own queries is laid out as the dashboard says (docs/images/dashboard_page.py).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.server_process import free_port, our_server, running
from docs.images.dashboard_load import SETTINGS, apply
from docs.images.dashboard_page import WIDTH, Series, Span, expression, page
from docs.images.draw import FOLDER, ROOT
from tests.browser.chromium import browsing, chromium

BOARD = ROOT / "docker" / "grafana" / "dashboards" / "vqserve.json"
PICTURE = FOLDER / "dashboard.png"
BUNDLES = ("models/mnist", "models/photos")
WINDOW, STEP_S = "10s", 1.0  # of rates; of scrapes and of the points of a line
COLOURS = 256  # of the PNG, a third of the bytes of all of them
CAPTION = (
    "The queries and the layout of the provisioned dashboard, drawn without Grafana: a real Prometheus scraped the "
    f"service under made-up load; rates over {WINDOW}. Not a benchmark."
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the Grafana dashboard with real data.")
    parser.add_argument("--seconds", type=float, default=150, help="of load")
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    html = recorded(board, parser.parse_args().seconds)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder) / "dashboard.html"
        path.write_text(html, encoding="utf-8")
        with browsing(browser, path.as_uri(), width=WIDTH, dark=True) as opened:
            shot = opened.screenshot(full_page=True)
    with Image.open(io.BytesIO(shot)) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


def recorded(board: Mapping[str, Any], seconds: float) -> str:
    """The page of `seconds` of load.

    Raises:
        EmptyPanel: a query of the dashboard has no value.
    """
    bundles = Path(",".join(str(ROOT / bundle) for bundle in BUNDLES))
    with (
        our_server(bundles, **SETTINGS) as server,
        prometheus(f"{server.host}:{server.port}") as url,
    ):
        start = time.time()
        statuses = asyncio.run(apply(server.url, seconds))
        print(f"answers by status: {dict(sorted(statuses.items()))}", file=sys.stderr)
        if broken := {status for status in statuses if status >= 500}:
            raise SystemExit(f"the service answered {sorted(broken)}: that is not what the picture is to show")
        span = Span(start, time.time(), STEP_S)
        return page(board, asking(url, span), span, CAPTION)


def asking(url: str, span: Span) -> Callable[[Mapping[str, Any]], list[Series]]:
    """What Prometheus answers to a target: over the span, or at its end where the target is `instant`."""

    def answer(target: Mapping[str, Any]) -> list[Series]:
        query = {"query": expression(target, WINDOW)}
        path, times = "query_range", {"start": str(span.start), "end": str(span.end), "step": str(span.step)}
        if target.get("instant"):
            path, times = "query", {"time": str(span.end)}
        return series(httpx.get(f"{url}/api/v1/{path}", params=query | times, trust_env=False).json())

    return answer


def series(answer: Mapping[str, Any]) -> list[Series]:
    """Of the JSON of Prometheus, a vector or a matrix."""
    if answer["status"] != "success":
        raise ValueError(f"Prometheus refused a query of the dashboard: {answer['error']}")
    found = answer["data"]["result"]
    points = (one["values"] if "values" in one else [one["value"]] for one in found)
    return [
        Series(one["metric"], [(float(at), float(value)) for at, value in values])
        for one, values in zip(found, points, strict=True)
    ]


@contextmanager
def prometheus(target: str) -> Iterator[str]:
    """One that scrapes `target`; its address."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is not installed: apt-get install prometheus")
    scrape = {"job_name": "vqserve", "scrape_interval": f"{STEP_S:g}s", "static_configs": [{"targets": [target]}]}
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "prometheus.yml"
        configuration.write_text(json.dumps({"scrape_configs": [scrape]}))  # YAML reads JSON
        port = free_port()
        places = [f"--config.file={configuration}", f"--storage.tsdb.path={folder}/data"]
        command = [program, *places, f"--web.listen-address=127.0.0.1:{port}"]
        with running(command, port, "/-/ready", {}) as server:
            yield server.url


if __name__ == "__main__":
    main()
