"""An HTTPRoute of ours over two InferenceServices: weights for any KServe, and shadow traffic.

Each release is an InferenceService `<model>-<version>` of its own, which answers under the model's
name. The route `<model>` says who is champion (its first backend) and who is beside it.
"""

import json
import math

from linnet.errors import RolloutError
from linnet.rollout.cluster import (
    CONFIG_MAPS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    Object,
)
from linnet.rollout.traffic import Backend, OnKServe, Shown, first_service
from linnet.rollout.waiting import weights_of

CONFIGURATION = "inferenceservice-config"
_OWNER = {"app.kubernetes.io/managed-by": "linnet"}
_REST_PORT = 80
_GRPC_PORT = 8081


class RouteSplit(OnKServe):
    """Two InferenceServices and one HTTPRoute."""

    route_verbs = ("get", "create", "patch", "delete")

    def show(self) -> Shown:
        """Return what the route says.

        Raises:
            RolloutError: the model is served by one InferenceService, whose route KServe makes.
        """
        route = self._cluster.find(HTTP_ROUTES, self._model, namespace=self._namespace)
        if route is None:
            return Shown(None, None, 0)
        if not _OWNER.items() <= (route["metadata"].get("labels") or {}).items():
            raise RolloutError(
                f"the HTTPRoute {self._model} is KServe's, of an InferenceService of that name: "
                "use traffic: canary, or another model name"
            )
        weights = weights_of(route)
        services = list(weights)
        champion = self._backend(services[0])
        found = self._cluster.find(
            INFERENCE_SERVICES, self._name(champion.version), namespace=self._namespace
        )
        replicas = int(found["spec"]["predictor"].get("minReplicas") or 1) if found else 1
        if len(services) == 1:
            return Shown(champion, None, 0, replicas)
        candidate, weight = self._backend(services[1]), weights[services[1]]
        return Shown(champion, candidate, weight, replicas)

    def create(self, version: str, uri: str) -> None:
        """Serve the first release and make the route."""
        self._serve(version, uri, like=None)
        service = self._service(version)
        if self._cluster.find(HTTP_ROUTES, self._model, namespace=self._namespace) is None:
            self._cluster.create(
                HTTP_ROUTES, self._route({service: 100}), namespace=self._namespace
            )
        self._wait({service: 100})

    def add(self, version: str, uri: str, *, replicas: int) -> None:
        """Serve the candidate as the champion is served, without requests but mirrored ones."""
        shown = self.show()
        if shown.champion is None:
            raise RolloutError(f"there is no HTTPRoute {self._model}: nothing serves")
        like = self._cluster.get(
            INFERENCE_SERVICES, self._name(shown.champion.version), namespace=self._namespace
        )
        self._serve(version, uri, like=like)
        if shown.candidate is None:
            self._weigh({shown.champion.service: 100, self._service(version): 0})

    def set_weight(self, weight: int, *, replicas: int) -> None:
        """Scale the candidate in proportion, then set the weights and wait for the route."""
        shown = self.show()
        if shown.champion is None or shown.candidate is None:
            raise RolloutError(f"the HTTPRoute {self._model} has no candidate: another changed it")
        if weight:
            self._scale(shown.candidate, weight, replicas)
        self._weigh({shown.champion.service: 100 - weight, shown.candidate.service: weight})

    def promote(self, *, replicas: int) -> None:
        """Leave the candidate alone in the route, then delete the old InferenceService."""
        shown = self.show()
        if shown.champion is not None and shown.candidate is not None:
            self.set_weight(100, replicas=replicas)
            self._weigh({shown.candidate.service: 100})
        self._clean()

    def remove(self, *, replicas: int) -> None:
        """Set the weight to 0, take the candidate out of the route, then delete it."""
        shown = self.show()
        if shown.champion is not None and shown.candidate is not None:
            self.set_weight(0, replicas=replicas)
            self._weigh({shown.champion.service: 100})
        self._clean()

    def delete(self) -> None:
        """Delete the route and everything behind it."""
        self._cluster.delete(HTTP_ROUTES, self._model, namespace=self._namespace)
        self._clean()

    def _clean(self) -> None:
        """Delete this model's InferenceServices that are not in the route."""
        shown = self.show()
        kept = {one.version for one in (shown.champion, shown.candidate) if one is not None}
        for service in self._cluster.list(
            INFERENCE_SERVICES, namespace=self._namespace, labels=f"linnet/model={self._model}"
        ):
            version = service["metadata"]["labels"]["linnet/version"]
            if version not in kept:
                self._cluster.delete(
                    INFERENCE_SERVICES, self._name(version), namespace=self._namespace
                )
                self._waits.gone(self._service(version))

    def _serve(self, version: str, uri: str, *, like: Object | None) -> None:
        name = self._name(version)
        if len(f"isvc.{self._service(version)}") > 63:
            raise RolloutError(
                f"{self._service(version)} is too long a name for Kubernetes: shorten the version"
            )
        if self._cluster.find(INFERENCE_SERVICES, name, namespace=self._namespace) is None:
            body = self._inference_service(version, uri, like)
            self._cluster.create(INFERENCE_SERVICES, body, namespace=self._namespace)
        self._waits.ready(self._service(version), version, owner=name)

    def _inference_service(self, version: str, uri: str, like: Object | None) -> Object:
        body = like or first_service(self._model, version, uri, self._settings)
        ready = {"httpGet": {"path": f"/v2/models/{self._model}/ready", "port": 8080}}
        predictor = {
            key: value for key, value in body["spec"]["predictor"].items() if key != "name"
        }
        own = [one for one in predictor["model"].get("args", ()) if "model_name" not in one]
        predictor["model"] = {
            **predictor["model"],
            "storageUri": uri,
            # The runtime's own are by the InferenceService's name, which is another; the last wins.
            "args": [*own, f"--model_name={self._model}"],
            "readinessProbe": {**ready, "periodSeconds": 2, "failureThreshold": 1},
            "startupProbe": {**ready, "periodSeconds": 1, "failureThreshold": 120},
        }
        return {
            "apiVersion": INFERENCE_SERVICES.api,
            "kind": "InferenceService",
            "metadata": {
                "name": self._name(version),
                "labels": {"linnet/model": self._model, "linnet/version": version},
                "annotations": {
                    "serving.kserve.io/deploymentMode": "Standard",
                    "serving.kserve.io/autoscalerClass": "none",
                },
            },
            "spec": {"predictor": predictor},
        }

    def _scale(self, candidate: Backend, weight: int, most: int) -> None:
        replicas = max(min(self._settings.replicas, most), math.ceil(most * weight / 100))
        name = self._name(candidate.version)
        there = self._cluster.get(INFERENCE_SERVICES, name, namespace=self._namespace)
        if int(there["spec"]["predictor"].get("minReplicas") or 1) < replicas:
            patch = {"spec": {"predictor": {"minReplicas": replicas}}}
            self._cluster.patch(INFERENCE_SERVICES, name, patch, namespace=self._namespace)
        self._waits.ready(candidate.service, candidate.version, owner=name)

    def _weigh(self, weights: dict[str, int]) -> None:
        spec = {"rules": self._rules(weights)}
        self._cluster.patch(HTTP_ROUTES, self._model, {"spec": spec}, namespace=self._namespace)
        self._wait(weights)

    def _wait(self, weights: dict[str, int]) -> None:
        self._waits.route(weights, names=(self._model,))

    def _route(self, weights: dict[str, int]) -> Object:
        configuration = self._cluster.get(
            CONFIG_MAPS, CONFIGURATION, namespace=self._settings.kserve_namespace
        )
        place = json.loads(configuration["data"]["ingress"])["kserveIngressGateway"]
        namespace, _, name = str(place).partition("/")
        return {
            "apiVersion": HTTP_ROUTES.api,
            "kind": "HTTPRoute",
            "metadata": {"name": self._model, "labels": _OWNER},
            "spec": {
                "hostnames": [
                    self._settings.host or f"{self._model}-{self._namespace}.example.com"
                ],
                "parentRefs": [{"name": name, "namespace": namespace}],
                "rules": self._rules(weights),
            },
        }

    def _rules(self, weights: dict[str, int]) -> list[Object]:
        grpc = {
            "path": {"type": "PathPrefix", "value": "/inference.GRPCInferenceService/"},
            "headers": [
                {
                    "type": "RegularExpression",
                    "name": "content-type",
                    "value": "^application/grpc.*",
                }
            ],
        }
        rest = {"path": {"type": "PathPrefix", "value": "/"}}
        return [
            self._rule(grpc, weights, _GRPC_PORT),
            self._rule(rest, weights, _REST_PORT),
        ]

    def _rule(self, match: Object, weights: dict[str, int], port: int) -> Object:
        rule: Object = {
            "matches": [match],
            "backendRefs": [
                {"name": name, "port": port, "weight": weight} for name, weight in weights.items()
            ],
        }
        *others, last = weights
        share = self._settings.mirror_percent
        if others and not weights[last] and share and port == _REST_PORT:
            mirror = {"name": last, "port": port}
            rule["filters"] = [
                {
                    "type": "RequestMirror",
                    "requestMirror": {"backendRef": mirror, "percent": share},
                }
            ]
        return rule

    def _name(self, version: str) -> str:
        return f"{self._model}-{version}"

    def _service(self, version: str) -> str:
        return f"{self._model}-{version}-predictor"

    def _backend(self, service: str) -> Backend:
        version = service.removeprefix(f"{self._model}-").removesuffix("-predictor")
        found = self._cluster.find(
            INFERENCE_SERVICES, self._name(version), namespace=self._namespace
        )
        uri = str(found["spec"]["predictor"]["model"]["storageUri"]) if found else ""
        return Backend(version, uri, service)
