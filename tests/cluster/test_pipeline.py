"""The pipeline on a real cluster, submitted and followed by `linnet submit`."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from linnet.release.opening import open_release
from linnet.rollout.cluster import Cluster
from manifests.install.kubectl import Kubectl
from tests.cluster.serving_here import ROOT, forwarded, store_connections
from tests.shades import TRAIN

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
LINNET = str(Path(sys.executable).with_name("linnet"))
NAMESPACE = "kubeflow"


@pytest.fixture(scope="module")
def tag(kubectl: Kubectl) -> str:
    """The tag of step images that the cluster has: LINNET_IMAGE_TAG's, or this revision's."""
    if kubectl.get("deployment", "ml-pipeline", NAMESPACE) is None:
        pytest.skip("needs Kubeflow Pipelines on the cluster: make platform")
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    revision = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    tag = os.environ.get("LINNET_IMAGE_TAG", revision.stdout.strip())
    nodes = json.loads(kubectl.run("get", "nodes", "-o", "json"))["items"]
    # A node that has just started has told of none yet.
    images = [one for node in nodes for one in node["status"].get("images") or ()]
    there = {name for one in images for name in one["names"]}
    for image in (f"linnet/cpu:{tag}", f"linnet/gpu:{tag}"):
        if not any(name.endswith(image) for name in there):
            pytest.skip(f"needs the image {image} on a node: make images kind-load")
    return tag


@pytest.fixture(scope="module")
def kubeflow(tag: str) -> Iterator[str]:
    with forwarded(f"{NAMESPACE}/svc/ml-pipeline", 8888) as url:
        yield url


@pytest.fixture(scope="module")
def pipeline(tag: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.compile", str(folder)]
    environment = {**os.environ, "LINNET_IMAGE_TAG": tag}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return folder / "train_and_release.yaml"


@pytest.fixture(scope="module")
def model() -> str:
    return f"t{uuid.uuid4().hex[:6]}"


@pytest.fixture
def command(kubeflow: str, pipeline: Path, model: str, tmp_path: Path) -> list[str]:
    """`linnet submit` of a run that takes a minute, and for which more can be set."""
    settings = tmp_path / "settings.json"
    values = {"model": model, "source": {"uri": "digits"}, "train": TRAIN | {"size_px": 32}}
    settings.write_text(json.dumps(values))
    return [LINNET, "submit", str(settings), "-e", kubeflow, "--pipeline", str(pipeline)]


def run(command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *more], capture_output=True, text=True)


def test_a_run_on_the_cluster_releases_to_s3(
    command: list[str], model: str, cluster: Cluster, store_url: str, tmp_path: Path
) -> None:
    done = run(command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decision"] == "release"
    for said in ("pictures of 10 classes", "epoch 1", f"{ROOT}/{model}/v1", "ended as SUCCEEDED"):
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
    more = ["--set", "train.whole.epochs=12", "--set", f"train.seed={seed}"]
    process = subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    heard = []
    with process.stderr as said:
        for line in said:
            heard.append(line)
            if "epoch 2:" in line:
                delete_training_pod(kubectl)
                break
        heard.extend(said)
    assert process.wait() == 0, "".join(heard)
    assert "going on with the training in" in "".join(heard)


def delete_training_pod(kubectl: Kubectl) -> None:
    """Delete the one pod that trains: it alone is of a step that is tried again."""
    running = (
        "get",
        "pods",
        "-n",
        NAMESPACE,
        "--field-selector=status.phase=Running",
        "-o",
        "name",
    )
    (pod,) = [
        name for name in kubectl.run(*running).split() if "-retry-system-container-impl-" in name
    ]
    kubectl.run("delete", "-n", NAMESPACE, pod, "--wait=false")
