"""The pipeline on a real cluster, submitted and followed by `linnet submit`."""

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from linnet.release.opening import open_release
from linnet.rollout.cluster import Cluster
from manifests.install.kubectl import InstallError, Kubectl
from tests.cluster.conftest import KUBEFLOW, SERVING
from tests.cluster.load import Load
from tests.cluster.recurring import is_again, stopped_at_the_end
from tests.cluster.serving_here import GATEWAY, ROOT, request_body, store_connections
from tests.shades import TRAIN

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

LINNET = str(Path(sys.executable).with_name("linnet"))
RUNNING = "--field-selector=status.phase=Running"
ROLLOUT = {
    "steps": [50, 100],
    "analysis": {"hold_s": 5.0, "poll_s": 1.0, "min_requests": 50, "p99_factor": 100.0},
}
SEARCH = {
    "trials": 4,
    "workers": 2,
    "startup_trials": 2,
    "space": {"whole": {"lr": {"low": 0.001, "high": 0.01, "log": True}}},
}


@pytest.fixture(scope="module")
def model() -> str:
    return f"t{uuid.uuid4().hex[:6]}"


@pytest.fixture
def command(kubeflow: str, pipeline: Path, model: str, tmp_path: Path) -> list[str]:
    """`linnet submit` of a run that takes a minute, and for which more can be set."""
    settings = tmp_path / "settings.json"
    values = {"model": model, "source": {"uri": "digits"}, "train": TRAIN | {"size_px": 32}}
    # A split of its own: whatever ran here before, these steps are not in the cache.
    values["ingest"] = {"seed": int(model[1:], 16)}
    settings.write_text(json.dumps(values))
    return [LINNET, "submit", str(settings), "-e", kubeflow, "--pipeline", str(pipeline)]


@pytest.fixture
def rollout(model: str, kubectl: Kubectl, tmp_path: Path) -> Iterator[Path]:
    """The settings of a rollout; what it leaves where models serve is removed."""
    file = tmp_path / "rollout.yaml"
    file.write_text(json.dumps(ROLLOUT))
    yield file
    left = [f"{kind}/linnet-rollout-{model}" for kind in ("configmap", "lease")]
    kubectl.run(
        *("delete", "-n", SERVING, f"inferenceservice/{model}", *left, "--ignore-not-found")
    )


def run(command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *more], capture_output=True, text=True)


def test_a_run_on_the_cluster_releases_to_s3(
    command: list[str], model: str, cluster: Cluster, store_url: str, tmp_path: Path
) -> None:
    done = run(command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decision"] == "release"
    for said in (
        "pictures of 10 classes",
        "epoch 1",
        f"{ROOT}/{model}/v1",
        "ended as NO_STEP_FAILED",
    ):
        assert said in done.stderr
    connections = store_connections(cluster, store_url, tmp_path)
    release = open_release(f"{ROOT}/{model}/v1", scratch=tmp_path, connections=connections)
    assert release.manifest["provenance"]["tracking_run_id"]


def test_a_second_run_is_taken_from_the_cache_and_a_refusal_exits_with_3(
    command: list[str],
) -> None:
    done = run(command, "--set", "gate.minimum={accuracy: 1.01}")
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("taken from the cache") == 4
    assert "at least 1.01 is needed" in done.stderr.partition("the gate refused the model")[2]


def test_a_release_goes_on_to_the_traffic_at_the_end_of_its_run(
    command: list[str], rollout: Path, model: str
) -> None:
    first = run(command, "--roll-out", str(rollout))
    assert first.returncode == 0, first.stderr
    assert "the first release of its model serves" in first.stderr
    with Load(GATEWAY, f"{model}-{SERVING}.example.com", model, request_body()) as requests:
        requests.until(50)
        (champion,) = requests.answered
        second = run(command, "--roll-out", str(rollout))
        requests.until(50)
    assert second.returncode == 0, second.stderr
    assert requests.lost == [], requests.words()
    assert requests.answered.keys() > {champion}, requests.words()


def test_a_step_that_fails_is_told_in_its_own_words(command: list[str]) -> None:
    done = run(command, "--set", "source.uri=s3://linnet/nowhere")
    assert done.returncode == 1
    assert "step ingest failed: " in done.stderr
    assert "s3://linnet/nowhere" in done.stderr.partition("step ingest failed: ")[2]
    assert "ended as FAILED" in done.stderr


def test_training_goes_on_in_another_pod_when_its_pod_is_deleted(
    command: list[str], kubectl: Kubectl
) -> None:
    seed = str(time.time_ns() % 1_000_000)
    more = ["--set", "train.whole.epochs=15", "--set", f"train.seed={seed}"]
    with subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        heard = []
        # Kubeflow tells what a step says only once its pod has ended.
        for line in process.stderr:
            heard.append(line)
            if "train" in line.split()[1:]:
                delete_training_pod(kubectl, once_it_says="epoch 1:")
                break
        heard.extend(process.stderr)
    told = "".join(heard)
    assert process.returncode == 0, told
    assert "going on with the training in" in told
    # Other settings of training: the pictures alone are from the cache.
    assert told.count("taken from the cache") == 1, told


def test_a_recurring_run_runs_again_and_again(command: list[str], kubeflow: str) -> None:
    done = run(command, "--recurring", "* * * * *", "--json")
    assert done.returncode == 0, done.stderr
    with stopped_at_the_end(kubeflow, json.loads(done.stdout)["recurring_run_id"]) as runs:
        deadline = time.monotonic() + 900
        while not is_again(found := runs()):
            assert time.monotonic() < deadline, found
            time.sleep(5)


def test_workers_of_a_search_share_its_trials_in_the_platform_s_database(
    command: list[str], pipeline: Path, model: str, kubectl: Kubectl
) -> None:
    assert kubectl.get("secret", "linnet-search", KUBEFLOW), "make platform makes it"
    settings = Path(command[2])
    values = json.loads(settings.read_text()) | {"model": f"{model}s", "search": SEARCH}
    settings.write_text(json.dumps(values))
    done = run([*command[:-1], str(pipeline.with_name("search_and_release.yaml"))])
    assert done.returncode == 0, done.stderr
    assert "released " in done.stderr


def delete_training_pod(kubectl: Kubectl, *, once_it_says: str) -> None:
    """Delete the one pod that trains: it alone is of a step that is tried again."""
    here = ("-n", KUBEFLOW)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for pod in kubectl.run("get", "pods", *here, "-o", "name", RUNNING).split():
            if "-retry-system-container-impl-" not in pod:
                continue
            with contextlib.suppress(InstallError):  # it has not begun to say anything
                if once_it_says in kubectl.run("logs", *here, pod, "-c", "main"):
                    kubectl.run("delete", *here, pod, "--wait=false")
                    return
        time.sleep(1)
    pytest.fail(f"no training pod said {once_it_says!r}")
