"""Which share of the requests a candidate gets, on KServe's `spec.canary` and its HTTPRoute.

The order of the moves is what loses no request: a weight is asked for, and waited for until the
gateway's route carries it, before anything is renamed or removed. Nothing of a rollout's state goes
into the InferenceService: its labels and annotations would restart its pods.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from linnet.errors import RolloutError
from linnet.rollout.cluster import (
    DEPLOYMENTS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    PODS,
    Access,
    Cluster,
    Object,
)
from linnet.rollout.settings import RolloutSettings
from linnet.rollout.waiting import Waits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One release as it is served: `service` is its Deployment's and Service's name."""

    version: str
    uri: str
    service: str

    @property
    def labels(self) -> str:
        """Return the label selector of its pods."""
        return f"app=isvc.{self.service}"


@dataclass(frozen=True)
class Shown:
    """What the cluster shows of a model: who serves, who is beside it, and with which weight.

    `replicas` are the champion's, as asked for.
    """

    champion: Backend | None
    candidate: Backend | None
    weight: int
    replicas: int = 1


class Traffic(Protocol):
    """How releases of one model are put beside each other and get their shares."""

    needs: tuple[Access, ...]

    def show(self) -> Shown:
        """Return what the cluster shows, whoever made it so."""

    def create(self, version: str, uri: str) -> None:
        """Serve a model's first release, and wait until it is ready."""

    def add(self, version: str, uri: str, *, replicas: int) -> None:
        """Put a candidate beside the champion without any requests, and wait until it is ready.

        `replicas`: the model's pods, all in all, before there was a candidate.
        """

    def set_weight(self, weight: int, *, replicas: int) -> None:
        """Give the candidate this percentage of the requests, and wait until it has it."""

    def promote(self, *, replicas: int) -> None:
        """Make the candidate, which has all the traffic, the only one."""

    def remove(self, *, replicas: int) -> None:
        """Take the candidate's requests away, wait, and then take the candidate away."""

    def delete(self) -> None:
        """Delete a first release that never became ready."""


class OnKServe:
    """What both ways stand on: a cluster, the waits, and the rights that they need."""

    route_verbs: tuple[str, ...] = ("get",)

    def __init__(
        self,
        cluster: Cluster,
        model: str,
        settings: RolloutSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster = cluster
        self._model = model
        self._settings = settings
        self._namespace = settings.namespace
        self._waits = Waits(cluster, model, settings, sleep)
        self.needs = tuple(
            Access(verb, kind, settings.namespace)
            for kind, verbs in (
                (INFERENCE_SERVICES, ("get", "create", "patch", "delete")),
                (DEPLOYMENTS, ("get",)),
                (HTTP_ROUTES, self.route_verbs),
                (PODS, ("list",)),
            )
            for verb in verbs
        )


class KServeCanary(OnKServe):
    """One InferenceService with `spec.canary`, in KServe's Standard mode, from 0.21 on."""

    def show(self) -> Shown:
        """Return what the InferenceService says.

        Raises:
            RolloutError: it has more than one canary, or none of them can be a release of ours.
        """
        service = self._cluster.find(INFERENCE_SERVICES, self._model, namespace=self._namespace)
        if service is None:
            return Shown(None, None, 0)
        canaries = service["spec"].get("canary") or []
        if len(canaries) > 1:
            names = ", ".join(str(one["predictor"].get("name")) for one in canaries)
            raise RolloutError(
                f"the InferenceService {self._model} has {len(canaries)} canaries ({names}), "
                "expected one candidate at a time: remove the others"
            )
        champion = self._backend(service["spec"]["predictor"])
        if not canaries:
            return Shown(champion, None, 0, _replicas(service))
        return Shown(
            champion,
            self._backend(canaries[0]["predictor"]),
            int(canaries[0].get("trafficPercent", 0)),
            _replicas(service),
        )

    def create(self, version: str, uri: str) -> None:
        """Create the InferenceService with its first release, and wait until it is ready."""
        self._require_names(version)
        if self._cluster.find(INFERENCE_SERVICES, self._model, namespace=self._namespace) is None:
            body = first_service(self._model, version, uri, self._settings)
            self._cluster.create(INFERENCE_SERVICES, body, namespace=self._namespace)
        self._waits.ready(f"{self._model}-{version}-predictor", version)
        self._waits.route({f"{self._model}-{version}-predictor": 100})

    def add(self, version: str, uri: str, *, replicas: int) -> None:
        """Add the candidate at 0 %, with the champion's own pod settings and its own release."""
        self._require_names(version)
        service = self._service()
        if not service["spec"].get("canary"):
            predictor = service["spec"]["predictor"]
            first = min(self._settings.replicas, replicas)
            canary = {
                "trafficPercent": 0,
                "predictor": {
                    "name": version,
                    "minReplicas": first,
                    "model": {**predictor["model"], "storageUri": uri},
                },
            }
            # Of one pod KServe takes none.
            asked = replicas + first if replicas > 1 else replicas
            more = _put("/spec/predictor/minReplicas", asked)
            self._patch([_put("/spec/canary", [canary]), more])
        self._waits.ready(f"{self._model}-{version}-predictor", version)

    def set_weight(self, weight: int, *, replicas: int) -> None:
        """Set `trafficPercent`, and pods in proportion; wait for the route and the pods.

        KServe takes the pods that a ready canary asks for from those that the champion asks for, at
        once. So the champion asks for as many more, and has what its share of the requests needs.
        The candidate's own never become fewer while it is there: at 0 % it may still be answering.
        """
        service = self._service()
        canary = self._only_canary(service)
        there = int(canary["predictor"].get("minReplicas") or 0)
        share = math.ceil(replicas * weight / 100)
        wanted = max(there, min(self._settings.replicas, replicas), share)
        champion = self._backend(service["spec"]["predictor"])
        candidate = self._backend(canary["predictor"])
        same = _test("/spec/canary/0/predictor/name", canary["predictor"]["name"])
        pods = _put("/spec/canary/0/predictor/minReplicas", wanted)
        if wanted > there:
            more = _replicas(service) - there + wanted
            self._patch([same, _put("/spec/predictor/minReplicas", more), pods])
            self._waits.ready(candidate.service, candidate.version)
        rest = math.ceil(replicas * (100 - weight) / 100)
        self._patch(
            [
                same,
                pods,
                _put("/spec/predictor/minReplicas", rest + wanted),
                _put("/spec/canary/0/trafficPercent", weight),
            ]
        )
        self._waits.route({champion.service: 100 - weight, candidate.service: weight})
        if weight:
            self._waits.ready(candidate.service, candidate.version)

    def promote(self, *, replicas: int) -> None:
        """Rename the stable predictor to the candidate and remove the canary, in one patch.

        The candidate's Deployment becomes the stable one with its pods as they are. Before it the
        route must carry 100 %, or requests to the old Deployment are lost.
        """
        service = self._service()
        if not service["spec"].get("canary"):
            champion = self._backend(service["spec"]["predictor"])
            self._alone(champion)
            return
        canary = self._only_canary(service)
        champion = self._backend(service["spec"]["predictor"])
        candidate = self._backend(canary["predictor"])
        self.set_weight(100, replicas=replicas)
        self._patch(
            [
                _test("/spec/canary/0/predictor/name", candidate.version),
                _test("/spec/canary/0/trafficPercent", 100),
                *(
                    _put(f"/spec/predictor/{key}", value)
                    for key, value in canary["predictor"].items()
                    if key != "minReplicas"
                ),
                _put("/spec/predictor/minReplicas", replicas),
                {"op": "remove", "path": "/spec/canary"},
            ]
        )
        self._alone(candidate)
        self._waits.gone(champion.service)

    def remove(self, *, replicas: int) -> None:
        """Set the weight to 0, wait until the route carries it, then remove the canary."""
        service = self._service()
        champion = self._backend(service["spec"]["predictor"])
        if service["spec"].get("canary"):
            candidate = self._backend(self._only_canary(service)["predictor"])
            self.set_weight(0, replicas=replicas)
            self._patch(
                [
                    _test("/spec/canary/0/predictor/name", candidate.version),
                    _test("/spec/canary/0/trafficPercent", 0),
                    _put("/spec/predictor/minReplicas", replicas),
                    {"op": "remove", "path": "/spec/canary"},
                ]
            )
            self._waits.gone(candidate.service)
        self._alone(champion)

    def delete(self) -> None:
        """Delete the InferenceService."""
        self._cluster.delete(INFERENCE_SERVICES, self._model, namespace=self._namespace)

    def _alone(self, backend: Backend) -> None:
        self._waits.route({backend.service: 100})
        self._waits.ready(backend.service, backend.version)

    def _service(self) -> Object:
        return self._cluster.get(INFERENCE_SERVICES, self._model, namespace=self._namespace)

    def _patch(self, operations: list[Object]) -> None:
        self._cluster.patch(INFERENCE_SERVICES, self._model, operations, namespace=self._namespace)

    def _only_canary(self, service: Object) -> Object:
        canaries = service["spec"].get("canary") or []
        if len(canaries) != 1:
            raise RolloutError(
                f"the InferenceService {self._model} has {len(canaries)} canaries, expected one: "
                f"another one changed it; `linnet rollout status {self._model}` shows what is there"
            )
        return dict(canaries[0])

    def _backend(self, predictor: Object) -> Backend:
        uri = str((predictor.get("model") or {}).get("storageUri") or "")
        name = predictor.get("name") or ""
        service = "-".join(part for part in (self._model, name, "predictor") if part)
        return Backend(name or uri.rstrip("/").rpartition("/")[2], uri, service)

    def _require_names(self, version: str) -> None:
        label = f"isvc.{self._model}-{version}-predictor"
        if len(label) > 63:
            raise RolloutError(
                f"{self._model} and {version} make the label {label!r} of {len(label)} characters "
                "in KServe, at most 63 are allowed: shorten the release's version"
            )


def first_service(model: str, version: str, uri: str, settings: RolloutSettings) -> Object:
    """Return the InferenceService of a model's first release."""
    return {
        "apiVersion": INFERENCE_SERVICES.api,
        "kind": "InferenceService",
        "metadata": {
            "name": model,
            "namespace": settings.namespace,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "none",
            },
        },
        "spec": {
            "predictor": {
                "name": version,
                "minReplicas": settings.first_replicas,
                "serviceAccountName": settings.service_account,
                "automountServiceAccountToken": False,
                # The server's drain_wait_s and drain_timeout_s fit into it.
                "terminationGracePeriodSeconds": 60,
                "model": {
                    "modelFormat": {"name": "linnet"},
                    "protocolVersion": "v2",
                    "runtime": settings.runtime,
                    "storageUri": uri,
                },
            }
        },
    }


def _replicas(service: Object) -> int:
    return int(service["spec"]["predictor"].get("minReplicas") or 1)


def _test(path: str, value: object) -> Object:
    return {"op": "test", "path": path, "value": value}


def _put(path: str, value: object) -> Object:
    return {"op": "add", "path": path, "value": value}
