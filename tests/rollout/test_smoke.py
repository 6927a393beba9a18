from collections.abc import Callable
from pathlib import Path

import pytest

from linnet.release.samples import Sample, read_samples
from linnet.rollout.cluster import Cluster
from linnet.rollout.smoke import replay, smoke
from linnet.rollout.traffic import Backend, KServeCanary
from tests.rollout.bucket import Bucket
from tests.rollout.conftest import MODEL, URI, fast
from tests.rollout.kube import NAMESPACE, Kube
from tests.rollout.scripted import Scripted
from tests.serving.tiny_release import CLASSES

Connect = Callable[..., Cluster]


@pytest.fixture
def samples(bucket: Bucket) -> list[Sample]:
    return read_samples(Path(bucket.root, "linnet/releases", MODEL, "v2", "samples.json"))


@pytest.fixture
def sides(kube: Kube, connect: Connect) -> tuple[Cluster, Backend, Backend]:
    kube.serve(MODEL, "v1")
    traffic = KServeCanary(connect(), MODEL, fast())
    traffic.add("v2", f"{URI}/v2", replicas=2)
    shown = traffic.show()
    assert shown.champion is not None
    assert shown.candidate is not None
    return connect(), shown.champion, shown.candidate


def ask_all(sides: tuple[Cluster, Backend, Backend], samples: list[Sample]) -> list[str]:
    cluster, _, candidate = sides
    return smoke(cluster, candidate, samples, CLASSES, model=MODEL, namespace=NAMESPACE)


def test_right_answers_of_the_right_release_are_no_problem(
    sides: tuple[Cluster, Backend, Backend], samples: list[Sample]
) -> None:
    assert ask_all(sides, samples) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"wrong": True}, "the release's own answer is"),
        ({"errors": 1.0}, "answered sample .* with status 500"),
        ({"version": "v1"}, "flowers/v1 answered, expected flowers/v2"),
    ],
)
def test_each_wrong_answer_is_told_with_its_pod(
    fault: dict[str, object],
    words: str,
    sides: tuple[Cluster, Backend, Backend],
    samples: list[Sample],
    servers: dict[str, Scripted],
) -> None:
    for name, value in fault.items():
        setattr(servers["v2"], name, value)
    problems = ask_all(sides, samples)
    assert problems
    assert all(problem.startswith("pod flowers-v2-predictor-0") for problem in problems)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(problems[0])


def test_a_replay_counts_what_was_lost_and_gained(
    sides: tuple[Cluster, Backend, Backend], samples: list[Sample], servers: dict[str, Scripted]
) -> None:
    cluster, champion, candidate = sides

    def counted() -> tuple[int, ...]:
        found = replay(
            cluster, champion, candidate, samples, CLASSES, model=MODEL, namespace=NAMESPACE
        )
        assert found is not None
        return found.pictures, found.agreeing, found.both_right, found.lost, found.gained

    all_of_them = len(samples)
    assert counted() == (all_of_them, all_of_them, all_of_them, 0, 0)
    servers["v2"].wrong = True
    assert counted() == (all_of_them, 0, 0, all_of_them, 0)
    servers["v1"].wrong, servers["v2"].wrong = True, False
    assert counted() == (all_of_them, 0, 0, 0, all_of_them)
