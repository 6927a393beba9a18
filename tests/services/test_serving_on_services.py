"""A server that gets its releases from a real MinIO and a real registry."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linnet.release.bundle import release
from linnet.settings import ReleaseSettings
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from tests.release_parts import write_dataset, write_graph, write_report
from tests.services.conftest import Bucket
from tests.serving.conftest import Running, launch, wait_until_ready
from tests.serving.photographs import photographs

pytestmark = pytest.mark.services

Serve = Callable[..., Running]
PICTURE = photographs()["flower.jpg"]


@pytest.fixture
def serve(tmp_path: Path, minio: Bucket) -> Iterator[Serve]:
    """Start servers that know the bucket; all are stopped at the end."""
    started: list[Running] = []

    def serve_one(address: str, *options: str, **environment: str) -> Running:
        folder = tmp_path / f"server-{len(started)}"
        folder.mkdir()
        known = {
            "AWS_ENDPOINT_URL": minio.address,
            "AWS_ACCESS_KEY_ID": minio.access_key,
            "AWS_SECRET_ACCESS_KEY": minio.secret_key,
        }
        started.append(launch(folder, address, options=options, environment=known | environment))
        return started[-1]

    yield serve_one
    for running in started:
        running.stop()


def released(folder: Path, connections: Connections, root: str, *, temperature: float = 1.0) -> str:
    dataset = write_dataset(folder / "dataset")
    graph = write_graph(folder / "graph", temperature=temperature)
    done = release(
        graph,
        write_report(folder / "report", graph, dataset),
        dataset,
        model="colours",
        settings=ReleaseSettings(root=root),
        connections=connections,
    )
    return done.uri


def answered_by(server: Running) -> str:
    status, body = server.send("POST", "/predict/colours", PICTURE, {"Content-Type": "image/jpeg"})
    assert status == 200, body
    return str(json.loads(body)["release"])


def test_a_release_in_s3_is_served(serve: Serve, minio: Bucket, tmp_path: Path) -> None:
    uri = released(tmp_path, minio.connections(tmp_path), f"s3://{minio.name}/releases")
    server = serve(uri)
    wait_until_ready(server)
    assert answered_by(server) == "colours/v1"
    assert server.stop() == 0


def test_a_half_release_in_s3_is_refused_with_the_reason(
    serve: Serve, minio: Bucket, tmp_path: Path
) -> None:
    uri = released(tmp_path, minio.connections(tmp_path), f"s3://{minio.name}/releases")
    minio.client().remove_object(minio.name, "releases/colours/v1/samples.json")
    server = serve(uri)
    assert server.process.wait(60) == 1
    assert "is incomplete, samples.json is gone" in " ".join(server.output().split())


def test_credentials_that_s3_refuses_are_named(serve: Serve, minio: Bucket) -> None:
    server = serve(f"s3://{minio.name}/colours/v1", AWS_SECRET_ACCESS_KEY="wrong-secret")
    assert server.process.wait(60) == 1
    said = " ".join(server.output().split())
    assert "Traceback" not in said
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert "wrong-secret" not in said


def test_the_registrys_champion_is_served_and_a_reload_follows_it(
    serve: Serve, minio: Bucket, postgres: str, tmp_path: Path
) -> None:
    connections = minio.connections(tmp_path, tracking_uri=postgres)
    root = f"s3://{minio.name}/releases"
    released(tmp_path / "first", connections, root)
    server = serve("colours@champion", "--repository-api", MLFLOW_TRACKING_URI=postgres)
    wait_until_ready(server)
    assert answered_by(server) == "colours/v1"
    better = released(tmp_path / "second", connections, root, temperature=2.0)
    Registry(connections).move("colours", "champion", better)
    assert answered_by(server) == "colours/v1"
    status, said = server.send("POST", "/v2/repository/models/colours/load", b"{}")
    assert status == 200, said
    assert answered_by(server) == "colours/v2"
