"""A cluster, a store and a registry on this machine, and releases to roll out."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linnet.rollout.cluster import Cluster
from linnet.rollout.journal import Entry
from linnet.rollout.rollout import Rollouts
from linnet.rollout.settings import RolloutSettings
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from tests.rollout.bucket import Bucket
from tests.rollout.kube import Kube
from tests.rollout.scripted import Scripted
from tests.serving.photographs import photographs
from tests.serving.tiny_release import write_release

MODEL = "flowers"
URI = "s3://linnet/releases/flowers"
FAST: dict[str, Any] = {
    "settle_s": 0.0,
    "settle_timeout_s": 3.0,
    "ready_timeout_s": 3.0,
    "api_timeout_s": 5.0,
    "analysis": {"hold_s": 0.0, "poll_s": 0.02, "min_requests": 100},
}


def fast(**changes: Any) -> RolloutSettings:
    """Return settings of a rollout that takes a second."""
    analysis = {**FAST["analysis"], **changes.pop("analysis", {})}
    return RolloutSettings.parse({**FAST, **changes, "analysis": analysis})


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Return an S3 with releases v1 to v3 of flowers."""
    root = tmp_path_factory.mktemp("bucket")
    for version in ("v1", "v2", "v3"):
        write_release(root / "linnet" / "releases", photographs(), version=version)
    served = Bucket(root)
    yield served
    served.close()


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the database of a registry where v1 is champion and v2 candidate."""
    workspace = tmp_path_factory.mktemp("registered")
    registry = Registry(Connections.from_environment(workspace, {}))
    for version in ("v1", "v2"):
        registry.register(MODEL, f"{URI}/{version}")
    return workspace / "mlflow.db"


@pytest.fixture
def connections(tmp_path: Path, bucket: Bucket, registered: Path) -> Connections:
    shutil.copy(registered, tmp_path / "mlflow.db")
    environ = {
        "AWS_ENDPOINT_URL": bucket.url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    return Connections.from_environment(tmp_path, environ)


@pytest.fixture
def registry(connections: Connections) -> Registry:
    return Registry(connections)


@pytest.fixture
def servers(bucket: Bucket) -> dict[str, Scripted]:
    root = bucket.root / "linnet" / "releases" / MODEL
    return {version: Scripted(root / version) for version in ("v1", "v2", "v3")}


@pytest.fixture
def kube(servers: dict[str, Scripted]) -> Iterator[Kube]:
    """Return a cluster where nothing is served yet."""
    running = Kube(servers=servers)
    yield running
    running.close()


@pytest.fixture
def connect(kube: Kube, tmp_path: Path) -> Callable[..., Cluster]:
    """Return a maker of connections; `token` tells one process from another."""

    def connected(*, token: str = "secret", patience_s: float = 5.0) -> Cluster:
        path = tmp_path / f"kubeconfig-{token}"
        path.write_text(json.dumps(kube.kubeconfig(token)))
        return Cluster.connect(kubeconfig=str(path), patience_s=patience_s)

    return connected


@pytest.fixture
def rollouts(connect: Callable[..., Cluster], connections: Connections) -> Callable[..., Rollouts]:
    """Return a maker of rollouts, each as in a process of its own."""

    def make(
        *,
        cluster: Cluster | None = None,
        watch: Callable[[Entry], None] = lambda entry: None,
        **changes: Any,
    ) -> Rollouts:
        return Rollouts(
            cluster or connect(),
            MODEL,
            fast(**changes),
            connections=connections,
            watch=watch,
            lease_s=0.6,
        )

    return make
