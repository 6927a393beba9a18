"""A Kubernetes API on 127.0.0.1 that keeps objects, with what KServe and a gateway make of them.

One thread plays KServe's controller (Deployments, readiness, replicas, the route's weights),
another one the gateway: it sends requests by the route's weights and counts those that are lost.
"""

import copy
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Object = dict[str, Any]

NAMESPACE = "linnet-serving"
ISVC = ("serving.kserve.io/v1beta1", "inferenceservices")
DEPLOYMENT = ("apps/v1", "deployments")
ROUTE = ("gateway.networking.k8s.io/v1", "httproutes")
GATEWAY = ("gateway.networking.k8s.io/v1", "gateways")
POD = ("v1", "pods")
CONFIG_MAP = ("v1", "configmaps")
LEASE = ("coordination.k8s.io/v1", "leases")
REVIEW = ("authorization.k8s.io/v1", "selfsubjectaccessreviews")

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_COUNTED = ("inferenceservices", "configmaps", "httproutes")
_REQUESTS_A_TICK = 40
_TICK_S = 0.01


class Refusal(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Kube:
    """The API server's state and switches.

    `servers`: what answers on a version's pods, as (method, path, body) → (status, body).
    `broken`: a version's container status, for pods that don't become ready.
    `ends`: by a process's token, the write (1 is the first) at which that process is killed, and
    whether this write still comes through; leases don't count.
    """

    servers: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, Object] = field(default_factory=dict)
    denied: set[tuple[str, str]] = field(default_factory=set)
    ends: dict[str, tuple[int, bool]] = field(default_factory=dict)
    down: bool = False
    controller_on: bool = True
    moves_traffic: bool = True
    sent: int = 0
    lost: int = 0
    by_version: dict[str, int] = field(default_factory=dict)
    writes: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[tuple[str, str, str, str], Object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self._version = 0
        self._stop = threading.Event()
        self._random = random.Random(7)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._threads = [
            threading.Thread(target=self._http.serve_forever, args=(0.02,)),
            threading.Thread(target=self._repeat, args=(self._control,)),
            threading.Thread(target=self._repeat, args=(self._send,)),
        ]
        self._install()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join()

    def kubeconfig(self, token: str = "secret") -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": token}}],
        }

    def get(self, kind: tuple[str, str], name: str, namespace: str = NAMESPACE) -> Object:
        with self.lock:
            found = self.objects.get((*kind, namespace, name))
            if found is None:
                raise Refusal(404, f'{kind[1]} "{name}" not found')
            return copy.deepcopy(found)

    def put(self, kind: tuple[str, str], body: Object, namespace: str = NAMESPACE) -> Object:
        """Keep an object; a changed spec is a new generation."""
        with self.lock:
            self._version += 1
            key = (*kind, namespace, body["metadata"]["name"])
            before = self.objects.get(key)
            metadata = {**body["metadata"], "namespace": namespace}
            metadata["resourceVersion"] = str(self._version)
            metadata["generation"] = 1
            if before is not None:
                changed = before.get("spec") != body.get("spec")
                metadata["generation"] = before["metadata"]["generation"] + changed
            self.objects[key] = copy.deepcopy({**body, "metadata": metadata})
            return self.objects[key]

    def serve(self, model: str, version: str, *, replicas: int = 2) -> None:
        """Let a champion serve, as if it had been there for long."""
        self.put(
            ISVC,
            {
                "apiVersion": ISVC[0],
                "kind": "InferenceService",
                "metadata": {
                    "name": model,
                    "annotations": {
                        "serving.kserve.io/deploymentMode": "Standard",
                        "serving.kserve.io/autoscalerClass": "none",
                    },
                },
                "spec": {
                    "predictor": {
                        "name": version,
                        "minReplicas": replicas,
                        "model": {
                            "modelFormat": {"name": "linnet"},
                            "runtime": "linnet",
                            "storageUri": f"s3://linnet/releases/{model}/{version}",
                        },
                    }
                },
            },
        )
        self.wait(lambda: self._settled(model, version))

    def wait(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.005)

    def weights(self, model: str) -> dict[str, int]:
        refs = self.get(ROUTE, model)["spec"]["rules"][0]["backendRefs"]
        return {ref["name"]: ref["weight"] for ref in refs}

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, bytes] | None:
        """Answer one request of the API; None when it is down, or who asks was killed."""
        try:
            last = self.ends.get(token)
            if self.down or last == (0, False):
                return None
            counted = method != "GET" and any(f"/{one}" in path for one in _COUNTED)
            if last is not None and counted:
                self.ends[token] = (last[0] - 1, last[1]) if last[0] > 1 else (0, False)
                if last[0] == 1:
                    if last[1]:
                        self._answer(method, path, body)
                    return None
            return self._answer(method, path, body)
        except Refusal as refusal:
            status = {"kind": "Status", "message": str(refusal), "code": refusal.status}
            return refusal.status, json.dumps(status).encode()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        split = urllib.parse.urlsplit(path)
        parts = split.path.strip("/").split("/")
        api = "/".join(parts[1:3]) if parts[0] == "apis" else parts[1]
        rest = parts[3:] if parts[0] == "apis" else parts[2:]
        given = json.loads(body) if body else {}
        if (api, rest[0]) == REVIEW:
            return 201, json.dumps(self._review(given)).encode()
        namespace, plural, *names = rest[1:]
        if len(names) > 1 and names[1] == "proxy":
            self._allow(_VERBS[method], "pods/proxy")
            return self._proxy(method, names[0], "/" + "/".join(names[2:]), body)
        verb = "list" if method == "GET" and not names else _VERBS[method]
        self._allow(verb, plural)
        kind = (api, plural)
        with self.lock:
            if verb in ("create", "update", "patch", "delete"):
                self.writes.append((verb, plural))
            if verb == "list":
                found = self._list(kind, namespace, urllib.parse.parse_qs(split.query))
                return 200, json.dumps({"items": found}).encode()
            if verb == "create":
                if (*kind, namespace, given["metadata"]["name"]) in self.objects:
                    raise Refusal(409, "already exists")
                return 201, json.dumps(self.put(kind, given, namespace)).encode()
            present = self.get(kind, names[0], namespace)
            if verb == "get":
                return 200, json.dumps(present).encode()
            if verb == "delete":
                self._remove(kind, names[0], namespace)
                return 200, b"{}"
            if verb == "update":
                expected = given["metadata"].get("resourceVersion")
                if expected not in (None, present["metadata"]["resourceVersion"]):
                    raise Refusal(409, "the object has been modified")
                return 200, json.dumps(self.put(kind, given, namespace)).encode()
            merged = _merge(present, given) if isinstance(given, dict) else _apply(present, given)
            if kind == ISVC:
                _admit(merged, present)
            return 200, json.dumps(self.put(kind, merged, namespace)).encode()

    def _allow(self, verb: str, plural: str) -> None:
        if (verb, plural) in self.denied:
            raise Refusal(403, f'User "me" cannot {verb} resource "{plural}"')

    def _review(self, review: Object) -> Object:
        asked = review["spec"]["resourceAttributes"]
        what = "/".join(part for part in (asked["resource"], asked["subresource"]) if part)
        return {**review, "status": {"allowed": (asked["verb"], what) not in self.denied}}

    def _list(self, kind: tuple[str, str], namespace: str, query: Any) -> list[Object]:
        if kind not in {(api, plural) for api, plural, _, _ in self.objects} and kind != POD:
            raise Refusal(404, "the server could not find the requested resource")
        label, _, value = query.get("labelSelector", [""])[0].partition("=")
        return [
            copy.deepcopy(found)
            for (api, plural, where, _), found in sorted(self.objects.items())
            if (api, plural) == kind
            and where == namespace
            and (not label or (found["metadata"].get("labels") or {}).get(label) == value)
        ]

    def _remove(self, kind: tuple[str, str], name: str, namespace: str = NAMESPACE) -> None:
        with self.lock:
            self.objects.pop((*kind, namespace, name), None)

    def _proxy(self, method: str, pod: str, path: str, body: bytes) -> tuple[int, bytes]:
        name = pod.partition(":")[0]
        version = self.get(POD, name)["metadata"]["labels"]["version"]
        status, answer = self.servers[version].answer(method, path, body)
        return int(status), bytes(answer)

    def _repeat(self, what: Callable[[], None]) -> None:
        while not self._stop.wait(_TICK_S):
            with self.lock:
                what()

    def _control(self) -> None:
        """Do what KServe and the Deployment controller do, a tick after they see a change."""
        if not self.controller_on:
            return
        names = [key[3] for key in self.objects if key[:3] == (*ISVC, NAMESPACE)]
        for name in names:
            self._control_one(self.get(ISVC, name))
        self._clean(set(names))
        for key in [key for key in self.objects if key[:2] == ROUTE]:
            route = self.get(ROUTE, key[3])
            if "isvc" not in (route["metadata"].get("labels") or {}):
                self._keep(ROUTE, {**route, "status": _accepted(route["metadata"]["generation"])})

    def _control_one(self, service: Object) -> None:
        name, spec = service["metadata"]["name"], service["spec"]
        stable, canaries = spec["predictor"], spec.get("canary") or []
        ready = [one for one in canaries if self._available(_service(name, one["predictor"]))]
        taken = sum(one["predictor"]["minReplicas"] for one in ready)
        replicas = max(stable["minReplicas"] - taken, 1) if taken else stable["minReplicas"]
        self._deploy(name, stable, replicas)
        for one in canaries:
            self._deploy(name, one["predictor"], one["predictor"]["minReplicas"])
        if self._available(_service(name, stable)):
            self._route(name, stable, ready if self.moves_traffic else [])
        wanted = {_service(name, predictor) for predictor in (stable, *_predictors(canaries))}
        for key in [key for key in self.objects if key[:2] == DEPLOYMENT]:
            owner = self.objects[key]["metadata"].get("labels", {}).get("isvc")
            if owner == name and key[3] not in wanted:
                self._remove(DEPLOYMENT, key[3])

    def _clean(self, services: set[str]) -> None:
        for key in [key for key in self.objects if key[:2] in (DEPLOYMENT, ROUTE)]:
            owner = (self.objects[key]["metadata"].get("labels") or {}).get("isvc")
            if owner and owner not in services:
                self._remove(key[:2], key[3])
        for key in [key for key in self.objects if key[:2] == POD]:
            deployment = self.objects[key]["metadata"]["labels"]["app"].removeprefix("isvc.")
            if (*DEPLOYMENT, NAMESPACE, deployment) not in self.objects:
                self._remove(POD, key[3])

    def _available(self, deployment: str) -> bool:
        found = self.objects.get((*DEPLOYMENT, NAMESPACE, deployment))
        return found is not None and found.get("status", {}).get("availableReplicas", 0) > 0

    def _deploy(self, model: str, predictor: Object, replicas: int) -> None:
        name = _service(model, predictor)
        version = predictor["model"]["storageUri"].rpartition("/")[2]
        broken = self.broken.get(version)
        pods = [f"{name}-{number}" for number in range(replicas)]
        for pod in pods:
            self._pod(pod, name, version, broken)
        for key in [key for key in self.objects if key[:2] == POD and key[3].startswith(name)]:
            if key[3] not in pods:
                self._remove(POD, key[3])
        available = 0 if broken else replicas
        generation = self.objects.get((*DEPLOYMENT, NAMESPACE, name), {"metadata": {}})["metadata"]
        self._keep(
            DEPLOYMENT,
            {
                "metadata": {"name": name, "labels": {"isvc": model}},
                "spec": {"replicas": replicas},
                "status": {
                    "observedGeneration": generation.get("generation", 1),
                    "replicas": replicas,
                    "updatedReplicas": replicas,
                    "availableReplicas": available,
                },
            },
        )

    def _pod(self, name: str, deployment: str, version: str, broken: Object | None) -> None:
        ready = "False" if broken else "True"
        status: Object = {"conditions": [{"type": "Ready", "status": ready}]}
        if broken:
            status |= broken
        labels = {"app": f"isvc.{deployment}", "version": version}
        self._keep(POD, {"metadata": {"name": name, "labels": labels}, "status": status})

    def _route(self, model: str, stable: Object, canaries: list[Object]) -> None:
        refs = [{"name": _service(model, stable), "weight": 100}]
        for one in canaries:
            refs[0]["weight"] -= one["trafficPercent"]
            service = _service(model, one["predictor"])
            refs.append({"name": service, "weight": one["trafficPercent"]})
        for name in (model, f"{model}-predictor"):
            before = self.objects.get((*ROUTE, NAMESPACE, name))
            generation = before["metadata"]["generation"] if before else 1
            self._keep(
                ROUTE,
                {
                    "metadata": {"name": name, "labels": {"isvc": model}},
                    "spec": {"rules": [{"backendRefs": refs}, {"backendRefs": refs}]},
                    "status": _accepted(generation),
                },
            )

    def _keep(self, kind: tuple[str, str], body: Object) -> None:
        before = self.objects.get((*kind, NAMESPACE, body["metadata"]["name"]))
        if before is None or any(before.get(key) != body.get(key) for key in ("spec", "status")):
            self.put(kind, body)

    def _settled(self, model: str, version: str) -> bool:
        with self.lock:
            try:
                return self.weights(model) == {f"{model}-{version}-predictor": 100}
            except Refusal:
                return False

    def _send(self) -> None:
        """Send requests as a gateway does, and count those that meet no ready pod."""
        routes = [
            key[3] for key in self.objects if key[:2] == ROUTE and not key[3].endswith("-predictor")
        ]
        for model in routes:
            weights = self.weights(model)
            total = sum(weights.values())
            for _ in range(_REQUESTS_A_TICK if total else 0):
                [service] = self._random.choices(list(weights), list(weights.values()))
                self._request(model, service)

    def _request(self, model: str, service: str) -> None:
        self.sent += 1
        if not self._available(service):
            self.lost += 1
            return
        pods = [
            found["metadata"]["labels"]["version"]
            for key, found in self.objects.items()
            if key[:2] == POD and found["metadata"]["labels"]["app"] == f"isvc.{service}"
        ]
        server = self.servers.get(pods[0]) if pods else None
        if server is not None:
            self.by_version[pods[0]] = self.by_version.get(pods[0], 0) + 1
            server.count()

    def _install(self) -> None:
        controller = {"name": "manager", "image": "docker.io/kserve/kserve-controller:v0.21.0"}
        self.put(
            DEPLOYMENT,
            {
                "metadata": {"name": "kserve-controller-manager"},
                "spec": {"template": {"spec": {"containers": [controller]}}},
            },
            "kserve",
        )
        ingress = {"enableGatewayApi": True, "kserveIngressGateway": "kserve/gateway"}
        self.put(
            CONFIG_MAP,
            {
                "metadata": {"name": "inferenceservice-config"},
                "data": {"ingress": json.dumps(ingress)},
            },
            "kserve",
        )
        addresses = {"addresses": [{"value": "127.0.0.1"}]}
        self.put(GATEWAY, {"metadata": {"name": "gateway"}, "status": addresses}, "kserve")
        # So that the kind is known even when there is none.
        self.put(ISVC, {"metadata": {"name": "other"}, "spec": {}}, "elsewhere")


def _handler(kube: Kube) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            answered = kube.answer(self.command, self.path, body, token)
            if answered is None:
                self.close_connection = True
                return
            status, answer = answered
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _accepted(generation: int) -> Object:
    accepted = {"type": "Accepted", "status": "True", "observedGeneration": generation}
    return {"parents": [{"conditions": [accepted]}]}


def _service(model: str, predictor: Object) -> str:
    name = predictor.get("name")
    return f"{model}-{name}-predictor" if name else f"{model}-predictor"


def _predictors(canaries: list[Object]) -> list[Object]:
    return [one["predictor"] for one in canaries]


def _admit(service: Object, before: Object) -> None:
    """Refuse what KServe's webhook refuses."""
    stable, canaries = service["spec"]["predictor"], service["spec"].get("canary") or []
    if sum(one["trafficPercent"] for one in canaries) > 100:
        raise Refusal(400, "sum of canary trafficPercent values must be <= 100")
    for one in canaries:
        if one["predictor"]["name"] == stable.get("name"):
            raise Refusal(400, "canary predictor.name conflicts with stable predictor name")
        if one["predictor"]["minReplicas"] > stable["minReplicas"]:
            raise Refusal(400, "minReplicas must not exceed stable predictor minReplicas")
    old = before["spec"]["predictor"]
    renamed = old.get("name") != stable.get("name")
    if renamed and old["model"]["storageUri"] == stable["model"]["storageUri"]:
        raise Refusal(400, "predictor.name change requires a model change")


def _merge(present: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(present) if isinstance(present, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _apply(present: Object, operations: list[Object]) -> Object:
    """Apply a JSON patch (RFC 6902): test, add, replace and remove."""
    result = copy.deepcopy(present)
    for one in operations:
        *path, last = [int(p) if p.isdigit() else p for p in one["path"].strip("/").split("/")]
        at: Any = result
        try:
            for part in path:
                at = at[part]
            if one["op"] == "test" and at[last] != one["value"]:
                raise Refusal(422, f"testing value {one['path']} failed: it is {at[last]}")
            if one["op"] == "remove":
                del at[last]
        except (KeyError, IndexError) as error:
            raise Refusal(422, f"{one['op']} {one['path']}: no such path") from error
        if one["op"] in ("add", "replace"):
            at[last] = one["value"]
    return result
