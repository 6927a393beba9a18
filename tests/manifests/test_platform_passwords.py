"""The passwords that an install makes, with a kubectl that keeps Secrets in a folder."""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from manifests.install import passwords
from manifests.install.kubectl import Kubectl

PARTS = ("gateway", "kserve", "store", "tracking")
# get secret NAME -n NAMESPACE …; apply … -f -
KUBECTL = f"""#!{sys.executable}
import base64, json, pathlib, sys, yaml
folder = pathlib.Path(__file__).parent
if sys.argv[1] == "get":
    file = folder / f"{{sys.argv[5]}}.{{sys.argv[3]}}.json"
    print(file.read_text() if file.exists() else "")
else:
    for one in yaml.safe_load_all(sys.stdin):
        texts = one.pop("stringData")
        one["data"] = {{k: base64.b64encode(v.encode()).decode() for k, v in texts.items()}}
        name = one["metadata"]["namespace"] + "." + one["metadata"]["name"]
        (folder / f"{{name}}.json").write_text(json.dumps(one))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the kubectl first on the path; return the folder of its Secrets."""
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def make(parts: tuple[str, ...] = PARTS) -> None:
    passwords.make(Kubectl(timeout_s=10), parts)


def secret(cluster: Path, name: str) -> dict[str, str]:
    data: dict[str, Any] = json.loads((cluster / f"{name}.json").read_text())["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_every_password_is_made_once_and_kept(cluster: Path) -> None:
    make()
    first = {file.name: file.read_text() for file in cluster.glob("*.json")}
    made = [*secret(cluster, "linnet-platform.minio").values()]
    made += secret(cluster, "linnet-platform.postgres").values()
    assert len({*made}) == len(made)
    assert all(len(password) == 40 for password in made)
    make()
    assert {file.name: file.read_text() for file in cluster.glob("*.json")} == first


def test_workers_of_a_search_are_told_the_database_that_is_made_for_them(cluster: Path) -> None:
    make()
    password = secret(cluster, "linnet-platform.postgres")["search-password"]
    assert secret(cluster, "kubeflow.linnet-search") == {
        "LINNET_SEARCH_STORAGE": f"postgresql+psycopg2://search:{password}"
        "@postgres.linnet-platform.svc:5432/search"
    }


def test_without_the_platform_s_database_no_search_is_sent_to_it(cluster: Path) -> None:
    make(("gateway", "kserve", "store"))
    assert not (cluster / "kubeflow.linnet-search.json").exists()


def test_argo_events_is_given_a_key_of_its_own_to_the_store(cluster: Path) -> None:
    make()
    assert secret(cluster, "linnet-platform.linnet-events") == {
        "access-key": "linnet-events",
        "secret-key": secret(cluster, "linnet-platform.minio")["linnet-events"],
    }


def test_a_secret_of_somebody_s_own_is_left_alone(cluster: Path) -> None:
    own = {"metadata": {"labels": {}}, "data": {"AWS_ACCESS_KEY_ID": "b3du"}}
    (cluster / "kubeflow.linnet-s3.json").write_text(json.dumps(own))
    make()
    assert secret(cluster, "kubeflow.linnet-s3") == {"AWS_ACCESS_KEY_ID": "own"}
    assert secret(cluster, "linnet-serving.linnet-s3")["AWS_ACCESS_KEY_ID"] == "linnet-models"


def test_pods_start_anew_when_a_password_that_they_read_at_their_start_is_new(
    cluster: Path,
) -> None:
    make()
    before = read_by(server := deployment("minio", "linnet-mlflow"))
    store = read_by(deployment("minio", "root-password"))
    assert read_by(server) == before
    file = cluster / "linnet-platform.minio.json"
    stored = json.loads(file.read_text())
    del stored["data"]["linnet-mlflow"]
    file.write_text(json.dumps(stored))
    make()
    assert read_by(server) != before
    assert read_by(deployment("minio", "root-password")) == store
    assert "annotations" not in server["spec"]["template"]["metadata"]


def test_pods_that_read_no_secret_are_left_as_they_are(cluster: Path) -> None:
    plain = deployment("minio", "root-user")
    del plain["spec"]["template"]["spec"]["containers"][0]["env"]
    assert passwords.stamped(Kubectl(timeout_s=10), [plain]) == [plain]


def deployment(name: str, key: str) -> dict[str, Any]:
    env = [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}]
    pod = {"metadata": {}, "spec": {"containers": [{"name": "server", "env": env}]}}
    metadata = {"name": "server", "namespace": "linnet-platform"}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"template": pod}}


def read_by(one: dict[str, Any]) -> str:
    (stamped,) = passwords.stamped(Kubectl(timeout_s=10), [one])
    return str(stamped["spec"]["template"]["metadata"]["annotations"][passwords.READ])
