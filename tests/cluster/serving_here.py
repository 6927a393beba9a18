"""What a rollout on a real cluster needs: releases in its store, a champion, ways in."""

import base64
import contextlib
import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from linnet.rollout.cluster import (
    CONFIG_MAPS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    LEASES,
    Cluster,
    Kind,
)
from linnet.stores.connections import Connections
from linnet.stores.objects import open_store
from manifests.install.kubectl import Kubectl
from tests.serving.photographs import opened
from tests.serving.tiny_release import write_release

NAMESPACE = os.environ.get("LINNET_TEST_NAMESPACE") or f"linnet-test-{secrets.token_hex(3)}"
STORE = os.environ.get("LINNET_TEST_STORE", "linnet-platform/svc/minio")
STORE_SECRET = os.environ.get("LINNET_TEST_STORE_SECRET", "kubeflow/linnet-s3")
GATEWAY = os.environ.get("LINNET_TEST_GATEWAY", "http://127.0.0.1:8080")
ROOT = "s3://linnet/releases"
# The pipeline may write here; models may not read here.
UNREADABLE = "s3://linnet/pipelines/unreadable"
SECRETS = Kind("v1", "secrets")
# Of the serving image; KServe allows no PYTHONPATH.
SITE_PACKAGES = "/opt/linnet/lib/python3.11/site-packages"
SMALL = {
    "requests": {"cpu": "20m", "memory": "192Mi"},
    "limits": {"cpu": "1", "memory": "512Mi"},
}
FAULTS = "linnet-test-faults"
_FAULTY = Path(__file__).parent / "faulty" / "linnet_faults.py"
# Python imports what a .pth file in its site-packages says, when it starts.
_FAULTY_HOOK = "linnet_faults.pth"


def pictures() -> dict[str, bytes]:
    """Return twelve small pictures, cut out of two photographs."""
    found = {}
    for name in ("china.jpg", "flower.jpg"):
        for number in range(6):
            out = BytesIO()
            left = 90 * number
            opened(name).crop((left, 40, left + 160, 200)).resize((96, 96)).save(out, "JPEG")
            found[f"{number}-{name}"] = out.getvalue()
    return found


def request_body() -> bytes:
    """Return one V2 request with a picture."""
    picture = base64.b64encode(pictures()["2-flower.jpg"]).decode()
    inputs = [{"name": "pictures", "datatype": "BYTES", "shape": [1], "data": [picture]}]
    outputs = [{"name": "label"}, {"name": "release"}]
    return json.dumps({"inputs": inputs, "outputs": outputs}).encode()


@contextlib.contextmanager
def forwarded(target: str, port: int) -> Iterator[str]:
    """Forward a port of this machine to `namespace/kind/name` and yield its URL."""
    namespace, _, name = target.partition("/")
    command = ["kubectl", "port-forward", "-n", namespace, name, f":{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found is not None, f"kubectl said {line!r}"
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def store_connections(cluster: Cluster, endpoint: str, workspace: Path) -> Connections:
    """Return the way to the cluster's store, with the pipeline's credentials: they may write."""
    namespace, _, name = STORE_SECRET.partition("/")
    data = cluster.get(SECRETS, name, namespace=namespace)["data"]
    keys = {key: base64.b64decode(value).decode() for key, value in data.items()}
    environ = {**keys, "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
    return Connections.from_environment(workspace, environ)


def small_runtime(kubectl: Kubectl) -> str:
    """Make a ServingRuntime like ours for small machines, and return its name."""
    ours = kubectl.get("clusterservingruntime", "linnet", "default")
    assert ours is not None
    [container] = ours["spec"]["containers"]
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "linnet-small", "namespace": NAMESPACE},
        "spec": {**ours["spec"], "containers": [{**container, "resources": SMALL}]},
    }
    kubectl.apply([runtime])
    return "linnet-small"


@dataclass
class Model:
    """A model of its own for one test: its releases, its champion and its host name."""

    name: str
    cluster: Cluster
    connections: Connections
    folder: Path

    @property
    def host(self) -> str:
        return f"{self.name}-{NAMESPACE}.example.com"

    def release(self, version: str, *, root: str = ROOT, encoded: bytes | None = None) -> str:
        """Write a release, of the tiny graph without another, to the store; return its address."""
        uri = f"{root}/{self.name}/{version}"
        made = write_release(
            self.folder, pictures(), model=self.name, version=version, encoded=encoded
        )
        store, prefix = open_store(uri, self.connections)
        for file in sorted(made.iterdir(), key=lambda file: file.name == "release.json"):
            store.upload(file, f"{prefix}/{file.name}")
        return uri

    def serve(self, version: str, *, replicas: int) -> None:
        """Create the InferenceService with a champion; `wait` for it with a rollout's traffic."""
        faults = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": FAULTS},
            "data": {_FAULTY.name: _FAULTY.read_text(), _FAULTY_HOOK: f"import {_FAULTY.stem}\n"},
        }
        if self.cluster.find(CONFIG_MAPS, FAULTS, namespace=NAMESPACE) is None:
            self.cluster.create(CONFIG_MAPS, faults, namespace=NAMESPACE)
        self.cluster.create(
            INFERENCE_SERVICES, self._service(version, replicas), namespace=NAMESPACE
        )

    def remove(self) -> None:
        self.cluster.delete(INFERENCE_SERVICES, self.name, namespace=NAMESPACE)
        self.cluster.delete(HTTP_ROUTES, self.name, namespace=NAMESPACE)
        for version in ("v1", "v2"):
            self.cluster.delete(INFERENCE_SERVICES, f"{self.name}-{version}", namespace=NAMESPACE)
        for kind in (CONFIG_MAPS, LEASES):
            self.cluster.delete(kind, f"linnet-rollout-{self.name}", namespace=NAMESPACE)

    def _service(self, version: str, replicas: int) -> dict[str, Any]:
        return {
            "apiVersion": INFERENCE_SERVICES.api,
            "kind": "InferenceService",
            "metadata": {
                "name": self.name,
                "annotations": {
                    "serving.kserve.io/deploymentMode": "Standard",
                    "serving.kserve.io/autoscalerClass": "none",
                },
            },
            "spec": {
                "predictor": {
                    "name": version,
                    "minReplicas": replicas,
                    "serviceAccountName": "linnet-models",
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 60,
                    "volumes": [{"name": "faults", "configMap": {"name": FAULTS}}],
                    "model": {
                        "modelFormat": {"name": "linnet"},
                        "protocolVersion": "v2",
                        "runtime": "linnet",
                        "storageUri": f"{ROOT}/{self.name}/{version}",
                        "args": ["--set=feedback=true"],
                        "volumeMounts": [
                            {
                                "name": "faults",
                                "mountPath": f"{SITE_PACKAGES}/{name}",
                                "subPath": name,
                            }
                            for name in (_FAULTY.name, _FAULTY_HOOK)
                        ],
                        "resources": SMALL,
                    },
                }
            },
        }
