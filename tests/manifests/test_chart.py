"""The chart as `helm` renders it: valid, restricted, one owner per object, refused in words."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from linnet.errors import RolloutError
from linnet.inference.answers import Rule
from linnet.inference.metrics import Metrics, ModelMetrics
from linnet.inference.settings import ServeSettings
from linnet.rollout.cluster import Cluster
from linnet.rollout.preflight import require_access
from linnet.rollout.route_split import RouteSplit
from linnet.rollout.settings import RolloutSettings
from linnet.rollout.traffic import KServeCanary
from linnet.stores.registry import RegisteredRelease
from linnet.triggers.exposition import drift_metrics, run_metrics
from tests.manifests import tools
from tests.manifests.policies import Network, Pod
from tests.manifests.schemas import Manifest, pods, problems, read, unrestricted
from tests.serving.conftest import launch
from tests.serving.tiny_release import write_release

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "linnet"
TEMPLATES = sorted(path.stem for path in CHART.rglob("templates/**/*.yaml"))
# What a platform does in its namespaces.
DENY = {
    "kind": "NetworkPolicy",
    "metadata": {"namespace": "serving"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
}
# Namespace, API group, verb, resource.
Asked = tuple[str, str, str, str]
TEN = {
    "release__version": "v1",
    "canary__version": "v2",
    "canary__trafficPercent": "10",
    "canary__minReplicas": "1",
}
PAGE = {"release__version": "v1", "page__enabled": "true"}
CASES = ("", *sorted(path.name for path in (CHART / "ci").glob("*-values.yaml")))


@pytest.mark.parametrize("case", CASES)
def test_it_lints(case: str) -> None:
    helm("lint", "--strict", "--kube-version", "1.34.0", str(CHART), *_values(case))


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_valid_and_in_a_namespace_of_its_own(case: str) -> None:
    manifests = rendered(case)
    assert [problem for manifest in manifests for problem in problems(manifest)] == []
    names = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in manifests
    ]
    assert len(set(names)) == len(names)
    assert {namespace for kind, namespace, _ in names if kind != "ClusterServingRuntime"} <= {
        "serving",
        "kserve",
    }


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_restricted_pinned_and_bounded(case: str) -> None:
    found = [(one["kind"], pod) for one in rendered(case) for pod in pods(one)]
    assert {kind for kind, _ in found} >= {"Pod"}
    for _, pod in found:
        assert unrestricted(pod) == []
        for container in pod["containers"]:
            assert re.search(r":[\w.-]+$", container["image"])
            assert not container["image"].endswith(":latest")
            assert container["resources"].keys() == {"requests", "limits"}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_version_is_the_project_s() -> None:
    (chart,) = read(CHART / "Chart.yaml")
    assert chart["appVersion"] == version("linnet")


def test_the_cases_render_every_template() -> None:
    sources = "".join(helm_template(case) for case in CASES)
    assert {
        Path(path).stem for path in re.findall(r"# Source: linnet/templates/(\S+)", sources)
    } == set(TEMPLATES)


def test_servingruntime_is_the_plain_one() -> None:
    (plain,) = read(ROOT / "serving" / "runtime.yaml")
    (ours,) = kind("ClusterServingRuntime", runtime__scope="Cluster")
    (container,) = ours["spec"]["containers"]
    assert container.pop("imagePullPolicy") == "IfNotPresent"
    assert ours["spec"] == plain["spec"]
    assert ours["metadata"]["name"] == plain["metadata"]["name"]


def test_servingruntime_runs_where_and_as_the_values_say() -> None:
    (runtime,) = kind("ClusterServingRuntime", case="rollout-values.yaml")
    (container,) = runtime["spec"]["containers"]
    assert container["image"] == "docker.io/acme/serving:4f723cd0aa11"
    assert container["args"][-2:] == ["--set=max_batch=16", "/mnt/models"]
    assert runtime["spec"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert runtime["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert kind("ServingRuntime", runtime__create="false") == []


def test_servingruntime_keeps_a_prediction_log_where_it_is_asked_to() -> None:
    def container(**values: str) -> dict[str, Any]:
        found = [one for one in rendered("", **values) if one["kind"] == "ServingRuntime"]
        return dict(found[0]["spec"]["containers"][0])

    assert not [each for each in container()["args"] if "prediction_log" in each]
    assert not [each for each in container()["env"] if each["name"].startswith("AWS")]
    keeping = container(
        runtime__predictionLog__to="s3://linnet/log",
        runtime__predictionLog__pictures="thumbnail",
        runtime__feedback="true",
    )
    given = [each.removeprefix("--set=") for each in keeping["args"] if "--set=" in each]
    settings = ServeSettings.load(None, tuple(given))
    assert settings.feedback
    assert settings.prediction_log.to == "s3://linnet/log"
    assert settings.prediction_log.pictures == "thumbnail"
    assert {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"} <= {each["name"] for each in keeping["env"]}


def test_servingruntime_opens_one_port_for_knative() -> None:
    (runtime,) = kind("ServingRuntime", case="knative-values.yaml")
    assert [port["name"] for port in runtime["spec"]["containers"][0]["ports"]] == ["http1"]


def test_inferenceservice_belongs_to_the_rollout() -> None:
    assert kind("InferenceService") == []
    assert len(kind("Job")) == 1
    assert kind("Job", rollout__enabled="false") == []


def test_inferenceservice_is_the_plain_one_when_the_chart_owns_it() -> None:
    (plain,) = read(ROOT / "serving" / "inferenceservice.yaml")
    (ours,) = kind("InferenceService", rollout__enabled="false")
    assert ours["spec"] == plain["spec"]
    annotations = dict(ours["metadata"]["annotations"])
    assert annotations.pop("helm.sh/resource-policy") == "keep"
    assert annotations == plain["metadata"]["annotations"]


def test_inferenceservice_has_the_canary_that_the_patches_make() -> None:
    (ours,) = kind("InferenceService", case="by-hand-values.yaml")
    patch = yaml.safe_load((ROOT / "serving/canary/1-dark.yaml").read_text("utf-8"))
    (canary,) = patch[-1]["value"]
    assert ours["spec"]["canary"] == [{**canary, "trafficPercent": 10}]


def test_inferenceservice_in_knative_gives_the_new_revision_its_share() -> None:
    (service,) = kind("InferenceService", case="knative-values.yaml")
    predictor = service["spec"]["predictor"]
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert predictor["canaryTrafficPercent"] == 10
    assert predictor["model"]["storageUri"] == "s3://linnet/releases/flowers/v2"
    assert "name" not in predictor
    assert "canary" not in service["spec"]


def test_httproute_has_the_weights_of_the_canary() -> None:
    (route,) = kind("HTTPRoute", case="by-hand-values.yaml")
    assert route["spec"]["hostnames"] == ["flowers.example.org"]
    assert [
        [(backend["name"], backend["port"], backend["weight"]) for backend in rule["backendRefs"]]
        for rule in route["spec"]["rules"]
    ] == [
        [("flowers-v1-predictor", port, 90), ("flowers-v2-predictor", port, 10)]
        for port in (8081, 80)
    ]
    assert kind("HTTPRoute", case="route-values.yaml") == []


def test_serviceaccount_may_be_made_here() -> None:
    (account,) = (
        one
        for one in kind("ServiceAccount", case="by-hand-values.yaml")
        if one["metadata"]["name"] == "linnet-models"
    )
    assert account["automountServiceAccountToken"] is False
    assert account["secrets"] == [{"name": "linnet-s3"}]


@pytest.mark.parametrize("case", ["", "rollout-values.yaml", "route-values.yaml"])
def test_rollout_job_has_settings_that_the_rollout_takes(case: str, tmp_path: Path) -> None:
    (job,) = kind("Job", case=case)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (settings,) = (one for one in kind("ConfigMap", case=case) if "rollout.yaml" in one["data"])
    path = tmp_path / "rollout.yaml"
    path.write_text(settings["data"]["rollout.yaml"], encoding="utf-8")
    RolloutSettings.load(path)
    command = [
        str(path) if word == "/etc/linnet/rollout.yaml" else word for word in container["command"]
    ]
    asked = subprocess.run(
        [Path(sys.executable).with_name("linnet"), *command[1:], "--workspace", str(tmp_path)],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 1, asked.stderr
    assert "KUBECONFIG" in asked.stderr


def test_rollout_job_is_another_one_only_for_another_rollout() -> None:
    def name(**values: str) -> str:
        (job,) = kind("Job", **values)
        return str(job["metadata"]["name"])

    assert name() == name(podDisruptionBudget__enabled="false", runtime__args="{--set=max_batch=8}")
    others = {
        name(),
        name(release__version="v2"),
        name(images__tag="4f723cd0aa11"),
        name(rollout__attempt="2"),
        name(rollout__settings__dark="false"),
    }
    assert len(others) == 5


def test_no_rollout_job_without_a_version() -> None:
    assert [one for one in rendered("") if one["kind"] == "Job"] == []


def test_rollout_job_ends_when_the_evidence_says_so() -> None:
    (job,) = kind("Job")
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 3]}} in rules


@pytest.mark.parametrize(
    ("case", "traffic"), [("", KServeCanary), ("route-values.yaml", RouteSplit)]
)
def test_rollout_rbac_is_what_a_rollout_asks_for(case: str, traffic: Any) -> None:
    allowed = _allowed(case)
    asked: set[Asked] = set()
    settings = RolloutSettings(namespace="serving")
    with _reviews(allowed, asked) as cluster:
        require_access(cluster, settings, traffic(cluster, "flowers", settings).needs)
    assert asked == allowed
    with (
        _reviews(allowed - {("serving", "", "list", "pods")}, set()) as cluster,
        pytest.raises(RolloutError, match="list pods in namespace serving"),
    ):
        require_access(cluster, settings, traffic(cluster, "flowers", settings).needs)


def test_rollout_rbac_binds_to_the_job_alone() -> None:
    bindings = kind("RoleBinding")
    roles = kind("Role")
    assert {
        (one["metadata"]["namespace"], one["roleRef"]["name"], one["subjects"][0]["name"])
        for one in bindings
    } == {
        (role["metadata"]["namespace"], role["metadata"]["name"], "linnet-rollout-flowers")
        for role in roles
    }
    (job,) = kind("Job")
    account = job["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == "linnet-rollout-flowers"


def test_servicemonitor_finds_champion_and_candidate() -> None:
    (monitor,) = kind("ServiceMonitor", case="rollout-values.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == {
        "serving.kserve.io/inferenceservice": "roses",
        "component": "predictor",
    }
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert kind("ServiceMonitor") == []


def test_prometheusrule_is_a_configmap_without_the_operator() -> None:
    (with_operator,) = kind("PrometheusRule", case="rollout-values.yaml", release__model="flowers")
    (without,) = (one for one in kind("ConfigMap") if "flowers.yaml" in one["data"])
    plain = without["data"]["flowers.yaml"].replace('"default"', '"serving"')
    assert with_operator["spec"] == yaml.safe_load(plain)


def test_prometheusrule_fires_when_it_should(tmp_path: Path) -> None:
    promtool = _tool("promtool")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": _groups()}), encoding="utf-8")
    tests = Path(__file__).with_name("rules_test.yaml")
    (tmp_path / tests.name).write_text(tests.read_text("utf-8"), encoding="utf-8")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", tests.name]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_in_the_runbook() -> None:
    alerts = [rule["alert"] for group in _groups() for rule in group["rules"]]
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", runbook, re.MULTILINE) == alerts
    tests = yaml.safe_load(Path(__file__).with_name("rules_test.yaml").read_text("utf-8"))
    assert {
        test["alertname"] for case in tests["tests"] for test in case["alert_rule_test"]
    } == set(alerts)
    for group in _groups():
        for rule in group["rules"]:
            link = rule["annotations"]["runbook_url"]
            assert link.endswith(f"docs/runbook.md#{rule['alert'].lower()}")


# A release whose drift was looked at: what `linnet watch` shows metrics of.
LOOKED = RegisteredRelease(
    "flowers",
    1,
    "s3://linnet/releases/flowers/v1",
    ("champion",),
    None,
    {
        "drift_looked": "2026-11-21T06:00:00+00:00",
        "drift_values": json.dumps(
            dict.fromkeys(
                ("drift", "drift_chance", "drift_pictures", "drift_unreadable", "drift_sharpness"),
                0.0,
            )
        ),
    },
)
# What runs of the pipeline tag a model with.
RAN = {
    "last_run_state": "FAILED",
    "last_run_ended": "2026-11-21T06:00:00+00:00",
    "last_quarantined_share": "0.02",
}


def test_rules_and_dashboards_ask_for_metrics_that_server_and_watch_have() -> None:
    collected = list(Metrics().registry.collect())
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    there = {
        metric.name + ending for metric in collected for ending in endings.get(metric.type, ())
    }
    there |= {metric.name for metric in (*drift_metrics(LOOKED), *run_metrics("flowers", RAN))}
    asked = (CHART / "files/rules.yaml").read_text("utf-8")
    asked += "".join(path.read_text("utf-8") for path in CHART.glob("files/dashboards/*.json"))
    asked = re.sub(r"linnet-\S+", "", asked)
    assert set(re.findall(r"linnet_\w+", asked)) <= there


def test_dashboards_are_whole() -> None:
    (boards,) = (one for one in kind("ConfigMap") if one["metadata"]["name"] == "linnet-dashboards")
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert boards["data"].keys() == {"pictures.json", "rollout.json", "serving.json"}
    for text in boards["data"].values():
        board = json.loads(text)
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        for panel in board["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            assert all('model=~"$model"' in target["expr"] for target in panel["targets"])


@pytest.mark.parametrize("codes", [("200", "500"), ("200",)])
def test_every_panel_shows_something_of_a_server_that_answers(
    codes: tuple[str, ...], tmp_path: Path
) -> None:
    asked = [
        Template(target["expr"]).substitute(
            __rate_interval="5m", __range="15m", namespace="serving", model="flowers"
        )
        for path in CHART.glob("files/dashboards/*.json")
        for panel in json.loads(path.read_text("utf-8"))["panels"]
        for target in panel["targets"]
    ]
    shown = {"eval_time": "30m", "exp_samples": [{"labels": "{}", "value": 1}]}
    series = [{"series": name, "values": "0+1x40"} for name in _series_of_a_server(codes)]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": f"count({expr}) > bool 0", **shown} for expr in asked],
    }
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}), "utf-8")
    done = subprocess.run(
        [_tool("promtool"), "test", "rules", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_networkpolicy_lets_through_what_is_needed_and_no_more() -> None:
    network = Network.of([*rendered("rollout-values.yaml"), DENY])
    (job,) = kind("Job", case="rollout-values.yaml")
    (request,) = kind("Pod", case="rollout-values.yaml")
    model = Pod("serving", (("serving.kserve.io/inferenceservice", "roses"),))
    rollout = Pod("serving", tuple(job["spec"]["template"]["metadata"]["labels"].items()))
    test = Pod("serving", tuple(request["metadata"]["labels"].items()))
    gateway, store = Pod("envoy-gateway-system"), Pod.named("linnet-platform", "minio")
    prometheus, page = Pod.named("monitoring", "prometheus"), Pod("serving", (("app", "page"),))
    assert all(network.lets(gateway, model, port) for port in (8080, 8081))
    assert network.lets(prometheus, model, 8080)
    assert network.lets(Pod("kube-system"), model, 9999) is False
    assert network.lets(Pod("default"), model, 8080) is False
    assert network.lets(prometheus, model, 8081) is False
    assert network.lets(model, store, 9000)
    assert network.lets(model, Pod("default"), 443) is False
    assert network.lets(test, model, 8080)
    assert network.lets(test, gateway, 80)
    assert network.lets(rollout, store, 9000)
    assert network.lets(rollout, prometheus, 9090)
    assert network.lets(rollout, Pod("outside"), 6443)
    assert network.lets(gateway, rollout, 8080) is False
    (models, *_) = kind("NetworkPolicy", case="rollout-values.yaml")
    requests, metrics = models["spec"]["ingress"]
    assert {"podSelector": {"matchLabels": dict(page.labels)}} in requests["from"]
    assert {"ipBlock": {"cidr": "10.0.0.1/32"}} in metrics["from"]


def test_networkpolicy_finds_the_pods_of_a_route_of_its_own() -> None:
    policies = kind("NetworkPolicy", case="route-values.yaml", networkPolicy__enabled="true")
    assert policies[0]["spec"]["podSelector"] == {"matchLabels": {"linnet/model": "flowers"}}


def test_page_asks_the_model_through_the_gateway_and_is_reached_from_it() -> None:
    (page,) = kind("Deployment", case="rollout-values.yaml")
    pod = page["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["command"] == [
        *("linnet", "ui", "--host=0.0.0.0", "--model=roses", "--server=http://gateway.gateways"),
        *("--authority=roses-serving.example.com", "--set=allowed_hosts=[roses.example.org]"),
        "--set=max_picture_bytes=8000000",
    ]
    named = {one["name"]: one for one in container["env"]}
    assert named["LINNET_RELEASE_ROOT"]["value"] == "s3://models/releases"
    assert named["LINNET_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "roses-token"
    (service,) = kind("Service", case="rollout-values.yaml")
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (route,) = kind("HTTPRoute", case="rollout-values.yaml")
    assert route["spec"]["hostnames"] == ["roses.example.org"]
    (rule,) = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": 8090}]
    assert rule["timeouts"] == {"request": "0s"}
    network = Network.of([*rendered("rollout-values.yaml"), DENY])
    people, gateway = (
        Pod("serving", tuple(pod["metadata"]["labels"].items())),
        "envoy-gateway-system",
    )
    assert network.lets(Pod(gateway), people, 8090)
    assert network.lets(Pod("default"), people, 8090) is False
    assert network.lets(people, Pod(gateway), 80)
    assert network.lets(people, Pod.named("linnet-platform", "minio"), 9000)
    assert network.lets(people, Pod("monitoring"), 5000)
    assert network.lets(people, Pod("outside"), 443) is False
    assert kind("Deployment") == []


def test_poddisruptionbudget_lets_a_lonely_pod_go() -> None:
    (budget,) = kind("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"] == {
        "serving.kserve.io/inferenceservice": "flowers"
    }


GATEWAY = "http://gateway.envoy-gateway-system.svc"
PREDICTOR = "flowers-v1-predictor.serving.svc"
ROSES = ("roses", "roses-serving.example.com")


@pytest.mark.parametrize(
    ("case", "values", "asked"),
    [
        ("", {}, [GATEWAY, "flowers", "flowers-serving.example.com"]),
        ("", {"gateway__address": ""}, [f"http://{PREDICTOR}", "flowers", PREDICTOR]),
        ("rollout-values.yaml", {}, ["http://gateway.gateways", *ROSES]),
        ("by-hand-values.yaml", {}, [GATEWAY, "flowers", "flowers.example.org"]),
    ],
)
def test_request_asks_the_gateway_or_the_predictor(
    case: str, values: dict[str, str], asked: list[str]
) -> None:
    (pod,) = kind("Pod", case=case, **values)
    assert pod["spec"]["containers"][0]["command"][2:] == [*asked, "120"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_request_gets_an_answer_of_a_real_server(tmp_path: Path) -> None:
    samples = {"a.png": png()}
    server = launch(tmp_path, write_release(tmp_path / "releases", samples))
    try:
        asked = _request(server.url, "flowers", "localhost", "60")
        assert (asked.returncode, asked.stderr) == (0, "")
        assert json.loads(asked.stdout)["release"] == ["flowers/v1"]
        absent = _request(server.url, "roses", "localhost", "0")
        assert absent.returncode == 1
        assert "/v2/models/roses (Host: localhost) is not ready after 0 s" in absent.stdout
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"relase__version": "v2"}, "relase"),
        ({"release__version": "V2"}, "release/version"),
        ({"rollout__enabled": "false"}, "release.version is empty"),
        ({"gateway__address": ""}, "whom to ask"),
        ({"release__root": "/mnt/releases"}, "release/root"),
        ({"images__tag": "latest"}, "images/tag"),
        ({"mode": "RawDeployment"}, "mode"),
        ({"mode": "Knative"}, "rollout.enabled=false and go by"),
        ({"knative__canaryTrafficPercent": "10"}, "belongs to mode Knative"),
        (TEN, "candidates come by release.version"),
        ({**TEN, "rollout__enabled": "false", "mode": "Knative"}, "belongs to mode Standard"),
        (
            {**TEN, "rollout__enabled": "false", "canary__version": "v1"},
            "is release.version already",
        ),
        ({**TEN, "rollout__enabled": "false", "canary__minReplicas": "3"}, "which KServe refuses"),
        ({**TEN, "rollout__enabled": "false", "canary__trafficPercent": "110"}, "canary"),
        ({"rollout__settings__namespace": "other"}, "comes from other values"),
        ({**PAGE, "gateway__address": ""}, "asks the model through the gateway"),
        ({"inferenceService__annotations__a": "b"}, "does not own the InferenceService"),
        ({"release__model": "a" * 40, "release__version": "b" * 20}, "at most 63"),
    ],
)
def test_wrong_values_are_refused_in_words(values: dict[str, str], words: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        helm_template("", **values)
    assert words in refused.value.stderr


def test_every_value_is_described_and_in_the_schema() -> None:
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    schema["properties"].pop("global")
    described = dict(_described(schema))
    assert described.keys() == set(_leaves(yaml.safe_load(text), schema))
    comments = re.sub(r"\n *# (?!--)", " ", text)
    for path, words in described.items():
        assert f"# -- {words}\n" in comments, path


@cache
def helm_template(case: str, **values: str) -> str:
    sets = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    options = [word for value in sets for word in ("--set", value)]
    command = ["template", "linnet", str(CHART), "--namespace", "serving", *_values(case)]
    return helm(*command, "--kube-version", "1.34.0", *options)


def rendered(case: str, **values: str) -> list[Manifest]:
    return [one for one in yaml.safe_load_all(helm_template(case, **values)) if one]


def kind(name: str, case: str = "", **values: str) -> list[Manifest]:
    """The objects of a kind, in a case or with v1 to be served."""
    if not case:
        values = {"release__version": "v1", **values}
    return [one for one in rendered(case, **values) if one["kind"] == name]


def helm(*arguments: str) -> str:
    done = subprocess.run(
        [_tool("helm"), *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def _tool(name: str) -> str:
    if found := tools.find(name):
        return found
    reason = f"{name} is not installed: python tests/manifests/tools.py builds it"
    if os.environ.get("LINNET_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _values(case: str) -> list[str]:
    return ["--values", str(CHART / "ci" / case)] if case else []


def _groups() -> list[Any]:
    (rules,) = (one for one in kind("ConfigMap") if "flowers.yaml" in one["data"])
    return list(yaml.safe_load(rules["data"]["flowers.yaml"])["groups"])


def _series_of_a_server(codes: tuple[str, ...]) -> Iterator[str]:
    """Yield what Prometheus has of a server that answered so and logged, and of a watch."""
    metrics = Metrics()
    of = ("flowers", "flowers/v1")
    model = ModelMetrics(metrics, *of, ("daisy", "rose"))
    model.decoded(0.1)
    model.ran(1, 0.1, [0.1])
    model.answered(Rule().answer(np.float32([[0.9, 0.1]])))
    for code in codes:
        model.finished("rest", code, 0.1)
        metrics.feedback.labels(*of, "true" if code == "200" else "false").inc()
    metrics.logged.labels(*of, "written").inc()
    for family in (
        *metrics.registry.collect(),
        *drift_metrics(LOOKED),
        *run_metrics("flowers", RAN),
    ):
        for sample in family.samples:
            labels = {**sample.labels, "namespace": "serving", "pod": "a"}
            told = ", ".join(f'{name}="{value}"' for name, value in labels.items())
            yield f"{sample.name}{{{told}}}"


def _request(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHART / "files" / "request.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def _allowed(case: str) -> set[Asked]:
    return {
        (role["metadata"]["namespace"], group, verb, resource)
        for role in kind("Role", case=case)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


class _reviews:
    """An API server that knows access reviews alone, and answers by a set of what is allowed."""

    def __init__(self, allowed: set[Asked], asked: set[Asked]) -> None:
        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                of = body["spec"]["resourceAttributes"]
                resource = "/".join(part for part in (of["resource"], of["subresource"]) if part)
                access = (of["namespace"], of["group"], of["verb"], resource)
                asked.add(access)
                answer = json.dumps({"status": {"allowed": access in allowed}}).encode()
                self.send_response(201)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)

    def __enter__(self) -> Cluster:
        from kubernetes import client

        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{self._server.server_port}"
        self._api = client.ApiClient(configuration)
        return Cluster(self._api)

    def __exit__(self, *_: object) -> None:
        self._api.rest_client.pool_manager.clear()
        self._server.shutdown()
        self._server.server_close()


def _described(schema: Manifest, path: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in schema["properties"].items():
        if inner.get("description"):
            yield f"{path}{key}", inner["description"]
        else:
            assert inner["additionalProperties"] is False, key
            yield from _described(inner, f"{path}{key}.")


def _leaves(values: Manifest, schema: Manifest, path: str = "") -> Iterator[str]:
    for key, value in values.items():
        inner = schema["properties"].get(key, {})
        if "description" in inner or "properties" not in inner:
            yield f"{path}{key}"
        else:
            yield from _leaves(value, inner, f"{path}{key}.")
