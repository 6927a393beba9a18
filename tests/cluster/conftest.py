"""The cluster that KUBECONFIG names, a namespace of this run's own, and what was there on failure.

Where there is no cluster with the platform on it, every test here is skipped with the reason.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import LinnetError
from linnet.rollout.cluster import Cluster
from manifests.install.kubectl import InstallError, Kubectl, Object
from tests.cluster.serving_here import NAMESPACE, STORE, forwarded

REPOSITORY = Path(__file__).parents[2]
# Where a pipeline's run may change the traffic.
SERVING = "linnet-serving"
PLATFORM = "linnet-platform"
KUBEFLOW = "kubeflow"
# Of the platform's serving namespace, what a model there needs and this run's gets as well.
COPIED = (
    ("networkpolicies", "default-deny"),
    ("networkpolicies", "models"),
    ("secrets", "linnet-s3"),
    ("configmaps", "linnet-connections"),
    ("serviceaccounts", "linnet-models"),
)


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """Return kubectl on a cluster that has KServe and the platform."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a Kubernetes cluster: KUBECONFIG names none (make kind-up)")
    kubectl = Kubectl(timeout_s=300)
    try:
        kubectl.address()
        kserve = kubectl.get("deployment", "kserve-controller-manager", "kserve")
        serving = kubectl.get("serviceaccount", "linnet-models", SERVING)
        runtime = kserve and kubectl.get("clusterservingruntime", "linnet", "default")
    except InstallError as error:
        pytest.skip(f"needs a Kubernetes cluster: {error}")
    if kserve is None or serving is None:
        pytest.skip("needs KServe and the platform on the cluster: make platform")
    if not runtime:
        pytest.skip("needs our ClusterServingRuntime on the cluster: kubectl apply -k serving")
    return kubectl


@pytest.fixture(scope="session", autouse=True)
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """Make this run's namespace as the platform makes the one where models serve.

    LINNET_TEST_NAMESPACE names one that is there and stays.
    """
    if os.environ.get("LINNET_TEST_NAMESPACE"):
        yield NAMESPACE
        return
    like = kubectl.get("namespace", SERVING, "default") or {}
    labels = like["metadata"]["labels"] | {"kubernetes.io/metadata.name": NAMESPACE}
    way_to_store = _way_to_store()
    kubectl.apply([_object("v1", "Namespace", NAMESPACE, labels=labels), way_to_store])
    try:
        kubectl.apply([_copy(kubectl, kind, name) for kind, name in COPIED])
        yield NAMESPACE
    finally:
        kubectl.run("delete", "networkpolicy", NAMESPACE, "-n", PLATFORM, "--ignore-not-found")
        kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")


@pytest.fixture(scope="session")
def cluster(namespace: str) -> Cluster:
    """Return our own way to the cluster."""
    try:
        return Cluster.connect(kubeconfig=os.environ["KUBECONFIG"])
    except LinnetError as error:
        pytest.fail(f"kubectl reaches the cluster and we don't: {error}")


@pytest.fixture(scope="session")
def store_url(kubectl: Kubectl) -> Iterator[str]:
    """Yield the address of the cluster's object store, forwarded to this machine."""
    with forwarded(STORE, 9000) as url:
        yield url


@pytest.fixture(scope="session")
def tag(kubectl: Kubectl) -> str:
    """The tag of step images that the cluster has: LINNET_IMAGE_TAG's, or this revision's."""
    if kubectl.get("deployment", "ml-pipeline", KUBEFLOW) is None:
        pytest.skip("needs Kubeflow Pipelines on the cluster: make platform")
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    revision = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    tag = os.environ.get("LINNET_IMAGE_TAG", revision.stdout.strip())
    nodes = json.loads(kubectl.run("get", "nodes", "-o", "json"))["items"]
    # A node that has just started has told of none yet, and what lost its name has none.
    images = [one for node in nodes for one in node["status"].get("images") or ()]
    there = {name for one in images for name in one["names"] or ()}
    for image in (f"linnet/cpu:{tag}", f"linnet/gpu:{tag}"):
        if not any(name.endswith(image) for name in there):
            pytest.skip(f"needs the image {image} on a node: make images kind-load")
    return tag


@pytest.fixture(scope="session")
def kubeflow(tag: str) -> Iterator[str]:
    """Yield the address of Kubeflow Pipelines, forwarded to this machine."""
    with forwarded(f"{KUBEFLOW}/svc/ml-pipeline", 8888) as url:
        yield url


@pytest.fixture(scope="session")
def pipeline(tag: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `train_and_release.yaml` for these images; the other pipelines are beside it."""
    folder = tmp_path_factory.mktemp("compiled")
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.compile", str(folder)]
    environment = {**os.environ, "LINNET_IMAGE_TAG": tag}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return folder / "train_and_release.yaml"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add what the cluster shows to the report of a test that failed."""
    report: Any = yield
    if report.failed and "kubectl" in getattr(item, "fixturenames", ()):
        report.sections.append(("pods and events", what_is_there()))
    return report


def what_is_there() -> str:
    """Return this run's objects, its pods' last lines and the events, and the controller's."""
    look = Kubectl(timeout_s=30)
    kinds = "inferenceservices,httproutes,deployments,replicasets,pods"
    commands = [
        ("-n", NAMESPACE, "get", kinds, "-o", "wide"),
        ("-n", NAMESPACE, "get", "events", "--sort-by=.lastTimestamp"),
        ("-n", NAMESPACE, "logs", "-l", "serving.kserve.io/inferenceservice", "--tail=20"),
        ("-n", "kserve", "get", "pods", "-o", "wide"),
        ("-n", "envoy-gateway-system", "get", "pods", "-o", "wide"),
        ("-n", "kubeflow", "get", "pods"),
    ]
    return "\n".join(_said(look, command) for command in commands)


def _said(look: Kubectl, command: tuple[str, ...]) -> str:
    try:
        said = look.run(*command)
    except InstallError as error:
        said = str(error)
    return f"$ kubectl {' '.join(command)}\n" + "\n".join(said.splitlines()[-60:])


def _copy(kubectl: Kubectl, kind: str, name: str) -> Object:
    found = kubectl.get(kind, name, SERVING)
    assert found is not None, f"the platform's namespace {SERVING} has no {kind} {name}"
    kept = {key: value for key, value in found.items() if key != "status"}
    known = found["metadata"]
    metadata = {key: known[key] for key in ("name", "labels", "annotations") if key in known}
    return {**kept, "metadata": {**metadata, "namespace": NAMESPACE}}


def _way_to_store() -> Object:
    """Return the policy that lets this run's pods fetch releases from the platform's store."""
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}}
    policy = _object("networking.k8s.io/v1", "NetworkPolicy", NAMESPACE, namespace=PLATFORM)
    spec = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "minio"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [here], "ports": [{"port": 9000, "protocol": "TCP"}]}],
    }
    return {**policy, "spec": spec}


def _object(api: str, kind: str, name: str, **metadata: Any) -> Object:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, **metadata}}
