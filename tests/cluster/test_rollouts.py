"""Rollouts on a real cluster, under load: what is counted is what a client sees."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
from mlflow import MlflowClient

from linnet.errors import RolloutAbortedError, RolloutError
from linnet.rollout.cluster import INFERENCE_SERVICES, PODS, Cluster
from linnet.rollout.rollout import Rollouts
from linnet.rollout.settings import RolloutSettings
from linnet.rollout.traffic import KServeCanary
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from manifests.install.kubectl import Kubectl
from tests.cluster.load import GrpcLoad, LabellingLoad, Load
from tests.cluster.serving_here import (
    GATEWAY,
    NAMESPACE,
    UNREADABLE,
    Model,
    forwarded,
    pictures,
    request_body,
    small_runtime,
    store_connections,
)
from tests.serving.tiny_release import CLASSES, answers, graph

logger = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
]

LEAST_REQUESTS = 2000
MLFLOW = "linnet-platform/svc/mlflow"
SERVING = "linnet-serving"
PROMETHEUS = "linnet-platform/svc/prometheus"
LINNET = Path(sys.executable).with_name("linnet")
QUICK: dict[str, Any] = {
    "namespace": NAMESPACE,
    "steps": [20, 60, 100],
    "analysis": {"hold_s": 5.0, "poll_s": 1.0, "min_requests": 100},
}


@pytest.fixture
def connections(cluster: Cluster, store_url: str, tmp_path: Path) -> Connections:
    return store_connections(cluster, store_url, tmp_path)


@pytest.fixture
def model(
    cluster: Cluster, connections: Connections, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Model]:
    """Return a model whose champion v1 serves from two pods."""
    made = Model(f"t{uuid.uuid4().hex[:6]}", cluster, connections, tmp_path / "releases")
    registry = Registry(connections)
    registry.register(made.name, made.release("v1"))
    failed = request.session.testsfailed
    made.serve("v1", replicas=2)
    try:
        KServeCanary(cluster, made.name, settings()).create("v1", "")
        failed = request.session.testsfailed
        yield made
    finally:
        if request.session.testsfailed > failed:
            show(made)
        made.remove()


def settings(**changes: Any) -> RolloutSettings:
    return RolloutSettings.parse({**QUICK, **changes})


def show(model: Model) -> None:
    """Log pods and events, for whoever has to find out why a test failed."""
    for command in (
        ["get", "pods,inferenceservices,httproutes,deployments", "-o", "wide"],
        ["get", "events", "--sort-by=.lastTimestamp"],
    ):
        found = subprocess.run(
            ["kubectl", "-n", NAMESPACE, *command], capture_output=True, text=True, check=False
        )
        mine = [line for line in found.stdout.splitlines() if model.name in line]
        logger.error("%s", "\n".join(mine[-20:]))


def rollouts(model: Model, **changes: Any) -> Rollouts:
    return Rollouts(
        model.cluster, model.name, settings(**changes), connections=model.connections, watch=tell
    )


def tell(entry: Any) -> None:
    logger.info("%3d %% %s: %s", entry.weight, entry.verdict, entry.reason)


def load(model: Model, **options: Any) -> Load:
    return Load(GATEWAY, model.host, model.name, request_body(), **options)


def grpc_load(model: Model) -> GrpcLoad:
    return GrpcLoad(GATEWAY, model.host, model.name, pictures()["2-flower.jpg"])


def release_of(model: Model, version: str) -> str:
    return f"{model.name}/{version}"


def test_requests_are_split_as_asked_and_none_is_lost_when_the_candidate_goes(
    model: Model,
) -> None:
    traffic = KServeCanary(model.cluster, model.name, settings())
    with load(model) as requests:
        requests.until(100)
        assert set(requests.answered) == {release_of(model, "v1")}
        traffic.add("v2", model.release("v2"), replicas=2)
        requests.until(200)
        assert set(requests.answered) == {release_of(model, "v1")}, "dark means dark"
        traffic.set_weight(20, replicas=2)
        before = requests.answered.copy()
        requests.until(LEAST_REQUESTS)
        split = requests.answered - before
        traffic.remove(replicas=2)
        requests.until(300)
    logger.info("split at 20 %%: %s; %s", dict(split), requests.words())
    share, total = split[release_of(model, "v2")] / split.total(), split.total()
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / total)
    assert requests.lost == []


def test_a_good_candidate_is_promoted_under_load_without_a_lost_request(model: Model) -> None:
    Registry(model.connections).register(model.name, model.release("v2"))
    began = time.monotonic()
    with load(model) as requests:
        requests.until(100)
        record = rollouts(model).start()
        requests.until(max(300, LEAST_REQUESTS - requests.sent))
    logger.info("promoted in %.0f s; %s", time.monotonic() - began, requests.words())
    assert record.phase == "done"
    assert requests.lost == []
    assert Registry(model.connections).champion(model.name) == record.candidate_uri


@pytest.mark.parametrize("evidence", ["pods", "prometheus"])
def test_three_pods_are_replaced_and_no_request_or_call_is_lost(
    evidence: str, cluster: Cluster, connections: Connections, tmp_path: Path
) -> None:
    by_prometheus = evidence == "prometheus"
    if by_prometheus and NAMESPACE != SERVING:
        pytest.skip(f"the platform's Prometheus reads {SERVING} alone: set LINNET_TEST_NAMESPACE")
    with forwarded(PROMETHEUS, 9090) as prometheus, forwarded(MLFLOW, 5000) as mlflow:
        tracked = replace(connections, tracking_uri=mlflow, artifact_root=None)
        model = Model(f"t{uuid.uuid4().hex[:6]}", cluster, tracked, tmp_path / "releases")
        registry = Registry(tracked)
        registry.register(model.name, model.release("v1"))
        try:
            model.serve("v1", replicas=3)
            KServeCanary(cluster, model.name, settings()).create("v1", "")
            registry.register(model.name, model.release("v2"))
            if by_prometheus:
                wait_for_prometheus(prometheus, model, pods=3)
            with load(model, clients=2) as requests, grpc_load(model) as calls:
                requests.until(100)
                record = rollouts(model, prometheus=prometheus if by_prometheus else None).start()
                requests.until(max(300, LEAST_REQUESTS - requests.sent))
            logger.info("%s; gRPC: %s", requests.words(), calls.words())
            assert record.phase == "done"
            assert registry.champion(model.name) == record.candidate_uri
            service = cluster.get(INFERENCE_SERVICES, model.name, namespace=NAMESPACE)
            assert service["spec"]["predictor"]["minReplicas"] == 3
        except BaseException:
            show(model)
            raise
        finally:
            model.remove()
            MlflowClient(mlflow).delete_registered_model(model.name)
    assert (requests.lost, calls.lost) == ([], [])
    assert set(calls.answered) == {release_of(model, one) for one in ("v1", "v2")}


def test_a_candidate_is_taken_back_from_grpc_callers_without_a_lost_call(model: Model) -> None:
    uri = model.release("v2-wrong")
    with grpc_load(model) as calls:
        calls.until(100)
        with pytest.raises(RolloutAbortedError, match="classes"):
            rollouts(model, dark=False).start(uri)
        calls.until(300)
    logger.info("gRPC: %s", calls.words())
    assert calls.lost == []
    assert release_of(model, "v2-wrong") in calls.answered


def test_an_abort_by_hand_under_load_loses_no_request(model: Model) -> None:
    model.release("v2")
    stays = options(model, min_requests=1_000_000)
    command = [LINNET, "rollout", "start", model.name, "v2", *stays]
    with load(model) as requests:
        process = subprocess.Popen(command, env=environment(model), stderr=subprocess.DEVNULL)
        wait_for_weight(model, 20)
        requests.until(LEAST_REQUESTS)
        record = rollouts(model).abort("a test says so")
        requests.until(300)
        assert process.wait(60) == RolloutAbortedError.exit_code
    logger.info("aborted by hand; %s", requests.words())
    assert record.phase == "aborted"
    assert requests.lost == []


@pytest.mark.parametrize("dark", [False, True], ids=["in the traffic", "in the dark"])
@pytest.mark.parametrize("fault", ["errors", "slow", "wrong"])
def test_a_bad_candidate_is_taken_back_by_itself(fault: str, dark: bool, model: Model) -> None:
    if fault == "slow" and dark:
        pytest.skip("without traffic nobody waits")
    uri = model.release(f"v2-{fault}")
    began = time.monotonic()
    with load(model) as requests:
        with pytest.raises(RolloutAbortedError) as taken_back:
            rollouts(model, dark=dark).start(uri)
        took = time.monotonic() - began
        requests.until(max(300, LEAST_REQUESTS - requests.sent))
    logger.info("%s, dark %s: %.0f s; %s\n%s", fault, dark, took, requests.words(), taken_back)
    assert requests.lost == []
    shown = KServeCanary(model.cluster, model.name, settings()).show()
    assert (shown.champion.version if shown.champion else None, shown.candidate) == ("v1", None)


def test_a_candidate_that_only_true_labels_speak_against_is_taken_back(model: Model) -> None:
    """Its samples are its own answers, so the smoke test and the replay find it right."""
    uri = model.release("v2", encoded=graph(8))
    truth = CLASSES[answers(graph(), [pictures()["2-flower.jpg"]])[0].argmax()]
    any_shift = {"max_class_shift": 1.0, "max_confidence_shift": 1.0}
    with LabellingLoad(GATEWAY, model.host, model.name, request_body(), label=truth) as requests:
        requests.until(100)
        with pytest.raises(RolloutAbortedError, match="feedback: wrong by the true labels"):
            rollouts(model, analysis=QUICK["analysis"] | any_shift).start(uri)
        requests.until(max(300, LEAST_REQUESTS - requests.sent))
    logger.info("%s; labels by status %s", requests.words(), dict(requests.told))
    assert requests.lost == []
    assert requests.told.keys() == {200, 404}
    shown = KServeCanary(model.cluster, model.name, settings()).show()
    assert (shown.champion.version if shown.champion else None, shown.candidate) == ("v1", None)


def test_a_rollout_that_was_killed_goes_on_and_no_request_is_lost(model: Model) -> None:
    model.release("v2")
    command = [LINNET, "rollout", "start", model.name, "v2", *options(model)]
    with load(model) as requests:
        process = subprocess.Popen(command, env=environment(model), stderr=subprocess.DEVNULL)
        wait_for_weight(model, 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
        requests.until(300)
        done = subprocess.run(command, env=environment(model), check=False, timeout=600)
        requests.until(max(300, LEAST_REQUESTS - requests.sent))
    logger.info("killed at 20 %% and gone on; %s", requests.words())
    assert done.returncode == 0
    assert requests.lost == []


def test_no_request_is_lost_while_pods_are_deleted(model: Model) -> None:
    traffic = KServeCanary(model.cluster, model.name, settings(replicas=2))
    traffic.add("v2", model.release("v2"), replicas=2)
    with load(model) as requests:
        traffic.set_weight(50, replicas=2)
        for backend in (traffic.show().champion, traffic.show().candidate):
            assert backend is not None
            pods = model.cluster.list(PODS, namespace=NAMESPACE, labels=backend.labels)
            model.cluster.delete(PODS, pods[0]["metadata"]["name"], namespace=NAMESPACE)
            requests.until(LEAST_REQUESTS // 2)
        traffic.remove(replicas=2)
        requests.until(300)
    logger.info("a pod of each side deleted at 50 %%; %s", requests.words())
    assert requests.lost == []


def test_a_release_that_pods_may_not_fetch_is_taken_away_with_the_pod_s_words(
    model: Model,
) -> None:
    uri = model.release("v2", root=UNREADABLE)
    with load(model) as requests:
        with pytest.raises(RolloutAbortedError, match="it fetches the release") as taken_back:
            rollouts(model).start(uri)
        requests.until(300)
    logger.info("%s\n%s", requests.words(), taken_back.value)
    assert requests.lost == []


def test_an_account_without_rights_is_told_each_verb_that_it_lacks(
    model: Model, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl.run("create", "serviceaccount", "nobody", "-n", NAMESPACE)
    token = kubectl.run("create", "token", "nobody", "-n", NAMESPACE).strip()
    nobody = Cluster.connect(kubeconfig=kubeconfig_of(kubectl, token, tmp_path / "nobody"))
    made = Rollouts(nobody, model.name, settings(), connections=model.connections)
    with pytest.raises(RolloutError) as refused:
        made.start("v1")
    for missing in (
        f"patch inferenceservices.serving.kserve.io in namespace {NAMESPACE}",
        f"create pods/proxy in namespace {NAMESPACE}",
        "get gateways.gateway.networking.k8s.io in namespace kserve",
    ):
        assert missing in str(refused.value)


def test_a_first_release_and_the_next_one_go_out_by_a_route_of_ours(
    kubectl: Kubectl, cluster: Cluster, connections: Connections, tmp_path: Path
) -> None:
    model = Model(f"t{uuid.uuid4().hex[:6]}", cluster, connections, tmp_path / "releases")
    by_route = {"traffic": "route", "runtime": small_runtime(kubectl), "mirror_percent": 50}
    try:
        first = rollouts(model, **by_route).start(model.release("v1"))
        assert (first.phase, first.champion) == ("done", None)
        with load(model) as requests:
            requests.until(300)
            record = rollouts(model, **by_route).start(model.release("v2"))
            requests.until(max(300, LEAST_REQUESTS - requests.sent))
        logger.info("by a route of ours; %s", requests.words())
        assert record.phase == "done"
        assert requests.lost == []
        assert set(requests.answered) == {release_of(model, one) for one in ("v1", "v2")}
    except BaseException:
        show(model)
        raise
    finally:
        model.remove()


@pytest.mark.skipif(
    not os.environ.get("LINNET_TEST_NODE"), reason="LINNET_TEST_NODE names no kind node to restart"
)
def test_a_rollout_survives_the_reboot_of_its_node(model: Model) -> None:
    model.release("v2")
    command = [LINNET, "rollout", "start", model.name, "v2", *options(model)]
    with load(model) as requests:
        process = subprocess.Popen(command, env=environment(model))
        wait_for_weight(model, 20)
        before = len(requests.lost)
        began = time.monotonic()
        subprocess.run(["docker", "restart", os.environ["LINNET_TEST_NODE"]], check=True)
        assert process.wait(900) == 0
        lost, took = len(requests.lost) - before, time.monotonic() - began
        requests.lost.clear()
        requests.until(300)
    logger.info("node rebooted: done %.0f s later, %d requests lost by the reboot", took, lost)
    assert before == 0
    assert requests.lost == []


def wait_for_prometheus(address: str, model: Model, *, pods: int, timeout_s: float = 120.0) -> None:
    query = {"query": f'linnet_model_ready{{model="{model.name}"}}'}
    deadline = time.monotonic() + timeout_s
    while True:
        answer = urllib3.request("GET", f"{address}/api/v1/query", fields=query).json()
        if len(answer["data"]["result"]) == pods:
            return
        assert time.monotonic() < deadline, f"Prometheus knows {answer} after {timeout_s} s"
        time.sleep(2.0)


def options(model: Model, **analysis: Any) -> list[str]:
    values = {"steps": QUICK["steps"], "analysis": QUICK["analysis"] | analysis}
    changes = [
        part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    return ["-n", NAMESPACE, "-w", str(model.folder.parent), *changes]


def environment(model: Model) -> dict[str, str]:
    connections = model.connections
    return {
        **os.environ,
        "AWS_ENDPOINT_URL": str(connections.s3_endpoint),
        "AWS_ACCESS_KEY_ID": str(connections.s3_access_key),
        "AWS_SECRET_ACCESS_KEY": str(connections.s3_secret_key),
        "AWS_REGION": "us-east-1",
    }


def kubeconfig_of(kubectl: Kubectl, token: str, path: Path) -> str:
    """Write a kubeconfig for the same cluster and another account, and return its path."""
    config = json.loads(kubectl.run("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path.write_text(json.dumps(config))
    return str(path)


def wait_for_weight(model: Model, weight: int, timeout_s: float = 600.0) -> None:
    traffic = KServeCanary(model.cluster, model.name, settings())
    deadline = time.monotonic() + timeout_s
    while traffic.show().weight < weight:
        assert time.monotonic() < deadline, f"no {weight} % within {timeout_s} s"
        time.sleep(0.5)
