from collections.abc import Callable
from typing import Any

import pytest

from linnet.errors import ClusterError, RolloutError
from linnet.rollout.cluster import Cluster
from linnet.rollout.traffic import KServeCanary
from linnet.rollout.waiting import carries
from tests.rollout.conftest import MODEL, URI, fast
from tests.rollout.kube import DEPLOYMENT, ISVC, Kube

Connect = Callable[..., Cluster]


def route(*rules: dict[str, int], generation: int = 3, observed: int = 3) -> dict[str, Any]:
    refs = [[{"name": name, "weight": share} for name, share in rule.items()] for rule in rules]
    accepted = {"type": "Accepted", "status": "True", "observedGeneration": observed}
    return {
        "metadata": {"generation": generation},
        "spec": {"rules": [{"backendRefs": one} for one in refs]},
        "status": {"parents": [{"conditions": [accepted]}]},
    }


@pytest.mark.parametrize(
    ("shown", "wanted", "carried"),
    [
        (route({"a": 80, "b": 20}), {"a": 80, "b": 20}, True),
        (route({"a": 90, "b": 10}), {"a": 80, "b": 20}, False),
        (route({"a": 80, "b": 20}, {"a": 100}), {"a": 80, "b": 20}, False),
        (route({"a": 100}), {"a": 100, "b": 0}, True),
        (route({"a": 0, "b": 100}), {"a": 0, "b": 100}, True),
        (route({"a": 1}), {"a": 100}, True),
        (route({"a": 100, "b": 0}), {"a": 100}, False),
        (route({"a": 80, "b": 20}, observed=2), {"a": 80, "b": 20}, False),
        ({"metadata": {}, "spec": {"rules": []}}, {"a": 100}, False),
    ],
)
def test_a_route_carries_weights_when_every_rule_does_and_the_gateway_took_it(
    shown: dict[str, Any], wanted: dict[str, int], carried: bool
) -> None:
    assert carries(shown, wanted) is carried


def test_replicas_follow_the_weight_and_never_become_fewer(kube: Kube, connect: Connect) -> None:
    kube.serve(MODEL, "v1", replicas=4)
    traffic = KServeCanary(connect(), MODEL, fast())
    traffic.add("v2", f"{URI}/v2", replicas=4)

    def pods() -> list[int]:
        names = ("flowers-v1-predictor", "flowers-v2-predictor")
        return [kube.get(DEPLOYMENT, name)["spec"]["replicas"] for name in names]

    kube.wait(lambda: pods() == [4, 1])
    for weight, expected in ((10, [4, 1]), (50, [2, 2]), (100, [1, 4]), (0, [4, 4])):
        traffic.set_weight(weight, replicas=4)
        kube.wait(lambda wanted=expected: pods() == wanted)
    traffic.remove(replicas=4)
    assert kube.get(DEPLOYMENT, "flowers-v1-predictor")["spec"]["replicas"] == 4
    assert kube.lost == 0


def test_a_champion_without_a_name_is_known_by_its_release(kube: Kube, connect: Connect) -> None:
    kube.serve(MODEL, "v1")
    service = kube.get(ISVC, MODEL)
    del service["spec"]["predictor"]["name"]
    kube.put(ISVC, service)
    champion = KServeCanary(connect(), MODEL, fast()).show().champion
    assert champion is not None
    assert (champion.version, champion.service) == ("v1", "flowers-predictor")
    assert champion.labels == "app=isvc.flowers-predictor"


def test_two_canaries_are_one_too_many(kube: Kube, connect: Connect) -> None:
    kube.serve(MODEL, "v1")
    service = kube.get(ISVC, MODEL)
    service["spec"]["canary"] = [
        {
            "trafficPercent": 0,
            "predictor": {"name": name, "minReplicas": 1, "model": {"storageUri": f"{URI}/{name}"}},
        }
        for name in ("v2", "v3")
    ]
    kube.put(ISVC, service)
    with pytest.raises(RolloutError, match=r"has 2 canaries \(v2, v3\)"):
        KServeCanary(connect(), MODEL, fast()).show()


def test_a_promotion_is_refused_when_another_one_changed_the_canary(
    kube: Kube, connect: Connect
) -> None:
    kube.serve(MODEL, "v1")

    def interfere(seconds: float) -> None:
        """Set another weight while the gateway is given its moment after 100 %."""
        if seconds == settings.settle_s:
            service = kube.get(ISVC, MODEL)
            service["spec"]["canary"][0]["trafficPercent"] = 30
            kube.put(ISVC, service)

    settings = fast(settle_s=0.5)
    KServeCanary(connect(), MODEL, settings).add("v2", f"{URI}/v2", replicas=2)
    traffic = KServeCanary(connect(), MODEL, settings, sleep=interfere)
    with pytest.raises(ClusterError, match=r"testing value /spec/canary/0/trafficPercent failed"):
        traffic.promote(replicas=2)
    assert kube.get(ISVC, MODEL)["spec"]["predictor"]["name"] == "v1"


def test_a_version_too_long_for_kubernetes_is_refused(kube: Kube, connect: Connect) -> None:
    kube.serve(MODEL, "v1")
    with pytest.raises(RolloutError, match="at most 63 are allowed"):
        KServeCanary(connect(), MODEL, fast()).add("v" * 50, f"{URI}/v2", replicas=2)
