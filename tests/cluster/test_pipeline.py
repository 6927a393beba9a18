"""A run of the pipeline on the cluster's Kubeflow Pipelines, from pictures to a release in S3."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from linnet.release.opening import read_manifest
from linnet.rollout.cluster import Cluster
from manifests.install.kubectl import Kubectl
from tests.cluster.serving_here import forwarded, store_connections

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
LINNET = str(Path(sys.executable).with_name("linnet"))
# A smaller picture of the digits than the built-in run's, good enough for its own gate.
SMALL = ("train.whole.epochs=2", "gate.minimum.accuracy=0.3", "evaluate.bootstrap_samples=50")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the pipeline, compiled for the images that LINNET_IMAGE_TAG names."""
    folder = tmp_path_factory.mktemp("pipelines")
    compiling = [sys.executable, "-W", "ignore", "-m", "pipelines.compile", str(folder)]
    subprocess.run(compiling, cwd=ROOT, check=True, capture_output=True)
    return folder / "train_and_release.yaml"


def test_a_submitted_run_ends_with_a_release_in_the_store(
    cluster: Cluster, kubectl: Kubectl, store_url: str, pipeline: Path, tmp_path: Path
) -> None:
    if kubectl.get("deployment", "ml-pipeline", "kubeflow") is None:
        pytest.skip("needs Kubeflow Pipelines on the cluster: make platform")
    model = f"t{uuid.uuid4().hex[:6]}"
    settings = [f"--set={one}" for one in (f"model={model}", *SMALL)]
    with forwarded("kubeflow/svc/ml-pipeline", 8888) as endpoint:
        submitted = subprocess.run(
            [LINNET, "submit", f"--endpoint={endpoint}", f"--pipeline={pipeline}", *settings],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
    assert submitted.returncode == 0, f"{submitted.stdout}\n{submitted.stderr}"
    uri = f"s3://linnet/releases/{model}/v1"
    manifest = read_manifest(uri, store_connections(cluster, store_url, tmp_path))
    assert (manifest["model"], manifest["version"]) == (model, "v1")
    assert manifest["metrics"]["accuracy"] >= 0.3
