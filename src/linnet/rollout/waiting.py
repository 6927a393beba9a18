"""Waiting until the cluster has done what was asked of it, and saying why when it doesn't."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from linnet.errors import RolloutError
from linnet.rollout.cluster import (
    DEPLOYMENTS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    PODS,
    Cluster,
    Object,
)
from linnet.rollout.pods import Trouble, trouble_of
from linnet.rollout.settings import RolloutSettings


class Waits:
    """The waits of one model's rollout."""

    def __init__(
        self,
        cluster: Cluster,
        model: str,
        settings: RolloutSettings,
        sleep: Callable[[float], None],
    ) -> None:
        self._cluster = cluster
        self._model = model
        self._settings = settings
        self._namespace = settings.namespace
        self._sleep = sleep

    def ready(self, service: str, version: str, *, owner: str | None = None) -> None:
        """Wait until every replica of a Deployment is available; `owner` is its InferenceService.

        Raises:
            RolloutError: with the pods' own reason.
        """
        trouble: Trouble | None = None
        for _ in self._polls(self._settings.ready_timeout_s):
            deployment = self._cluster.find(DEPLOYMENTS, service, namespace=self._namespace)
            if deployment is not None and _available(deployment):
                return
            trouble = self._trouble(service, deployment, owner or self._model)
            if trouble is not None and trouble.final:
                break
        words = trouble.words if trouble else "no reason is shown"
        final = trouble is not None and trouble.final
        when = "" if final else f" within {self._settings.ready_timeout_s:.0f} s"
        raise RolloutError(f"{version} of {self._model} did not become ready{when}: {words}")

    def route(self, weights: dict[str, int], *, names: tuple[str, ...] = ()) -> None:
        """Wait until the gateway's routes carry these weights, and it had a moment to act on them.

        Raises:
            RolloutError: with the weights that are there.
        """
        found: dict[str, int] | None = None
        for _ in self._polls(self._settings.settle_timeout_s):
            routes = self._routes(names or (self._model, f"{self._model}-predictor"))
            if routes and all(carries(route, weights) for route in routes):
                self._sleep(self._settings.settle_s)
                return
            found = weights_of(routes[0]) if routes else None
        have = "none is there" if found is None else f"it has {_words(found)}"
        troubles = [
            trouble.words
            for name, weight in weights.items()
            if weight and (trouble := self._trouble(name, None, self._model)) is not None
        ]
        raise RolloutError(
            f"the HTTPRoute {self._model} does not carry {_words(weights)} after "
            f"{self._settings.settle_timeout_s:.0f} s, {have}"
            + (f" ({'; '.join(troubles)})" if troubles else "")
            + ": see KServe's controller and the gateway; KServe before 0.21 makes canaries "
            "without moving traffic"
        )

    def gone(self, service: str) -> None:
        """Wait until a Deployment is gone.

        Raises:
            RolloutError: it is still there.
        """
        for _ in self._polls(self._settings.settle_timeout_s):
            if self._cluster.find(DEPLOYMENTS, service, namespace=self._namespace) is None:
                return
        raise RolloutError(
            f"the Deployment {service} is still there after {self._settings.settle_timeout_s:.0f} "
            "s, though it gets no requests: see KServe's controller"
        )

    def _trouble(self, service: str, deployment: Object | None, owner: str) -> Trouble | None:
        pods = self._cluster.list(PODS, namespace=self._namespace, labels=f"app=isvc.{service}")
        found = self._cluster.find(INFERENCE_SERVICES, owner, namespace=self._namespace)
        return trouble_of(pods, deployment, found)

    def _routes(self, names: tuple[str, ...]) -> list[Object]:
        found = (self._cluster.find(HTTP_ROUTES, name, namespace=self._namespace) for name in names)
        return [route for route in found if route is not None]

    def _polls(self, timeout_s: float) -> Iterator[None]:
        """Yield at once and then every second, or `poll_s`, until the time is over."""
        deadline = time.monotonic() + timeout_s
        yield
        while time.monotonic() < deadline:
            self._sleep(min(1.0, self._settings.analysis.poll_s))
            yield


def weights_of(route: Object) -> dict[str, int]:
    """Return the weights of a route's first rule with backends, by Service."""
    for rule in route["spec"].get("rules") or ():
        if rule.get("backendRefs"):
            return _rule_weights(rule)
    return {}


def carries(route: Object, weights: dict[str, int]) -> bool:
    """Return whether the gateway has taken a route whose every rule has exactly these weights.

    A backend of weight 0 may be missing, and a single backend has all the traffic.
    """
    wanted = {name: weight for name, weight in weights.items() if weight}
    rules = [rule for rule in route["spec"].get("rules") or () if rule.get("backendRefs")]
    if not rules or any(_shares(_rule_weights(rule)) != _shares(wanted) for rule in rules):
        return False
    if len(weights) == 1 and any(len(rule["backendRefs"]) > 1 for rule in rules):
        return False
    return _accepted(route)


def _rule_weights(rule: Object) -> dict[str, int]:
    return {ref["name"]: int(ref.get("weight", 1)) for ref in rule["backendRefs"]}


def _shares(weights: dict[str, int]) -> dict[str, float]:
    total = sum(weights.values()) or 1
    return {name: weight / total for name, weight in weights.items() if weight}


def _accepted(route: Object) -> bool:
    generation = route["metadata"].get("generation", 0)
    parents: list[Any] = (route.get("status") or {}).get("parents") or []
    return bool(parents) and all(
        condition.get("status") == "True" and condition.get("observedGeneration", 0) >= generation
        for parent in parents
        for condition in parent.get("conditions") or ()
        if condition.get("type") == "Accepted"
    )


def _available(deployment: Object) -> bool:
    """Return whether every replica asked for is there, new and available, and no other."""
    wanted = int(deployment["spec"].get("replicas", 1))
    status = deployment.get("status") or {}
    return (
        wanted > 0
        and int(status.get("observedGeneration", 0)) >= int(deployment["metadata"]["generation"])
        and int(status.get("availableReplicas", 0)) >= wanted
        and int(status.get("updatedReplicas", 0)) >= wanted
        and int(status.get("replicas", 0)) == wanted
    )


def _words(weights: dict[str, int]) -> str:
    return ", ".join(f"{name} {weight} %" for name, weight in weights.items())
