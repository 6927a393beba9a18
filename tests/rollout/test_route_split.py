from collections.abc import Callable
from typing import Any

import pytest

from linnet.errors import ClusterUnreachableError, RolloutAbortedError, RolloutError
from linnet.rollout.cluster import Cluster
from linnet.rollout.rollout import Rollouts
from linnet.stores.registry import Registry
from tests.rollout.conftest import MODEL, URI
from tests.rollout.kube import ISVC, NAMESPACE, ROUTE, Kube
from tests.rollout.scripted import Scripted

Make = Callable[..., Rollouts]


@pytest.fixture
def split(rollouts: Make) -> Make:
    """Return a maker of rollouts by a route of ours, where v1 serves already."""
    assert rollouts(traffic="route").start("flowers@champion").phase == "done"
    return lambda **changes: rollouts(traffic="route", **changes)


def served(kube: Kube) -> set[str]:
    return {key[3] for key in kube.objects if key[:3] == (*ISVC, NAMESPACE)}


def test_each_release_is_an_inference_service_and_the_route_moves_the_traffic(
    kube: Kube, split: Make, registry: Registry
) -> None:
    assert served(kube) == {"flowers-v1"}
    entries: list[Any] = []
    assert split(watch=entries.append).start().phase == "done"
    assert [entry.weight for entry in entries if entry.verdict == "weight"] == [10, 25, 50, 100]
    assert kube.weights(MODEL) == {"flowers-v2-predictor": 100}
    assert served(kube) == {"flowers-v2"}
    model = kube.get(ISVC, "flowers-v2")["spec"]["predictor"]["model"]
    assert model["args"] == ["--model_name=flowers"]
    assert kube.lost == 0
    assert registry.champion(MODEL) == f"{URI}/v2"


def test_a_bad_candidate_leaves_the_route_and_is_deleted(
    kube: Kube, split: Make, servers: dict[str, Scripted]
) -> None:
    servers["v2"].errors = 0.5
    with pytest.raises(RolloutAbortedError, match="errors"):
        split(dark=False).start()
    assert kube.weights(MODEL) == {"flowers-v1-predictor": 100}
    assert served(kube) == {"flowers-v1"}
    assert kube.lost == 0


def test_a_dark_candidate_gets_mirrored_requests(kube: Kube, split: Make) -> None:
    seen: list[Any] = []

    def look(entry: Any) -> None:
        if entry.verdict in ("smoke", "weight"):
            seen.append(kube.get(ROUTE, MODEL)["spec"]["rules"][1].get("filters"))

    assert split(watch=look, mirror_percent=50).start().phase == "done"
    backend = {"name": "flowers-v2-predictor", "port": 80}
    mirror = {"backendRef": backend, "percent": 50}
    assert seen[0] == [{"type": "RequestMirror", "requestMirror": mirror}]
    assert seen[1:] == [None] * 4


@pytest.mark.parametrize("write", [3, 5, 8, 12, 16, 22])
def test_a_killed_rollout_by_route_goes_on_where_it_was(
    write: int, kube: Kube, split: Make, connect: Callable[..., Cluster]
) -> None:
    kube.ends["first"] = (write, True)
    try:
        split(cluster=connect(token="first", patience_s=0)).start()
    except ClusterUnreachableError:
        assert split(cluster=connect(token="second")).start("v2").phase == "done"
    assert kube.weights(MODEL) == {"flowers-v2-predictor": 100}
    assert served(kube) == {"flowers-v2"}
    assert kube.lost == 0


def test_a_model_with_an_inference_service_of_its_name_is_not_split(
    kube: Kube, rollouts: Make
) -> None:
    kube.serve(MODEL, "v1")
    with pytest.raises(RolloutError, match="use traffic: canary"):
        rollouts(traffic="route").start()
