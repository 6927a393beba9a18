import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import (
    ClusterUnreachableError,
    EvidenceError,
    LinnetError,
    ReleaseError,
    RolloutAbortedError,
    RolloutBusyError,
    RolloutError,
)
from linnet.rollout.cluster import Cluster
from linnet.rollout.journal import Entry
from linnet.rollout.rollout import Rollouts, log_entry
from linnet.stores.registry import Registry
from tests.rollout.bucket import Bucket
from tests.rollout.conftest import MODEL, URI
from tests.rollout.kube import CONFIG_MAP, DEPLOYMENT, GATEWAY, ISVC, Kube
from tests.rollout.scripted import Scripted

Make = Callable[..., Rollouts]
V1_ALONE = {"flowers-v1-predictor": 100}
V2_ALONE = {"flowers-v2-predictor": 100}


def left_with_v1(kube: Kube) -> bool:
    """Return whether the champion has everything, as if nothing had been."""
    alone = "canary" not in kube.get(ISVC, MODEL)["spec"]
    return alone and kube.weights(MODEL) == V1_ALONE and kube.lost == 0


def test_a_good_candidate_gets_all_the_traffic_step_by_step_and_becomes_champion(
    kube: Kube, rollouts: Make, registry: Registry
) -> None:
    kube.serve(MODEL, "v1")
    entries: list[Any] = []
    record = rollouts(watch=entries.append).start()
    assert (record.phase, record.candidate, record.champion) == ("done", "v2", "v1")
    assert [entry.weight for entry in entries if entry.verdict == "weight"] == [10, 25, 50, 100]
    assert kube.weights(MODEL) == V2_ALONE
    assert kube.lost == 0
    assert registry.champion(MODEL) == f"{URI}/v2"
    assert registry.resolve(MODEL, "candidate") is None
    tags = {release.uri: release.tags for release in registry.releases(MODEL)}
    assert tags[f"{URI}/v1"] == {"rollout": "replaced", "replaced_by": "v2"}


def test_the_first_release_of_a_model_gets_an_inference_service(
    kube: Kube, rollouts: Make, registry: Registry
) -> None:
    record = rollouts().start("flowers@champion")
    assert (record.phase, record.candidate, record.champion) == ("done", "v1", None)
    assert kube.weights(MODEL) == V1_ALONE
    assert registry.champion(MODEL) == f"{URI}/v1"


@pytest.mark.parametrize(
    ("fault", "dark", "words"),
    [
        ({"errors": 0.4}, False, "errors"),
        ({"seconds": 0.4}, False, "p50"),
        ({"wrong": True}, False, "classes|accuracy"),
        ({"wrong": True}, True, "smoke test: .*the release's own answer is"),
        ({"errors": 1.0}, True, "smoke test: .*status 500"),
    ],
    ids=["500s", "slow", "wrong with 200", "wrong in the dark", "500s in the dark"],
)
def test_a_bad_candidate_is_taken_back_by_the_evidence(
    fault: dict[str, Any],
    dark: bool,
    words: str,
    kube: Kube,
    rollouts: Make,
    servers: dict[str, Scripted],
    registry: Registry,
) -> None:
    kube.serve(MODEL, "v1")
    for name, value in fault.items():
        setattr(servers["v2"], name, value)
    with pytest.raises(RolloutAbortedError, match=f"v1 has all the traffic: .*({words})"):
        rollouts(dark=dark).start()
    assert left_with_v1(kube)
    assert registry.champion(MODEL) == f"{URI}/v1"
    assert registry.resolve(MODEL, "candidate") is None
    tags = next(one.tags for one in registry.releases(MODEL) if one.uri == f"{URI}/v2")
    assert tags["rollout"] == "aborted"
    assert rollouts().status().record.reason == tags["rollout_reason"]


@pytest.mark.parametrize("through", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("write", range(1, 24, 2))
def test_a_killed_rollout_goes_on_where_it_was(
    write: int,
    through: bool,
    kube: Kube,
    rollouts: Make,
    connect: Callable[..., Cluster],
    registry: Registry,
) -> None:
    kube.serve(MODEL, "v1")
    kube.ends["first"] = (write, through)
    try:
        rollouts(cluster=connect(token="first", patience_s=0)).start()
    except ClusterUnreachableError:
        record = rollouts(cluster=connect(token="second")).start("v2")
        assert record.phase == "done"
    assert kube.weights(MODEL) == V2_ALONE
    assert kube.lost == 0
    assert registry.champion(MODEL) == f"{URI}/v2"


@pytest.mark.parametrize("write", [5, 8, 11, 12])
def test_a_killed_abort_goes_on_where_it_was(
    write: int,
    kube: Kube,
    rollouts: Make,
    connect: Callable[..., Cluster],
    servers: dict[str, Scripted],
) -> None:
    kube.serve(MODEL, "v1")
    servers["v2"].errors = 0.5
    kube.ends["first"] = (write, True)
    with pytest.raises(LinnetError):
        rollouts(cluster=connect(token="first", patience_s=0), dark=False).start()
    with pytest.raises(RolloutAbortedError):
        rollouts(cluster=connect(token="second"), dark=False).start("v2")
    assert left_with_v1(kube)


def test_a_rollout_outlasts_an_api_that_is_away_for_a_while(kube: Kube, rollouts: Make) -> None:
    kube.serve(MODEL, "v1")

    def away(entry: Any) -> None:
        if entry.verdict == "weight" and entry.weight == 25:
            kube.down = True
            threading.Timer(1.0, lambda: setattr(kube, "down", False)).start()

    assert rollouts(watch=away).start().phase == "done"
    assert kube.lost == 0


def test_a_rollout_outlasts_an_api_that_knows_no_roles_yet_after_its_start(
    kube: Kube, rollouts: Make
) -> None:
    kube.serve(MODEL, "v1")
    everything = {(verb, "configmaps") for verb in ("get", "patch")}

    def started_anew(entry: Any) -> None:
        if entry.verdict == "weight" and entry.weight == 25:
            kube.denied |= everything
            threading.Timer(1.0, kube.denied.clear).start()

    assert rollouts(watch=started_anew).start().phase == "done"
    assert kube.lost == 0


def test_a_second_process_refuses_while_the_first_is_at_it(
    kube: Kube, rollouts: Make, connect: Callable[..., Cluster]
) -> None:
    kube.serve(MODEL, "v1")
    refusals: list[LinnetError] = []

    def second(entry: Any) -> None:
        if entry.verdict == "weight" and entry.weight == 10:
            with pytest.raises(RolloutBusyError, match="is rolling out flowers") as refusal:
                rollouts(cluster=connect(token="other")).start()
            refusals.append(refusal.value)

    assert rollouts(watch=second).start().phase == "done"
    assert len(refusals) == 1


@pytest.mark.parametrize(("do", "end"), [("promote", "done"), ("abort", "aborted")])
def test_another_process_can_end_a_rollout_that_is_under_way(
    do: str, end: str, kube: Kube, rollouts: Make, connect: Callable[..., Cluster]
) -> None:
    kube.serve(MODEL, "v1")
    held = {"analysis": {"min_requests": 10_000_000}}
    ended: list[Any] = []

    def carry_out() -> None:
        try:
            ended.append(rollouts(cluster=connect(token="first"), **held).start())
        except RolloutAbortedError as error:
            ended.append(error)

    process = threading.Thread(target=carry_out)
    process.start()
    kube.wait(lambda: kube.weights(MODEL).get("flowers-v2-predictor") == 10, 20.0)
    other = rollouts(cluster=connect(token="other"))
    record = other.promote() if do == "promote" else other.abort("somebody says so")
    process.join()
    assert record.phase == end
    assert kube.weights(MODEL) == (V2_ALONE if do == "promote" else V1_ALONE)
    assert kube.lost == 0


def cut_off(kube: Kube, rollouts: Make, connect: Callable[..., Cluster]) -> None:
    """Start a rollout from v1 that loses its cluster for good in the middle."""
    kube.serve(MODEL, "v1")
    kube.ends["first"] = (7, True)
    with pytest.raises(ClusterUnreachableError):
        rollouts(cluster=connect(token="first", patience_s=0)).start()


def test_promote_and_abort_go_on_with_a_rollout_that_nobody_carries_out(
    kube: Kube, rollouts: Make, connect: Callable[..., Cluster]
) -> None:
    cut_off(kube, rollouts, connect)
    with pytest.raises(RolloutError, match="no process carries it on"):
        rollouts(cluster=connect(token="second")).follow()
    assert rollouts(cluster=connect(token="second")).promote().phase == "done"
    assert kube.weights(MODEL) == V2_ALONE


def test_abort_takes_away_a_canary_that_was_made_by_hand(kube: Kube, rollouts: Make) -> None:
    canary(kube, 30)
    assert rollouts().abort("it was never meant").phase == "aborted"
    assert left_with_v1(kube)


def test_a_weight_set_by_hand_is_gone_on_from(
    kube: Kube, rollouts: Make, connect: Callable[..., Cluster]
) -> None:
    cut_off(kube, rollouts, connect)
    service = kube.get(ISVC, MODEL)
    service["spec"]["canary"][0]["trafficPercent"] = 33
    kube.put(ISVC, service)
    entries: list[Any] = []
    assert rollouts(cluster=connect(token="second"), watch=entries.append).start().phase == "done"
    assert [entry.weight for entry in entries if entry.verdict == "weight"] == [50, 100]


def test_too_little_traffic_holds_until_the_time_is_over_and_then_a_person_decides(
    kube: Kube, rollouts: Make
) -> None:
    kube.serve(MODEL, "v1")
    few = {"analysis": {"min_requests": 10_000_000}, "timeout_s": 1.5, "on_timeout": "hold"}
    with pytest.raises(RolloutError, match=r"v2 stays at 10 %: .*traffic"):
        rollouts(**few).start()
    assert kube.weights(MODEL) == {"flowers-v1-predictor": 90, "flowers-v2-predictor": 10}


def test_metrics_that_can_t_be_read_refuse_a_start_and_hold_a_rollout(
    kube: Kube, rollouts: Make, servers: dict[str, Scripted]
) -> None:
    kube.serve(MODEL, "v1")
    servers["v1"].metrics_status = 503
    with pytest.raises(EvidenceError, match="metrics of pod flowers-v1-predictor"):
        rollouts().start()
    assert left_with_v1(kube)
    servers["v1"].metrics_status = 200
    held: list[Any] = []

    def outage(entry: Any) -> None:
        if entry.verdict == "weight" and entry.weight == 25:
            servers["v2"].metrics_status = 503
        if entry.reason.startswith("no evidence"):
            held.append(entry)
            servers["v2"].metrics_status = 200

    slow = {"hold_s": 0.2}
    threading.Thread(
        target=lambda: (time.sleep(0.5), setattr(servers["v2"], "metrics_status", 200))
    ).start()
    assert rollouts(watch=outage, analysis=slow).start().phase == "done"


BROKEN = {
    "image": (
        {
            "containerStatuses": [
                {
                    "name": "kserve-container",
                    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no linnet:x"}},
                }
            ]
        },
        "ImagePullBackOff: no linnet:x",
    ),
    "store": (
        {
            "initContainerStatuses": [
                {
                    "name": "storage-initializer",
                    "restartCount": 4,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {
                        "terminated": {
                            "exitCode": 1,
                            "reason": "Error",
                            "message": "Could not connect to the endpoint URL minio:9000",
                        }
                    },
                }
            ]
        },
        r"fetches the release from the store.*Could not connect to the endpoint",
    ),
    "crash": (
        {
            "containerStatuses": [
                {
                    "name": "kserve-container",
                    "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 1, "message": "error: digest"}},
                }
            ]
        },
        "exit code 1: error: digest",
    ),
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_candidate_that_does_not_become_ready_is_taken_away_with_the_pod_s_reason(
    why: str, kube: Kube, rollouts: Make
) -> None:
    kube.serve(MODEL, "v1")
    status, words = BROKEN[why]
    kube.broken["v2"] = status
    with pytest.raises(RolloutAbortedError, match=words):
        rollouts().start()
    assert left_with_v1(kube)


def test_a_kserve_that_moves_no_traffic_is_found_out(kube: Kube, rollouts: Make) -> None:
    kube.serve(MODEL, "v1")
    kube.moves_traffic = False
    with pytest.raises(RolloutAbortedError, match=r"does not carry flowers-v1-predictor 90 %"):
        rollouts(settle_timeout_s=0.5).start()
    assert left_with_v1(kube)


def canary(kube: Kube, weight: int) -> None:
    kube.serve(MODEL, "v1")
    service = kube.get(ISVC, MODEL)
    model = {**service["spec"]["predictor"]["model"], "storageUri": f"{URI}/v3"}
    predictor = {"name": "v3", "minReplicas": 1, "model": model}
    service["spec"]["canary"] = [{"trafficPercent": weight, "predictor": predictor}]
    kube.put(ISVC, service)


def _controller(image: str) -> Callable[[Kube], None]:
    def change(kube: Kube) -> None:
        found = kube.get(DEPLOYMENT, "kserve-controller-manager", "kserve")
        found["spec"]["template"]["spec"]["containers"][0]["image"] = image
        kube.put(DEPLOYMENT, found, "kserve")

    return change


def _gateway_off(kube: Kube) -> None:
    found = kube.get(CONFIG_MAP, "inferenceservice-config", "kserve")
    found["data"]["ingress"] = '{"enableGatewayApi": false, "kserveIngressGateway": "a/b"}'
    kube.put(CONFIG_MAP, found, "kserve")


def _no_address(kube: Kube) -> None:
    kube.put(GATEWAY, {"metadata": {"name": "gateway"}, "status": {}}, "kserve")


def _no_kserve(kube: Kube) -> None:
    for key in [key for key in kube.objects if key[:2] == ISVC]:
        del kube.objects[key]


def _autoscaled(kube: Kube) -> None:
    found = kube.get(ISVC, MODEL)
    found["metadata"]["annotations"].pop("serving.kserve.io/autoscalerClass")
    kube.put(ISVC, found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_kserve, "KServe is not in this cluster"),
        (_controller("kserve/kserve-controller:v0.20.0"), r"v0\.20\.0, expected 0\.21 or newer"),
        (_gateway_off, "enableGatewayApi is False"),
        (_no_address, "the Gateway kserve/gateway has no address"),
        (_autoscaled, "scaled by an autoscaler"),
        (lambda kube: canary(kube, 20), r"v3 is already beside the champion .* with 20 %"),
        (
            lambda kube: kube.denied.update({("patch", "inferenceservices")}),
            r"patch inferenceservices\.serving\.kserve\.io in namespace linnet-serving",
        ),
        (lambda kube: kube.denied.add(("create", "pods/proxy")), "create pods/proxy in namespace"),
    ],
)
def test_what_is_wrong_with_the_cluster_is_said_before_anything_is_touched(
    change: Callable[[Kube], None], words: str, kube: Kube, rollouts: Make, registry: Registry
) -> None:
    kube.serve(MODEL, "v1")
    change(kube)
    time.sleep(0.05)
    kube.writes.clear()
    with pytest.raises(RolloutError, match=words):
        rollouts().start()
    assert {plural for _, plural in kube.writes} <= {"leases"}
    assert kube.lost == 0
    assert registry.resolve(MODEL, "candidate") == f"{URI}/v2"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("v9", "v9 is not a finished release"),
        ("flowers@champion", "v1 is the champion already"),
        ("flowers@tomorrow", "no release of flowers has the alias tomorrow"),
        ("s3://linnet/releases/roses/v1", "is not a finished release"),
    ],
)
def test_a_release_that_can_t_be_a_candidate_is_refused(
    address: str, words: str, kube: Kube, rollouts: Make
) -> None:
    kube.serve(MODEL, "v1")
    with pytest.raises(LinnetError, match=words):
        rollouts().start(address)
    assert left_with_v1(kube)


def test_a_folder_is_no_place_that_pods_can_fetch_from(
    kube: Kube, rollouts: Make, bucket: Bucket
) -> None:
    kube.serve(MODEL, "v1")
    with pytest.raises(RolloutError, match="is a folder, and pods fetch releases from S3"):
        rollouts().start(str(bucket.root / "linnet" / "releases" / MODEL / "v3"))


def test_a_release_that_was_tampered_with_is_refused(
    kube: Kube, rollouts: Make, bucket: Bucket, tmp_path: Path
) -> None:
    kube.serve(MODEL, "v1")
    graph = bucket.root / "linnet" / "releases" / MODEL / "v3" / "model.onnx"
    kept = graph.read_bytes()
    graph.write_bytes(kept[:-1] + b"x")
    try:
        with pytest.raises(ReleaseError, match=r"model\.onnx .* is not what was released"):
            rollouts().start("v3")
    finally:
        graph.write_bytes(kept)
    assert left_with_v1(kube)


def test_without_a_candidate_in_the_registry_a_release_must_be_named(
    kube: Kube, rollouts: Make, registry: Registry
) -> None:
    kube.serve(MODEL, "v1")
    registry.remove(MODEL, "candidate")
    with pytest.raises(RolloutError, match="no release of flowers is the candidate"):
        rollouts().start()


def test_another_release_is_refused_while_a_rollout_is_unfinished(
    kube: Kube, rollouts: Make, connect: Callable[..., Cluster]
) -> None:
    cut_off(kube, rollouts, connect)
    with pytest.raises(RolloutError, match=r"a rollout of v2 is under way at \d+ %"):
        rollouts(cluster=connect(token="second")).start("v3")


def test_what_a_rollout_did_is_in_the_log_of_its_pod_and_each_look_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        log_entry(Entry("10:00", 10, "hold", "12 of 200 requests", ()))
        log_entry(Entry("10:01", 10, "advance", "as good as the champion", ()))
    assert caplog.messages == ["10 %, advance: as good as the champion"]
