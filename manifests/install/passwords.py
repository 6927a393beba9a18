"""Passwords: made at install, kept when they exist, never in a file."""

import base64
import copy
import hashlib
import json
import secrets
from collections.abc import Collection, Iterator
from typing import Any

from manifests.install.kubectl import Kubectl, Object, identity

# Who changes one of these by hand takes this label off, and it is left alone from then on.
MANAGED = {"app.kubernetes.io/managed-by": "linnet-platform"}
# Of a pod: a digest of the passwords in its environment, which it reads only when it starts.
READ = "linnet/secrets"
# How KServe reaches the object store with the credentials beside it.
KSERVE_S3 = {
    "serving.kserve.io/s3-endpoint": "minio.linnet-platform.svc:9000",
    "serving.kserve.io/s3-usehttps": "0",
    "serving.kserve.io/s3-region": "us-east-1",
    "serving.kserve.io/s3-verifyssl": "0",
}
# Where the workers of a search share their trials.
SEARCH_STORAGE = "postgresql+psycopg2://search:{password}@postgres.linnet-platform.svc:5432/search"


def make(kubectl: Kubectl, parts: Collection[str]) -> None:
    """Make every Secret that is absent, and hand the stores' users to who needs them."""
    users = ("linnet-pipelines", "linnet-models", "linnet-mlflow", "linnet-events")
    minio = _kept(kubectl, "linnet-platform", "minio", (*users, "root-user", "root-password"))
    postgres = _kept(kubectl, "linnet-platform", "postgres", ("password", "search-password"))
    _kept(kubectl, "linnet-platform", "grafana", ("password",))
    _kept(kubectl, "kubeflow", "mysql-secret", ("password",), fixed={"username": "root"})
    _give(kubectl, "kubeflow", "linnet-s3", _credentials("linnet-pipelines", minio))
    models = _credentials("linnet-models", minio)
    _give(kubectl, "linnet-serving", "linnet-s3", models, annotations=KSERVE_S3)
    listener = {"access-key": "linnet-events", "secret-key": minio["linnet-events"]}
    _give(kubectl, "linnet-platform", "linnet-events", listener)
    if "tracking" in parts:
        storage = SEARCH_STORAGE.format(password=postgres["search-password"])
        _give(kubectl, "kubeflow", "linnet-search", {"LINNET_SEARCH_STORAGE": storage})


def stamped(kubectl: Kubectl, objects: list[Object]) -> list[Object]:
    """Return the objects so that pods start anew once a password that they read has changed."""
    return [_stamped(kubectl, one) for one in objects]


def _stamped(kubectl: Kubectl, one: Object) -> Object:
    named = sorted({*_in_environment(one)})
    if one["kind"] not in ("Deployment", "StatefulSet", "DaemonSet") or not named:
        return one
    _, namespace, _ = identity(one)
    known = {name: _read(kubectl, namespace, name) for name, _ in named}
    read = json.dumps([known[name].get(key) for name, key in named])
    one = copy.deepcopy(one)
    annotations = one["spec"]["template"]["metadata"].setdefault("annotations", {})
    annotations[READ] = hashlib.sha256(read.encode()).hexdigest()[:16]
    return one


def _in_environment(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the Secrets' names and keys."""
    match value:
        case {"secretKeyRef": {"name": str(name), "key": str(key)}}:
            yield name, key
        case dict():
            for inner in value.values():
                yield from _in_environment(inner)
        case list():
            for inner in value:
                yield from _in_environment(inner)


def _kept(
    kubectl: Kubectl,
    namespace: str,
    name: str,
    keys: tuple[str, ...],
    *,
    fixed: dict[str, str] | None = None,
) -> dict[str, str]:
    """Return a Secret's passwords, after making those that were absent."""
    known = _read(kubectl, namespace, name)
    wanted = {key: known.get(key) or secrets.token_hex(20) for key in keys} | (fixed or {})
    if wanted.items() - known.items():
        _write(kubectl, namespace, name, known | wanted, {})
    return wanted


def _credentials(user: str, minio: dict[str, str]) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": minio[user]}


def _give(
    kubectl: Kubectl,
    namespace: str,
    name: str,
    data: dict[str, str],
    *,
    annotations: dict[str, str] | None = None,
) -> None:
    """Write a Secret, unless somebody put their own there."""
    there = kubectl.get("secret", name, namespace)
    if there is None or MANAGED.items() <= there["metadata"].get("labels", {}).items():
        _write(kubectl, namespace, name, data, annotations or {})


def _read(kubectl: Kubectl, namespace: str, name: str) -> dict[str, str]:
    data = (kubectl.get("secret", name, namespace) or {}).get("data", {})
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _write(
    kubectl: Kubectl,
    namespace: str,
    name: str,
    data: dict[str, str],
    annotations: dict[str, str],
) -> None:
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": MANAGED,
        "annotations": annotations,
    }
    kubectl.apply(
        [{"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}]
    )
