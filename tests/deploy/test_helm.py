"""The chart, rendered by the real helm and checked against the JSON schemas of Kubernetes itself.

`make test` fetches helm (deploy/helm/fetch_helm.py); the schemas come with kubernetes-validate, strict: an unknown or
misspelt field fails. ServiceMonitor belongs to the Prometheus operator and has no schema there, so its few fields are
compared one by one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from service.settings import Settings

CHART = Path(__file__).parents[2] / "deploy/helm/vqserve"
HELM = Path(sys.executable).with_name("helm")
OLDEST, NEWEST = "1.26", "1.37"
EVERYTHING = (
    *("--set", "autoscaling.enabled=true,serviceMonitor.enabled=true,apiKeysSecret=keys"),
    *("--set-json", 'settings={"VQSERVE_MAX_BODY_BYTES": 33554432, "VQSERVE_CORS_ORIGINS": "https://a,https://b"}'),
)
VARIANTS = {
    "cpu": (),
    "gpu": ("-f", str(CHART / "values-gpu.yaml")),
    "everything": EVERYTHING,
    "everything on a GPU": ("-f", str(CHART / "values-gpu.yaml"), *EVERYTHING),
}
Objects = dict[str, dict[str, Any]]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert HELM.exists(), f"{HELM} is missing: run `make test`, or python deploy/helm/fetch_helm.py {HELM}"
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)


def render(*arguments: str) -> Objects:
    done = helm("template", "vqserve", str(CHART), *arguments)
    assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    return {item["kind"]: item for item in objects}


def pod_of(objects: Objects) -> dict[str, Any]:
    pod: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return pod


def environment_of(objects: Objects) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in pod_of(objects)["containers"][0]["env"]}


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS.keys())
def test_helm_lints_it(arguments: tuple[str, ...]) -> None:
    done = helm("lint", "--strict", str(CHART), *arguments)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS.keys())
def test_kubernetes_accepts_every_object(arguments: tuple[str, ...], version: str) -> None:
    for kind, item in render(*arguments).items():
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(item, version, strict=True)


def test_the_schemas_refuse_a_misspelt_field() -> None:
    """The test above can fail."""
    objects = render()
    pod_of(objects)["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(objects["Deployment"], NEWEST, strict=True)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("autoscalling.enabled=true", "autoscalling"),
        ("rollingUpdate.maxSurg=1", "maxSurg"),
        ("resources.limit.memory=4Gi", "limit"),
        ("image.pullSecrets[0].nam=x", "nam"),
    ],
)
def test_a_misspelt_value_is_refused(given: str, named: str) -> None:
    done = helm("template", "vqserve", str(CHART), "--set", given)
    assert done.returncode != 0
    assert f"'{named}'" in done.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("podAnnotations.prometheus\\.io/scrape=true", "/podAnnotations/prometheus.io~1scrape"),
        ("nodeSelector.gpu=1", "/nodeSelector/gpu"),
        ("serviceMonitor.labels.release=1", "/serviceMonitor/labels/release"),
        ("drainSeconds=86401", "/drainSeconds"),
        ("graceSeconds=86401", "/graceSeconds"),
    ],
)
def test_what_kubernetes_or_the_service_would_refuse_is_refused(given: str, named: str) -> None:
    """`--set` makes true a truth value and 1 a number where Kubernetes takes only text: `--set-string` is for those."""
    done = helm("template", "vqserve", str(CHART), "--set", given)
    assert (done.returncode != 0, named in done.stderr) == (True, True), done.stderr
    if not named.endswith("Seconds"):
        assert helm("template", "vqserve", str(CHART), "--set-string", given).returncode == 0


def test_the_pod_has_no_rights() -> None:
    pod = pod_of(render())
    inside = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_service_of_the_same_name_does_not_set_the_port() -> None:
    """Kubernetes describes each Service to the pods as <NAME>_PORT=tcp://...: for `vqserve`, the setting's name."""
    objects = render()
    assert objects["Service"]["metadata"]["name"].upper() + "_PORT" == "VQSERVE_PORT"
    assert pod_of(objects)["enableServiceLinks"] is False


def test_kubernetes_waits_longer_than_the_service_drains() -> None:
    objects = render("--set", "drainSeconds=7,graceSeconds=90")
    environment = environment_of(objects)
    assert (environment["VQSERVE_DRAIN_S"], environment["VQSERVE_GRACE_S"]) == ("7", "90")
    assert pod_of(objects)["terminationGracePeriodSeconds"] > 97


def test_settings_reach_the_service_as_it_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(render(*EVERYTHING))
    environment["VQSERVE_API_KEYS"] = ""  # a Secret that is empty left the service open
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match="VQSERVE_API_KEYS is empty"):
        Settings()
    monkeypatch.setenv("VQSERVE_API_KEYS", "shop:first-key-1")
    settings = Settings()
    assert settings.max_body_bytes == 33554432
    assert settings.cors_origins == "https://a,https://b"
    known = {f"VQSERVE_{name.upper()}" for name in Settings.model_fields}
    assert set(environment) <= known


def test_the_service_may_listen_on_ipv6() -> None:
    """Where pods have such addresses only, the image's 0.0.0.0 answers nobody, and the chart refused another."""
    assert environment_of(render("--set-string", "settings.VQSERVE_HOST=::"))["VQSERVE_HOST"] == "::"


def test_the_gpu_values_ask_for_a_gpu_and_for_cuda() -> None:
    objects = render(*VARIANTS["gpu"])
    limits = pod_of(objects)["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    assert environment_of(objects)["VQSERVE_DEVICE"] == "cuda"
    assert "nvidia.com/gpu" not in pod_of(render())["containers"][0]["resources"]["limits"]


def test_the_autoscaler_alone_decides_the_replicas() -> None:
    """It did not see the load of containers, which waits for threads. Under overload hardly anything waits."""
    objects = render(*EVERYTHING)
    names = [entry["pods"]["metric"]["name"] for entry in objects["HorizontalPodAutoscaler"]["spec"]["metrics"]]
    assert names == ["vqserve_queued_pictures", "vqserve_queued_work", "vqserve_overloaded", "vqserve_slot_occupancy"]
    assert "replicas" not in objects["Deployment"]["spec"]
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter.yaml").read_text())
    assert [rule["name"]["as"] for rule in adapter["rules"]["custom"]] == names


def test_an_autoscaler_that_the_cluster_would_refuse_is_refused_before() -> None:
    values = "autoscaling.enabled=true,autoscaling.minReplicas=4,autoscaling.maxReplicas={}"
    done = helm("template", "vqserve", str(CHART), "--set", values.format(3))
    assert done.returncode != 0
    assert "autoscaling.minReplicas 4 is above autoscaling.maxReplicas 3" in done.stderr
    assert render("--set", values.format(4))["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 4


@pytest.mark.parametrize("surge", ["0", "0%"])
def test_a_rollout_that_the_cluster_would_refuse_is_refused_before(surge: str) -> None:
    """Where there is no room for one pod more, the first try leaves no pod to replace."""
    done = helm("template", "vqserve", str(CHART), "--set", f"rollingUpdate.maxSurge={surge}")
    assert done.returncode != 0
    assert "rollingUpdate.maxSurge and rollingUpdate.maxUnavailable are both 0" in done.stderr
    render("--set", f"rollingUpdate.maxSurge={surge},rollingUpdate.maxUnavailable=1")


@pytest.mark.parametrize(("given", "taken"), [("abc", False), ("-1", False), ("50", True), ("50%", True), ("0", True)])
def test_a_disruption_budget_is_a_number_or_a_percentage(given: str, taken: bool) -> None:
    """Any word was rendered, and refused by the cluster."""
    done = helm("template", "vqserve", str(CHART), "--set", f"podDisruptionBudget.maxUnavailable={given}")
    assert (done.returncode == 0) == taken, done.stderr
    assert taken or "/podDisruptionBudget/maxUnavailable" in done.stderr


def test_the_resources_may_be_left_out() -> None:
    """As Helm takes a default away; with `null` the template failed in its own words."""
    (container,) = render("--set", "resources=null")["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {}


def test_selectors_find_the_pods() -> None:
    objects = render(*EVERYTHING)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)


def test_prometheus_finds_the_service() -> None:
    monitor, service = (render(*EVERYTHING)[kind] for kind in ("ServiceMonitor", "Service"))
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s"}]
    assert service["spec"]["ports"][0]["name"] == "http"


def test_nothing_may_be_called_from_the_pods() -> None:
    policy = render()["NetworkPolicy"]["spec"]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])


def test_a_collector_may_be_let_out() -> None:
    rule = '[{"to": [{"namespaceSelector": {}}], "ports": [{"port": 4318}]}]'
    policy = render("--set-json", f"networkPolicy.egress={rule}")["NetworkPolicy"]
    kubernetes_validate.validate(policy, NEWEST, strict=True)
    assert policy["spec"]["egress"][0]["ports"] == [{"port": 4318}]


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_a_service_for_the_outside_is_reachable_from_there(kind: str) -> None:
    """No namespace selector lets in what does not come from a pod."""
    ingress = render("--set", f"service.type={kind}")["NetworkPolicy"]["spec"]["ingress"]
    assert ingress == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    assert render()["NetworkPolicy"]["spec"]["ingress"][0]["from"] == [{"namespaceSelector": {}}]
    chosen = ("--set", f"service.type={kind}", "--set-json", 'networkPolicy.from=[{"ipBlock": {"cidr": "10.0.0.0/8"}}]')
    assert render(*chosen)["NetworkPolicy"]["spec"]["ingress"][0]["from"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_a_start_may_take_as_long_as_a_reload() -> None:
    """After two minutes Kubernetes killed it, and TensorRT had to build its engines from the beginning."""
    probe = pod_of(render())["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= Settings.model_fields["reload_deadline_s"].default


DECIDED_BY_THE_CHART = ["PORT", "DEVICE", "DRAIN_S", "GRACE_S", "API_KEYS", "REQUIRE_API_KEYS"]


def test_the_chart_knows_every_setting_and_refuses_a_misspelt_one() -> None:
    """Any name that began as a setting's does was taken."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = [name.upper() for name in Settings.model_fields if name.upper() not in DECIDED_BY_THE_CHART]
    assert schema["properties"]["settings"]["propertyNames"]["enum"] == [f"VQSERVE_{name}" for name in names]
    done = helm("template", "vqserve", str(CHART), "--set", "settings.VQSERVE_MAX_BACTH=8")
    assert done.returncode != 0
    assert "VQSERVE_MAX_BACTH" in done.stderr


@pytest.mark.parametrize("name", DECIDED_BY_THE_CHART)
def test_a_setting_that_the_chart_decides_is_refused(name: str) -> None:
    """Twice in the environment, the last wins, against the probes and the grace period; keys belong into the Secret."""
    done = helm("template", "vqserve", str(CHART), "--set-string", f"settings.VQSERVE_{name}=1")
    assert done.returncode != 0
    assert f"VQSERVE_{name}" in done.stderr


def test_names_that_look_like_other_values_stay_names() -> None:
    """A release `on` had the label true, which Kubernetes refuses; a Secret `123` was a number."""
    values = ("--set-string", "apiKeysSecret=123,runtimeClassName=1e3")
    done = helm("template", "on", str(CHART), *values)
    deployment = next(one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Deployment")
    assert deployment["metadata"]["labels"]["app.kubernetes.io/instance"] == "on"
    pod = deployment["spec"]["template"]["spec"]
    secrets = [one["valueFrom"] for one in pod["containers"][0]["env"] if "valueFrom" in one]
    assert secrets == [{"secretKeyRef": {"name": "123", "key": "api-keys"}}]
    assert pod["runtimeClassName"] == "1e3"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("autoscaling=null", "autoscaling"),  # was a nil pointer
        ("drainSeconds=null", "drainSeconds"),  # was an empty setting
        ("podDisruptionBudget.maxUnavailable=150%", "maxUnavailable"),
        ("rollingUpdate.maxUnavailable=101%", "maxUnavailable"),
    ],
)
def test_a_value_that_kubernetes_would_refuse_is_named(value: str, said: str) -> None:
    done = helm("template", "vqserve", str(CHART), "--set", value)
    assert done.returncode != 0
    assert said in done.stderr and "nil pointer" not in done.stderr


def test_the_notes_ask_with_a_key_where_one_is_needed() -> None:
    told = [
        helm("install", "vqserve", str(CHART), "--dry-run=client", *more).stdout
        for more in ((), ("--set", "apiKeysSecret=keys"))
    ]
    assert ["Authorization: Bearer KEY" in notes for notes in told] == [False, True]
    assert all("curl " in notes for notes in told)
