"""Prometheus rules and the Grafana dashboard: every metric that they name is one that the service has.

`make check-containers` runs promtool and a real Prometheus on the same files.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from service.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS, GRAFANA = ROOT / "docker/prometheus", ROOT / "docker/grafana"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def known_series() -> set[str]:
    """The series names that a scrape of the service has."""
    families = list(Metrics().registry.collect())
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((GRAFANA / "dashboards/vqserve.json").read_text())
    return board


def expressions() -> Iterator[str]:
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for rule in yaml.safe_load((ROOT / "deploy/helm/prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        yield rule["seriesQuery"]
        yield rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"])


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_the_service_has_the_metric(expression: str) -> None:
    named = set(re.findall(r"\bvqserve_[a-z_]+", expression))
    assert named or "up{" in expression
    assert named <= known_series()


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])
    families = {family.name for family in Metrics().registry.collect()}
    assert {name for name in families if name not in shown} == set()


def test_probes_and_scrapes_are_left_out_everywhere() -> None:
    """Those of /v2 were on the dashboard, each answered in no time."""
    left_out = {route for expression in expressions() for route in re.findall(r'route!~"([^"]+)"', expression)}
    assert left_out == {"/metrics|/healthz|/readyz|/v2/health/.*"}


def test_alerts_say_what_to_do() -> None:
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert {"summary", "action"} <= rule["annotations"].keys()
            assert rule["labels"]["severity"] in {"page", "ticket"}


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", PROMETHEUS / "alerts.yml")


@pytest.mark.parametrize(
    ("pictures_a_minute", "divergence", "fires"),
    [(10, 0.65, True), (10, 0.2, False), (5, 0.65, False), (0, 0.65, False)],
)
def test_drift_is_told_where_there_are_pictures(
    tmp_path: Path, pictures_a_minute: int, divergence: float, fires: bool
) -> None:
    """It used to be told of the first few pictures, for as long as nobody sent others, and of those with `?effort=`
    never. Those of another model do not count."""
    series = {
        f'vqserve_picture_pixels_count{{instance="a", model="{model}"}}': f"0+{count}x120"
        for model, count in {"photos": pictures_a_minute, "mnist": 100}.items()
    }
    series['vqserve_traffic_divergence{instance="a", model="photos"}'] = f"{divergence}x120"
    # Another instance, that few pictures have come to: what it says of them is no sign beside the traffic of the first.
    series['vqserve_picture_pixels_count{instance="b", model="photos"}'] = "4x120"
    series['vqserve_traffic_divergence{instance="b", model="photos"}'] = "0.6x120"
    firing = 'count by (model) (ALERTS{alertname="VqserveTrafficDrift", alertstate="firing"})'
    samples = [{"labels": '{model="photos"}', "value": 1}] if fires else []
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": "100m", "exp_samples": samples}],
    }
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", tmp_path / "tests.yml")


@pytest.mark.parametrize(("seconds", "fires"), [(30, False), (60, False), (600, True)])
@pytest.mark.parametrize(("every", "route"), [(5, "/readyz"), (15, "/readyz"), (5, "/encode"), (15, "/encode")])
def test_an_outage_that_has_healed_pages_nobody(
    tmp_path: Path, every: int, route: str, seconds: int, fires: bool
) -> None:
    """One of ten seconds did, five minutes later: that long the mean of five minutes was above the threshold."""
    failing, after = seconds // every, 1200 // every
    name = f'vqserve_requests_total{{instance="a", route="{route}", status="%s"}}'
    series = {name % "503": f"0x{300 // every} 1+1x{failing} {failing + 1}x{after}", name % "200": f"0+1x{2 * after}"}
    alert = "VqserveNotReady" if route == "/readyz" else "VqserveErrors"
    ever = f'count(count_over_time(ALERTS{{alertname="{alert}", alertstate="firing"}}[30m]))'
    test = {
        "interval": f"{every}s",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [{"expr": ever, "eval_time": "24m", "exp_samples": [{"value": 1}] if fires else []}],
    }
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", tmp_path / "tests.yml")


@pytest.mark.parametrize(
    ("route", "alerts"),
    [("/encode", {"VqserveErrors"}), ("/readyz", {"VqserveNotReady"}), ("/metrics", set())],
)
def test_failures_are_told_however_many_probes_succeed(tmp_path: Path, route: str, alerts: set[str]) -> None:
    """Three failures a minute of three, beside two hundred scrapes and probes, which used to hide them."""
    given = [(route, "503", 3), ("/metrics", "200", 100), ("/healthz", "200", 100)]
    series = [
        {"series": f'vqserve_requests_total{{instance="a", route="{path}", status="{status}"}}', "values": f"0+{n}x30"}
        for path, status, n in given
    ]
    tests = [
        {
            "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
            "eval_time": "20m",
            "exp_samples": samples,
        }
        for name in ("VqserveErrors", "VqserveNotReady")
        for samples in ([{"value": 1}] if name in alerts else [],)
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", tmp_path / "tests.yml")


@pytest.mark.parametrize(("starts", "fires"), [(3, False), (4, True)])
@pytest.mark.parametrize(("every", "life"), [(60, "{}x4"), (60, "{} {} _"), (60, "{} _ _"), (15, "{} _ _")])
def test_a_process_that_starts_again_and_again_is_told(
    tmp_path: Path, every: int, life: str, starts: int, fires: bool
) -> None:
    """One that ends because of its engine takes the count of deaths with it, before anybody has read it. And whoever
    was scraped only once was not told from the one before it."""
    lives = " ".join(life.replace("{}", f"{1_796_000_000 + 90 * start}.25") for start in range(starts))
    ever = 'count(count_over_time(ALERTS{alertname="VqserveRestarts", alertstate="firing"}[30m]))'
    test = {
        "interval": f"{every}s",
        "input_series": [{"series": 'vqserve_start_time_seconds{instance="a"}', "values": lives}],
        "promql_expr_test": [{"expr": ever, "eval_time": "25m", "exp_samples": [{"value": 1}] if fires else []}],
    }
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", tmp_path / "tests.yml")


def test_new_pods_are_no_restarts(tmp_path: Path) -> None:
    """Two rollouts within half an hour, of three pods each; one of the first has started a second time."""
    first = {f"a{pod}": f"{1_796_000_000 + pod}x10" for pod in range(3)} | {"a2": "1796000002x5 1796000300x4"}
    second = {f"b{pod}": f"_x10 {1_796_000_600 + pod}x30" for pod in range(3)}
    starts = {f'vqserve_start_time_seconds{{instance="{pod}"}}': values for pod, values in (first | second).items()}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in starts.items()],
        "promql_expr_test": [
            {"expr": 'count(count_over_time(ALERTS{alertname="VqserveRestarts"}[40m]))', "eval_time": "40m"}
        ],
    }
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", tmp_path / "tests.yml")


@pytest.mark.parametrize("every", [15, 60])
@pytest.mark.parametrize("deaths", [2, 3])
def test_workers_that_die_soon_after_the_start_are_told_from_the_third_on(
    tmp_path: Path, every: int, deaths: int
) -> None:
    """Two were extrapolated to nearly three, as long as a service had been scraped a few times only."""
    ever = 'count(count_over_time(ALERTS{alertname="VqserveWorkersDie", alertstate="firing"}[30m]))'
    values = f"0 1 {deaths}x{1500 // every}"
    test = {
        "interval": f"{every}s",
        "input_series": [{"series": 'vqserve_worker_deaths_total{instance="a"}', "values": values}],
        "promql_expr_test": [{"expr": ever, "eval_time": "20m", "exp_samples": [{"value": 1}] if deaths == 3 else []}],
    }
    rules = {"rule_files": [str(PROMETHEUS / "alerts.yml")], "evaluation_interval": "5s", "tests": [test]}
    (tmp_path / "tests.yml").write_text(json.dumps(rules))
    promtool("test", "rules", tmp_path / "tests.yml")


@pytest.mark.parametrize(("deaths", "fires"), [(2, False), (3, True)])
def test_workers_that_die_again_and_again_are_told(tmp_path: Path, deaths: int, fires: bool) -> None:
    """The counts of several workers outlive each of them, so that VqserveRestarts sees none of it."""
    values = " ".join(f"{died}x3" for died in range(deaths + 1)) + f" {deaths}x20"
    firing = 'count(ALERTS{alertname="VqserveWorkersDie", alertstate="firing"})'
    test = {
        "interval": "1m",
        "input_series": [{"series": 'vqserve_worker_deaths_total{instance="a"}', "values": values}],
        "promql_expr_test": [{"expr": firing, "eval_time": "29m", "exp_samples": [{"value": 1}] if fires else []}],
    }
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", tmp_path / "tests.yml")


@pytest.mark.parametrize(("minutes", "fires"), [(4, False), (6, True)])
def test_a_worker_that_cannot_be_replaced_is_told(tmp_path: Path, minutes: int, fires: bool) -> None:
    """Its death is counted only once another serves: half of a service was gone for days, and nothing showed it."""
    firing = 'count(ALERTS{alertname="VqserveWorkersMissing", alertstate="firing"})'
    series = {
        'vqserve_configured_workers{instance="a"}': "2x30",
        'vqserve_workers{instance="a"}': f"2x9 1x{minutes} 2x20",
        'vqserve_configured_workers{instance="b"}': "1x30",
        'vqserve_workers{instance="b"}': "1x30",
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": "15m", "exp_samples": [{"value": 1}] if fires else []},
            {"expr": firing, "eval_time": "20m", "exp_samples": []},
        ],
    }
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}))
    promtool("test", "rules", tmp_path / "tests.yml")


def test_settings_and_metrics_that_alerts_name_exist() -> None:
    text = (PROMETHEUS / "alerts.yml").read_text()
    names = {name.lower() for name in re.findall(r"VQSERVE_([A-Z_]+)", text)}
    assert names <= Settings.model_fields.keys()
    families = {family.name for family in Metrics().registry.collect()}
    metrics = {name.removesuffix("_total") for name in re.findall(r"\bvqserve_[a-z_]+", text)}
    assert {name for name in metrics if not any(name.startswith(family) for family in families)} == set()


@pytest.mark.parametrize(
    ("alert", "words"),
    [
        ("VqserveErrors", "deadline-passed"),  # the reason of most 5xx under load
        ("VqserveErrors", "slow uploads"),  # which run into the same deadline
        ("VqserveNotReady", "restart the service"),  # what hangs in a run is ended by nothing, also not by Kubernetes
        ("VqserveDown", "vqserve-metrics-*"),  # the service answers, and its last log lines say nothing
        ("VqserveReloadFailed", "open the engine again"),  # nobody has brought a new bundle
    ],
)
def test_the_action_covers_what_the_expression_does(alert: str, words: str) -> None:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    (action,) = (r["annotations"]["action"] for group in groups for r in group["rules"] if r["alert"] == alert)
    assert words in action


def test_grafana_finds_its_files() -> None:
    """The provisioned paths are those that the compose file mounts, and every panel uses the provisioned source."""
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/vqserve.yml").read_text())["providers"]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = dict(entry.split(":")[:2] for entry in services["grafana"]["volumes"])
    assert mounts["./docker/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./docker/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in dashboard()["panels"]} == {source["uid"]}


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        area = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & area
        cells |= area
