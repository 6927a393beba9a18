from collections.abc import Callable

import pytest

from linnet.errors import RolloutAbortedError
from linnet.rollout.rollout import Rollouts
from linnet.stores.registry import Registry
from tests.rollout.conftest import MODEL, URI
from tests.rollout.kube import ISVC, Kube
from tests.rollout.scripted import Scripted

Make = Callable[..., Rollouts]


def test_a_good_candidate_gets_all_the_traffic_step_by_step_and_becomes_champion(
    kube: Kube, rollouts: Make, registry: Registry
) -> None:
    kube.serve(MODEL, "v1")
    entries = []
    record = rollouts(watch=entries.append).start()
    assert (record.phase, record.candidate, record.champion) == ("done", "v2", "v1")
    assert [entry.weight for entry in entries if entry.verdict == "weight"] == [10, 25, 50, 100]
    assert kube.weights(MODEL) == {"flowers-v2-predictor": 100}
    assert kube.lost == 0
    assert registry.champion(MODEL) == f"{URI}/v2"
    assert registry.resolve(MODEL, "candidate") is None
    tags = {release.uri: release.tags for release in registry.releases(MODEL)}
    assert tags[f"{URI}/v1"] == {"rollout": "replaced", "replaced_by": "v2"}


def test_a_candidate_that_answers_500_is_taken_back(
    kube: Kube, rollouts: Make, servers: dict[str, Scripted], registry: Registry
) -> None:
    kube.serve(MODEL, "v1")
    servers["v2"].errors = 0.4
    with pytest.raises(RolloutAbortedError, match="v1 has all the traffic: errors"):
        rollouts(dark=False).start()
    assert kube.weights(MODEL) == {"flowers-v1-predictor": 100}
    assert "canary" not in kube.get(ISVC, MODEL)["spec"]
    assert kube.lost == 0
    assert registry.champion(MODEL) == f"{URI}/v1"
    assert registry.resolve(MODEL, "candidate") is None
