import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.install import checks, images, rendering
from manifests.install.__main__ import PARTS, chosen_parts, part_of, wanted
from manifests.install.kubectl import InstallError, Object
from manifests.install.waiting import explain, is_ready
from tests.manifests.policies import Network, Pod
from tests.manifests.schemas import pods, problems, unrestricted
from tests.manifests.tools import BIN, find

OVERLAYS = rendering.overlays()
OURS = ("linnet-platform", "linnet-serving", "kubeflow")
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@pytest.fixture(autouse=True)
def _kustomize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if not shutil.which("kubectl") and not shutil.which("kustomize"):
        reason = "neither kubectl nor kustomize is here: python tests/manifests/tools.py"
        if os.environ.get("LINNET_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@cache
def rendered(overlay: str) -> list[Object]:
    return rendering.overlay(overlay)


def workloads(overlay: str) -> list[Object]:
    return [one for one in rendered(overlay) if one["kind"] in WORKLOADS]


def containers(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in workloads(overlay):
        for pod in pods(one):
            for container in [*pod.get("initContainers", ()), *pod["containers"]]:
                yield f"{one['metadata']['name']}/{container['name']}", container


def test_both_overlays_are_there() -> None:
    assert OVERLAYS == ["gpu-cluster", "kind"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_schema_of_its_kind(overlay: str) -> None:
    assert [problem for one in rendered(overlay) for problem in problems(one)] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_is_there_twice(overlay: str) -> None:
    names = [
        (one["apiVersion"], one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in rendered(overlay)
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted(overlay: str) -> None:
    free = {
        one["metadata"]["name"]: found
        for one in workloads(overlay)
        for pod in pods(one)
        if (found := unrestricted(pod))
    }
    assert free == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_root_filesystems_are_read_only(overlay: str) -> None:
    free = [
        name
        for name, container in containers(overlay)
        if not container["securityContext"].get("readOnlyRootFilesystem")
    ]
    assert free == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_asks_for_what_it_needs_and_has_a_limit(overlay: str) -> None:
    for name, container in containers(overlay):
        for kind in ("requests", "limits"):
            assert container["resources"][kind].keys() == {"cpu", "memory"}, (name, kind)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_server_is_probed(overlay: str) -> None:
    servers = [one for one in workloads(overlay) if one["kind"] != "Job"]
    for one in servers:
        for container in one["spec"]["template"]["spec"]["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert probe in container, (one["metadata"]["name"], container["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_server_has_a_disruption_budget_that_lets_a_node_be_drained(overlay: str) -> None:
    budgets = [one for one in rendered(overlay) if one["kind"] == "PodDisruptionBudget"]
    for one in workloads(overlay):
        if one["kind"] == "Job":
            continue
        labels = one["spec"]["template"]["metadata"]["labels"].items()
        covering = [
            budget["spec"]["maxUnavailable"]
            for budget in budgets
            if budget["spec"]["selector"]["matchLabels"].items() <= labels
        ]
        assert covering == [1], one["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prometheus_loads_the_rules_that_the_chart_labels(overlay: str) -> None:
    values = yaml.safe_load((rendering.ROOT.parent / "helm/linnet/values.yaml").read_text("utf-8"))
    sidecar = dict(containers(overlay))["prometheus/rules"]
    given = {one["name"]: one["value"] for one in sidecar["env"]}
    (config,) = (one for one in rendered(overlay) if "prometheus.yml" in one.get("data", {}))
    assert values["monitoring"]["ruleLabels"] == {given["LABEL"]: given["LABEL_VALUE"]}
    assert yaml.safe_load(config["data"]["prometheus.yml"])["rule_files"] == [
        f"{given['FOLDER']}/*.yaml"
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_service_finds_its_pods(overlay: str) -> None:
    for service in (one for one in rendered(overlay) if one["kind"] == "Service"):
        found = [
            container_port["name"]
            for one in workloads(overlay)
            if one["metadata"]["namespace"] == service["metadata"]["namespace"]
            and service["spec"]["selector"].items()
            <= one["spec"]["template"]["metadata"]["labels"].items()
            for container in one["spec"]["template"]["spec"]["containers"]
            for container_port in container.get("ports", ())
        ]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(found)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_is_pinned_by_a_version(overlay: str) -> None:
    for image in images.found_in(rendered(overlay)):
        assert re.fullmatch(r"[\w./-]+:(?!latest)(?=[\w.-]*\d)[\w.-]+", image), image


def test_the_overlays_run_the_same_images() -> None:
    kind, large = (images.found_in(rendered(overlay)) for overlay in ("kind", "gpu-cluster"))
    assert kind == large


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_our_namespaces_enforce_restricted_pods(overlay: str) -> None:
    labels = {
        one["metadata"]["name"]: one["metadata"]["labels"]
        for one in rendered(overlay)
        if one["kind"] == "Namespace"
    }
    assert labels.keys() >= {*OURS, "kserve"}
    for name, known in labels.items():
        assert known["pod-security.kubernetes.io/enforce"] == "restricted", name


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("namespace", OURS)
def test_an_unknown_pod_of_ours_reaches_nobody_and_is_reached_by_nobody(
    overlay: str, namespace: str
) -> None:
    network = Network.of(rendered(overlay))
    stranger, elsewhere = Pod.named(namespace, "stranger"), Pod.named("default", "stranger")
    assert not network.lets(elsewhere, stranger, 8080)
    assert not network.lets(stranger, elsewhere, 8080)


MODEL = Pod(
    "linnet-serving",
    (("serving.kserve.io/inferenceservice", "flowers"), ("app", "isvc.flowers-predictor")),
)
STEP = Pod("kubeflow", (("pipelines.kubeflow.org/v2_component", "true"),))
PLATFORM = {
    name: Pod.named("linnet-platform", name)
    for name in (
        *("minio", "minio-setup", "mlflow", "postgres", "postgres-setup"),
        *("prometheus", "grafana"),
    )
}
NAMES = Pod("kube-system", (("k8s-app", "kube-dns"),))
PROXY = Pod.named("envoy-gateway-system", "envoy")
INTERNET = Pod("elsewhere")


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        pytest.param(MODEL, PLATFORM["minio"], 9000, id="KServe fetches a release"),
        pytest.param(STEP, PLATFORM["minio"], 9000, id="a step writes an artifact"),
        pytest.param(STEP, PLATFORM["mlflow"], 5000, id="a step tracks its run"),
        pytest.param(STEP, PLATFORM["prometheus"], 9090, id="a rollout step reads evidence"),
        pytest.param(STEP, STEP, 8080, id="pipelines' parts among themselves"),
        pytest.param(STEP, INTERNET, 443, id="a step fetches pictures"),
        pytest.param(PROXY, MODEL, 8080, id="the gateway asks a model by REST"),
        pytest.param(PROXY, MODEL, 8081, id="the gateway asks a model by gRPC"),
        pytest.param(PLATFORM["prometheus"], MODEL, 8080, id="Prometheus scrapes a model"),
        pytest.param(PLATFORM["prometheus"], PROXY, 19001, id="Prometheus scrapes the gateway"),
        pytest.param(PLATFORM["prometheus"], PLATFORM["minio"], 9000, id="… and MinIO"),
        pytest.param(PLATFORM["prometheus"], INTERNET, 6443, id="Prometheus asks for pods"),
        pytest.param(PLATFORM["mlflow"], PLATFORM["postgres"], 5432, id="MLflow's database"),
        pytest.param(
            PLATFORM["postgres-setup"], PLATFORM["postgres"], 5432, id="a database is made"
        ),
        pytest.param(STEP, PLATFORM["postgres"], 5432, id="workers of a search share trials"),
        pytest.param(PLATFORM["mlflow"], PLATFORM["minio"], 9000, id="MLflow's artifacts"),
        pytest.param(PLATFORM["minio-setup"], PLATFORM["minio"], 9000, id="the bucket is made"),
        pytest.param(PLATFORM["grafana"], PLATFORM["prometheus"], 9090, id="Grafana's numbers"),
        pytest.param(MODEL, NAMES, 53, id="names are looked up"),
    ],
)
def test_a_needed_path_is_open(source: Pod, target: Pod, port: int) -> None:
    assert Network.of(rendered("kind")).lets(source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        pytest.param(MODEL, PLATFORM["postgres"], 5432, id="a model and the database"),
        pytest.param(MODEL, INTERNET, 443, id="a model and the internet"),
        pytest.param(MODEL, MODEL, 8080, id="one model and another"),
        pytest.param(STEP, MODEL, 8080, id="a step past the gateway"),
        pytest.param(INTERNET, PLATFORM["minio"], 9000, id="another namespace and the store"),
        pytest.param(INTERNET, PLATFORM["mlflow"], 5000, id="another namespace and MLflow"),
        pytest.param(PLATFORM["minio"], INTERNET, 443, id="the store and the internet"),
        pytest.param(PLATFORM["mlflow"], INTERNET, 443, id="MLflow and the internet"),
    ],
)
def test_what_nobody_needs_is_closed(source: Pod, target: Pod, port: int) -> None:
    assert not Network.of(rendered("kind")).lets(source, target, port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_role_reaches_further_than_it_must(overlay: str) -> None:
    for one in rendered(overlay):
        assert one["kind"] not in ("ClusterRole", "ClusterRoleBinding")
        for rule in one.get("rules", ()) if one["kind"] == "Role" else ():
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_who_has_a_role_gets_a_token(overlay: str) -> None:
    bound = {
        (subject["namespace"], subject["name"])
        for one in rendered(overlay)
        if one["kind"] == "RoleBinding"
        for subject in one["subjects"]
    }
    for one in workloads(overlay):
        pod = one["spec"]["template"]["spec"]
        who = one["metadata"]["namespace"], pod["serviceAccountName"]
        assert pod.get("automountServiceAccountToken", True) == (who in bound), who


def test_no_password_lies_in_a_file() -> None:
    for overlay in OVERLAYS:
        assert [one for one in rendered(overlay) if one["kind"] == "Secret"] == []
        for name, container in containers(overlay):
            for variable in container.get("env", ()):
                if re.search(r"(?i)password|secret|token", variable["name"]):
                    assert "value" not in variable, (name, variable["name"])
    for file in rendering.ROOT.rglob("*.yaml"):
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            assert (document or {}).get("kind") != "Secret", file


def test_kind_asks_for_no_gpu_and_holds_on_two_cores() -> None:
    assert "nvidia.com/gpu" not in yaml.safe_dump(rendered("kind"))
    cpu = sum(
        int(container["resources"]["requests"]["cpu"].removesuffix("m"))
        for _, container in containers("kind")
    )
    assert cpu <= 500


def test_kind_holds_a_champion_and_a_candidate_beside_a_step() -> None:
    folder = rendering.ROOT / "overlays" / "kind" / "serving"
    (patch,) = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["patches"]
    (change,) = yaml.safe_load(patch["patch"])
    runtime = yaml.safe_load((rendering.ROOT.parent / "serving/runtime.yaml").read_text("utf-8"))
    asked = runtime["spec"]["containers"][0]["resources"]["requests"]
    assert change["path"] == "/spec/containers/0/resources/requests"
    assert change["value"].keys() == asked.keys()
    assert int(change["value"]["cpu"].removesuffix("m")) <= 100


def test_a_gpu_cluster_bounds_gpus_and_keeps_training_where_every_node_reaches_it() -> None:
    found = {
        (one["kind"], one["metadata"]["name"]): one.get("spec") for one in rendered("gpu-cluster")
    }
    assert found["ResourceQuota", "gpus"]["hard"].keys() == {"requests.nvidia.com/gpu"}
    claim = found["PersistentVolumeClaim", "linnet-workspace"]
    assert claim["accessModes"] == ["ReadWriteMany"]
    proxy = found["EnvoyProxy", "linnet"]["provider"]["kubernetes"]
    assert proxy["envoyDeployment"]["replicas"] > proxy["envoyPDB"]["minAvailable"]


def test_the_gateway_of_kind_is_at_the_port_that_kind_maps() -> None:
    config = yaml.safe_load((rendering.ROOT.parent / "kind-config.yaml").read_text("utf-8"))
    mapped = config["nodes"][0]["extraPortMappings"][0]["containerPort"]
    proxy = next(one for one in rendered("kind") if one["kind"] == "EnvoyProxy")
    service = proxy["spec"]["provider"]["kubernetes"]["envoyService"]
    assert service["patch"]["value"]["spec"]["ports"][0]["nodePort"] == mapped


def test_prometheus_takes_its_configuration() -> None:
    promtool = find("promtool")
    if promtool is None:
        pytest.skip("promtool is not here: python tests/manifests/tools.py")
    file = rendering.ROOT / "components" / "metrics" / "prometheus.yml"
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_part_is_one_that_can_be_chosen() -> None:
    assert {part_of(one) for one in rendered("kind")} <= {None, *PARTS}


def test_parts_come_in_the_order_of_need() -> None:
    assert chosen_parts("") == tuple(PARTS)
    assert chosen_parts("tracking gateway store") == ("gateway", "store", "tracking")
    with pytest.raises(InstallError, match="no part storage: choose from gateway kserve store"):
        chosen_parts("storage")


def test_parts_that_were_not_chosen_are_left_out() -> None:
    left = {part_of(one) for one in wanted(rendered("kind"), ("store",))}
    assert left == {None, "store"}


@pytest.mark.parametrize("version", ["v0.21.0", "0.21.1", "v0.22.0-rc0", "v1.0.0"])
def test_a_kserve_that_moves_traffic_is_taken(version: str) -> None:
    checks.supported(version, "here")


@pytest.mark.parametrize("version", ["v0.20.0", "v0.15.2", "0.9.0"])
def test_an_older_kserve_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(InstallError, match=r"0\.21 or later is needed.*no traffic goes there"):
        checks.supported(version, "here")


def test_a_kserve_without_a_version_is_named() -> None:
    with pytest.raises(InstallError, match=r"says KServe 'latest': expected .* v0\.21\.0"):
        checks.supported("latest", "the controller's image")


def test_the_pinned_kserve_is_new_enough() -> None:
    checks.supported(rendering.ThirdParty().versions["KSERVE"], "versions.env")


def test_kserve_that_makes_no_routes_is_told_setting_by_setting() -> None:
    assert checks.wrong_settings(
        {
            "ingress": '{"enableGatewayApi": false, "kserveIngressGateway": "a/b"}',
            "deploy": "{defaultDeploymentMode: Standard}",
        }
    ) == [
        "ingress.enableGatewayApi is false, true is needed",
        'ingress.kserveIngressGateway is "a/b", "kserve/kserve-ingress-gateway" is needed',
        "ingress.disableIngressCreation is null, false is needed",
        "deploy is not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1))",
    ]


@pytest.mark.parametrize(
    ("gateway", "lacks"),
    [
        ({}, "it is absent"),
        ({"status": {}}, "its controller has not looked at it"),
        (
            {
                "status": {
                    "conditions": [
                        {"type": "Accepted", "status": "False", "message": "no such class"}
                    ]
                }
            },
            "Accepted: no such class",
        ),
        (
            {"status": {"conditions": [{"type": "Programmed", "status": "True"}]}},
            "it has no address",
        ),
        (
            {
                "status": {
                    "conditions": [{"type": "Programmed", "status": "True"}],
                    "addresses": [{"value": "10.0.0.1"}],
                }
            },
            "",
        ),
    ],
)
def test_what_a_gateway_lacks_is_said(gateway: Object, lacks: str) -> None:
    assert checks.what_gateway_lacks(gateway) == lacks


def _deployment(**status: int) -> Object:
    return {
        "kind": "Deployment",
        "metadata": {"generation": 2},
        "spec": {"replicas": 1},
        "status": status,
    }


def test_a_deployment_is_ready_when_its_new_pods_alone_run() -> None:
    there = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    assert is_ready(_deployment(**there))
    for change in (
        {"observedGeneration": 1},
        {"updatedReplicas": 0},
        {"readyReplicas": 0},
        {"replicas": 2},
    ):
        assert not is_ready(_deployment(**{**there, **change}))


def test_a_job_is_ready_when_it_is_complete() -> None:
    job = {"kind": "Job", "metadata": {"generation": 1}, "spec": {}, "status": {}}
    assert not is_ready(job)
    assert is_ready({**job, "status": {"conditions": [{"type": "Complete", "status": "True"}]}})


def test_what_keeps_a_pod_is_told_with_the_next_move() -> None:
    pod = {
        "metadata": {"name": "mlflow-1", "namespace": "linnet-platform"},
        "status": {
            "initContainerStatuses": [
                {
                    "name": "migrate",
                    "image": "linnet/cpu:1",
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}},
                }
            ],
            "containerStatuses": [
                {
                    "name": "mlflow",
                    "image": "linnet/cpu:1",
                    "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
                }
            ],
        },
    }
    assert [*explain(pod)] == [
        "  pod mlflow-1, container migrate (linnet/cpu:1): CrashLoopBackOff back-off",
        "  pod mlflow-1, container migrate ended with exit code 3 (Error): kubectl -n "
        "linnet-platform logs mlflow-1 -c migrate --previous",
        "  pod mlflow-1, container mlflow (linnet/cpu:1): ErrImagePull not found",
    ]


def test_our_images_are_named_as_they_were_built() -> None:
    ours = images.Ours("registry.example/team", "abc123")
    found = images.found_in([ours.put_into(one) for one in rendered("kind")])
    assert "registry.example/team/cpu:abc123" in found
    assert not {image for image in found if image.startswith("linnet/")}
    assert ours.all() == [f"registry.example/team/{name}:abc123" for name in images.OURS]


def test_images_in_settings_and_arguments_are_listed_for_a_mirror() -> None:
    deployment = {
        "kind": "Deployment",
        "spec": {
            "args": ["--executor-image", "a/exec:v1", "--acme-http01-solver-image=b/acme:v2"],
            "env": [{"name": "V2_DRIVER_IMAGE", "value": "c/driver:v3"}],
        },
    }
    config = {
        "kind": "ConfigMap",
        "data": {
            "agent": '{"image" : "d/agent:v4"}',
            "eg": "image: e/eg:v5",
            "_example": "image: f:1",
        },
    }
    assert images.found_in([deployment, config]) == {
        "a/exec:v1",
        "b/acme:v2",
        "c/driver:v3",
        "d/agent:v4",
        "e/eg:v5",
    }


def _config_map(name: str, namespace: str, **data: str) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _deployments(namespace: str, **containers_of: str) -> list[Object]:
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name.replace("_", "-"), "namespace": namespace, "labels": {}},
            "spec": {
                "template": {
                    "spec": {
                        "containers": [
                            {"name": one, "image": "example/x:1", "env": []}
                            for one in names.split()
                        ]
                    }
                }
            },
        }
        for name, names in containers_of.items()
    ]


def _write(folder: Path, name: str, objects: list[Object]) -> rendering.ThirdParty:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    return rendering.ThirdParty(folder)


def test_kserve_is_set_to_what_rollouts_need_and_stripped_of_what_they_do_not(
    tmp_path: Path,
) -> None:
    upstream = [
        _config_map(
            "inferenceservice-config", "kserve", ingress="{}", deploy="{}", logger="as it was"
        ),
        *_deployments(
            "kserve",
            kserve_controller_manager="manager kube-rbac-proxy",
            llmisvc_controller_manager="manager",
            kserve_localmodel_controller_manager="manager",
        ),
    ]
    rendered = _write(tmp_path, "kserve", upstream).render("kserve")
    by_name = {one["metadata"]["name"]: one for one in rendered}
    assert by_name.keys() == {"inferenceservice-config", "kserve-controller-manager"}
    assert checks.wrong_settings(by_name["inferenceservice-config"]["data"]) == []
    assert by_name["inferenceservice-config"]["data"]["logger"] == "as it was"
    [manager] = by_name["kserve-controller-manager"]["spec"]["template"]["spec"]["containers"]
    assert manager["name"] == "manager"


def test_pipelines_keep_their_artifacts_in_our_store_and_no_upstream_password(
    tmp_path: Path,
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"password": ""}}
    upstream = [
        _config_map("kfp-launcher", "kubeflow"),
        _config_map("pipeline-install-config", "kubeflow", bucketName="mlpipeline"),
        _config_map("workflow-controller-configmap", "kubeflow"),
        *({**secret, "metadata": {"name": name, "namespace": "kubeflow"}} for name in SECRETS),
        *_deployments(
            "kubeflow",
            seaweedfs="seaweedfs",
            cache_server="server",
            ml_pipeline="ml-pipeline-api-server",
            ml_pipeline_ui="ml-pipeline-ui",
            ml_pipeline_persistenceagent="ml-pipeline-persistenceagent",
            ml_pipeline_viewer_crd="viewer",
            metadata_envoy_deployment="container",
            workflow_controller="workflow-controller",
            mysql="mysql",
        ),
    ]
    rendered = _write(tmp_path, "pipelines", upstream).render("pipelines")
    (config,) = (one for one in rendered if "config.json" in one.get("data", {}))
    rendered.remove(config)
    assert {one["metadata"]["name"] for one in rendered} == {
        "kfp-launcher",
        "pipeline-install-config",
        "workflow-controller-configmap",
        "ml-pipeline",
        "ml-pipeline-ui",
        "ml-pipeline-persistenceagent",
        "metadata-envoy-deployment",
        "workflow-controller",
        "mysql",
    }
    launcher = next(one for one in rendered if one["metadata"]["name"] == "kfp-launcher")["data"]
    assert launcher["defaultPipelineRoot"].startswith("s3://linnet/")
    store = yaml.safe_load(launcher["providers"])["s3"]["default"]
    assert store["endpoint"] == "minio.linnet-platform.svc:9000"
    assert "mlpipeline" not in yaml.safe_dump_all(rendered)
    server = next(one for one in rendered if one["metadata"]["name"] == "ml-pipeline")
    volumes = server["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": config["metadata"]["name"]}} in volumes
    settings = json.loads(config["data"]["config.json"])
    assert settings["plugins"]["mlflow"]["endpoint"] == CONNECTIONS["MLFLOW_TRACKING_URI"]
    assert settings["ObjectStoreConfig"].keys() == {"BucketName", "PipelinePath"}
    small = {one["metadata"]["name"] for one in wanted(rendered, ("pipelines",))}
    assert not small & {"ml-pipeline-ui", "metadata-envoy-deployment"}


CONNECTIONS = yaml.safe_load(
    (rendering.ROOT / "base" / "connections.yaml").read_text("utf-8").partition("\n---\n")[0]
)["data"]
SECRETS = ("mysql-secret", "mlpipeline-minio-artifact")


def test_a_folder_without_the_file_is_told_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(
        InstallError, match=r"has no kserve.yaml: put there what https://.*/v0\.21\.\d+/kserve.yaml"
    ):
        rendering.ThirdParty(tmp_path).render("kserve")


def test_every_address_names_a_pinned_version() -> None:
    third_party = rendering.ThirdParty()
    parts = {name for names in PARTS.values() for name in names}
    assert {f"{name}.yaml" for name in parts} == third_party._addresses.keys()
    for address in third_party._addresses.values():
        assert any(version in address for version in third_party.versions.values())
