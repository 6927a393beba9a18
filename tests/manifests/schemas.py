"""What is wrong with a manifest: fields no API server would know, and pods that are too free."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import yaml

Manifest = dict[str, Any]

# The oldest Kubernetes that is promised, and one of today.
KUBERNETES = ("1.30", "1.34")
# Kinds of others whose schemas no package brings; a cluster checks them (tests/cluster).
_ELSEWHERE = (
    "gateway.networking.k8s.io/",
    "gateway.envoyproxy.io/",
    "monitoring.coreos.com/",
)
_KSERVE = {
    "InferenceService": "V1beta1InferenceService",
    "ServingRuntime": "V1alpha1ServingRuntime",
    "ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
}


def read(path: Path) -> list[Any]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def problems(manifest: Manifest) -> list[str]:
    """Return what the schema of its kind has against a manifest."""
    api = manifest["apiVersion"]
    if api.startswith("serving.kserve.io/"):
        return list(_unknown(manifest, _kserve(_KSERVE[manifest["kind"]]), manifest["kind"]))
    if api.startswith(_ELSEWHERE):
        return []
    found = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{manifest['kind']} {manifest['metadata']['name']}: {error}")
    return found


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the pod specs that a manifest makes or is a part of."""
    spec = manifest.get("spec") or {}
    match manifest["kind"]:
        case "Pod" | "ServingRuntime" | "ClusterServingRuntime":
            yield spec
        case "CronJob":
            yield spec["jobTemplate"]["spec"]["template"]["spec"]
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            yield spec["template"]["spec"]


def unrestricted(pod: Manifest) -> list[str]:
    """Return what the restricted Pod Security Standard forbids in a pod spec."""
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [
        f"volume {volume['name']} is of a kind that is not allowed"
        for volume in pod.get("volumes", ())
        if not volume.keys() & _VOLUMES
    ]
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    return found + [
        f"container {container['name']}: {problem}"
        for container in containers
        for problem in _free(container, pod.get("securityContext") or {})
    ]


_VOLUMES = {
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def _free(container: Manifest, of_pod: Manifest) -> Iterator[str]:
    own = container.get("securityContext") or {}
    security = {**of_pod, **own}
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "capabilities are not all dropped"
    if set(own.get("capabilities", {}).get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if own.get("privileged"):
        yield "privileged"
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccompProfile"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"


def _unknown(value: Any, model: Any, path: str) -> Iterator[str]:
    """Yield the fields of a value that a model of an OpenAPI client hasn't, however deep."""
    if not isinstance(value, dict):
        yield f"{path} is {value!r}, expected an object"
        return
    attributes = {key: name for name, key in model.attribute_map.items()}
    for key, inner in value.items():
        if key not in attributes and key in attributes.values():
            yield f"{path}.{key} is written otherwise"
        elif key not in attributes:
            yield f"{path}.{key} is unknown"
        else:
            yield from _wrong(inner, model.openapi_types[attributes[key]], f"{path}.{key}")


def _wrong(value: Any, kind: str, path: str) -> Iterator[str]:
    simple = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
    if kind.startswith("list["):
        if not isinstance(value, list):
            yield f"{path} is {value!r}, expected a list"
            return
        for number, item in enumerate(value):
            yield from _wrong(item, kind[5:-1], f"{path}[{number}]")
    elif kind.startswith("dict("):
        for key, item in value.items():
            yield from _wrong(item, kind[5:-1].partition(", ")[2], f"{path}.{key}")
    elif kind in simple:
        if not isinstance(value, simple[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{path} is {value!r}, expected {kind}"
    elif kind not in ("IntOrString", "ResourceQuantity", "datetime"):
        yield from _unknown(value, _kserve(kind), path)


class _Model(NamedTuple):
    """What an OpenAPI client knows of an object: attributes by field, and their types."""

    attribute_map: dict[str, str]
    openapi_types: dict[str, str]


def _kserve(name: str) -> _Model:
    """Return a model of KServe's SDK, or of Kubernetes' that it refers to."""
    return _Model(**_models()[name])


@cache
def _models() -> dict[str, Any]:
    """Read both packages' models in another process.

    Importing kserve registers V2's protocol buffers under names that tritonclient, which other
    tests use, has registered too, and Python's protobuf takes a name once a process.
    """
    dumped = subprocess.run([sys.executable, "-c", _DUMP], capture_output=True, check=True)
    models: dict[str, Any] = json.loads(dumped.stdout)
    return models


_DUMP = """
import json, kubernetes.client, kserve.models
print(json.dumps({
    name: {"attribute_map": model.attribute_map, "openapi_types": model.openapi_types}
    for package in (kubernetes.client, kserve.models)
    for name, model in vars(package).items()
    if hasattr(model, "openapi_types")
}))
"""
