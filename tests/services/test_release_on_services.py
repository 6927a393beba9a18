import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from linnet.errors import (
    ApprovalError,
    ReleaseError,
    ReleaseExistsError,
    StoreDeniedError,
    StoreUnreachableError,
    TrackingError,
)
from linnet.evaluation.report import Report
from linnet.release import publishing
from linnet.release.approval import decide, require_approved
from linnet.release.bundle import (
    Released,
    list_releases,
    open_champion,
    open_release,
    register,
    release,
    releases,
)
from linnet.release.opening import Release, sign_release
from linnet.settings import ReleaseSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import S3Store, open_store
from linnet.stores.registry import Registry
from linnet.stores.tracking import Tracker, log_report
from tests.release_parts import write_dataset, write_graph, write_report
from tests.services.conftest import QUICK, Bucket
from tests.services.start import free_port, serve_minio

pytestmark = pytest.mark.services


@dataclass(frozen=True)
class Parts:
    """A dataset, a graph and its gated report."""

    dataset: Path
    graph: Path
    report: Path

    def release(
        self, connections: Connections, root: str, *, version: str | None = None
    ) -> Released:
        return release(
            self.graph,
            self.report,
            self.dataset,
            model="colours",
            settings=ReleaseSettings(root=root, version=version),
            connections=connections,
        )


def _parts(folder: Path, *, run_id: str | None = None, temperature: float = 1.0) -> Parts:
    dataset = write_dataset(folder / "dataset")
    graph = write_graph(folder / "graph", run_id=run_id, temperature=temperature)
    return Parts(dataset, graph, write_report(folder / "report", graph, dataset))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return _parts(tmp_path / "parts")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have stores give up soon."""
    monkeypatch.setattr("linnet.stores.objects.Patience", lambda: QUICK)


def test_a_run_is_tracked_released_registered_and_opened_on_postgres_and_s3(
    minio: Bucket, postgres: str, tmp_path: Path
) -> None:
    connections = minio.connections(
        tmp_path, tracking_uri=postgres, artifact_root=f"s3://{minio.name}/runs"
    )
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with Tracker.start(connections, experiment="colours", run_name="first") as tracker:
        tracker.params({"train": {"epochs": 3}})
        tracker.metrics({"val_accuracy": 0.5}, step=1)
        tracker.metrics({"val_accuracy": 1.0}, step=2)
        tracker.artifact(note, folder="notes")
    parts = _parts(tmp_path / "parts", run_id=tracker.run_id)
    log_report(connections, Report.load(parts.report), parts.report / "report.html")
    root = f"s3://{minio.name}/releases"
    released = parts.release(connections, root)
    assert (released.version, released.aliases) == ("v1", ("champion",))
    assert released.uri == f"{root}/colours/v1"
    assert parts.release(connections, root).aliases == ("candidate",)

    opened = open_release("colours@candidate", scratch=tmp_path / "s", connections=connections)
    assert opened.version == "v2"
    assert opened.graph_path.read_bytes() == (parts.graph / "model.onnx").read_bytes()
    with open_champion("colours", connections) as champion:
        assert champion is not None
        assert champion.manifest["provenance"]["tracking_run_id"] == tracker.run_id
    rows = releases(connections, root=root)
    assert [(row.version, row.aliases) for row in rows] == [
        ("v1", ("champion",)),
        ("v2", ("candidate",)),
    ]
    run = tracker._client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "3"}
    assert run.data.metrics["val_accuracy"] == 1.0
    assert run.data.metrics["test_accuracy"] == 1.0
    keys = [entry.key for entry in minio.store().entries("runs")]
    assert any(key.endswith("artifacts/notes/note.txt") for key in keys)
    assert any(key.endswith("artifacts/report.html") for key in keys)


def test_decisions_of_people_are_kept_in_postgres_however_long_and_many(
    minio: Bucket, postgres: str, tmp_path: Path
) -> None:
    connections = minio.connections(tmp_path, tracking_uri=postgres)
    registry, uri = Registry(connections), f"s3://{minio.name}/releases/colours/v1"
    registry.register("colours", uri, tags={"release": "v1", "approval": "pending"})
    about = {"by": "ada", "reason": "Größe " * 150, "connections": connections}
    for _ in range(4):
        decide("colours", "v1", "approved", **about)
        assert registry.champion("colours") == uri
        decide("colours", "v1", "withdrawn", **about)
    (kept,) = registry.releases("colours")
    assert (kept.tags["approval"], kept.tags["approval_reason"]) == ("withdrawn", about["reason"])
    history = json.loads(kept.tags["approval_history"])
    assert [one["state"] for one in history] == ["approved", "withdrawn"] * 4
    assert {one["by"] for one in history} == {"ada"}
    assert [bool(one["reason"]) for one in history] == [False] * 2 + [True] * 6
    with pytest.raises(ApprovalError, match="withdrawn by ada at 20"):
        require_approved("colours", "v1", kept, required=False)


def test_tables_are_made_once_when_two_begin_on_an_empty_database(
    empty_postgres: str, tmp_path: Path
) -> None:
    connections = Connections(tracking_uri=empty_postgres, artifact_root=str(tmp_path))

    def begin(name: str) -> str:
        with Tracker.start(connections, experiment="colours", run_name=name) as tracker:
            return tracker.run_id

    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(begin, ("one", "two")))) == 2


def test_a_wrong_database_password_is_an_error_without_the_password(postgres: str) -> None:
    wrong = postgres.replace("@", "wrong@", 1)
    started = time.monotonic()
    with pytest.raises(TrackingError, match="password authentication failed") as caught:
        Registry(Connections(tracking_uri=wrong)).champion("colours")
    assert time.monotonic() - started < 30
    assert "linnet:***@" in str(caught.value)
    assert wrong.split(":")[2].partition("@")[0] not in str(caught.value)


def test_artifacts_in_an_absent_bucket_fail_the_run_with_what_to_check(
    minio: Bucket, postgres: str, tmp_path: Path
) -> None:
    connections = minio.connections(
        tmp_path, tracking_uri=postgres, artifact_root="s3://no-such-bucket/runs"
    )
    with (
        pytest.raises(TrackingError, match=r"bucket does not exist.*AWS_ENDPOINT_URL"),
        Tracker.start(connections, experiment="colours") as tracker,
    ):
        tracker.artifact(Path(__file__))
    assert tracker._client.get_run(tracker.run_id).info.status == "FAILED"


def test_a_release_whose_registration_failed_can_be_registered_later(
    minio: Bucket, tmp_path: Path, parts: Parts
) -> None:
    connections = minio.connections(tmp_path)
    down = replace(connections, tracking_uri=f"postgresql://u:secret@127.0.0.1:{free_port()}/db")
    root = f"s3://{minio.name}"
    with pytest.raises(TrackingError, match="is released but not registered") as caught:
        parts.release(down, root)
    assert f"{root}/colours/v1" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [found.version for found in list_releases(root, connections=connections)] == ["v1"]
    first = register(f"{root}/colours/v1", connections)
    assert first.aliases == ("champion",)
    assert register(f"{root}/colours/v1", connections) == first


def test_two_at_once_on_one_version_make_one_release(minio: Bucket, tmp_path: Path) -> None:
    root = f"s3://{minio.name}/releases"
    both = [_parts(tmp_path / name, temperature=t) for name, t in (("a", 1.0), ("b", 2.0))]
    start = threading.Barrier(2)

    def publish(parts: Parts) -> str:
        start.wait()
        try:
            connections = minio.connections(tmp_path)
            return parts.release(connections, root, version="summer").uri
        except ReleaseExistsError:
            return "exists"

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(publish, both))
    assert sorted(results) == ["exists", f"{root}/colours/summer"]
    opened = open_release(
        f"{root}/colours/summer", scratch=tmp_path / "s", connections=minio.connections(tmp_path)
    )
    winner = both[results.index(opened.uri)]
    assert opened.graph_path.read_bytes() == (winner.graph / "model.onnx").read_bytes()
    assert minio.store().folders("releases/colours") == ["summer"]


def test_two_at_once_without_a_version_get_two(minio: Bucket, tmp_path: Path) -> None:
    root = f"s3://{minio.name}"
    both = [_parts(tmp_path / name, temperature=t) for name, t in (("a", 1.0), ("b", 2.0))]
    with ThreadPoolExecutor(2) as threads:
        done = threads.map(lambda parts: parts.release(minio.connections(tmp_path), root), both)
        assert {released.version for released in done} == {"v1", "v2"}


def test_an_upload_under_way_keeps_others_from_its_version_for_an_hour(
    minio: Bucket, tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, connections = f"s3://{minio.name}", minio.connections(tmp_path)
    shelf = publishing.open_shelf(root, connections)
    assert isinstance(shelf, publishing.BucketShelf)
    shelf._claim("colours", "v1", "another graph")
    with pytest.raises(ReleaseExistsError, match="under way, begun 0 s ago"):
        parts.release(connections, root, version="v1")
    assert parts.release(connections, root).version == "v2"
    monkeypatch.setattr(publishing, "CLAIM_S", 0.0)
    assert parts.release(connections, root, version="v1").version == "v1"


def test_a_killed_release_is_taken_up_by_the_same_release(
    minio: Bucket, tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, connections = f"s3://{minio.name}", minio.connections(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(S3Store, "create", _dies_after(S3Store.create, calls=1))
        killed.setattr(S3Store, "delete", lambda self, key: None)
        with pytest.raises(KeyboardInterrupt):
            parts.release(connections, root, version="v1")
    assert minio.store().exists("colours/v1/model.onnx")
    assert list_releases(root, connections=connections) == []
    with pytest.raises(ReleaseError, match="is not a finished release"):
        open_release(f"{root}/colours/v1", scratch=tmp_path / "s", connections=connections)
    assert parts.release(connections, root, version="v1").version == "v1"


def _dies_after(function: Callable[..., bool], *, calls: int) -> Callable[..., bool]:
    seen = []

    def dying(*arguments: object) -> bool:
        if len(seen) == calls:
            raise KeyboardInterrupt
        seen.append(arguments)
        return function(*arguments)

    return dying


def test_an_altered_file_in_s3_is_refused_with_both_digests(
    minio: Bucket, tmp_path: Path, parts: Parts
) -> None:
    root, connections = f"s3://{minio.name}", minio.connections(tmp_path)
    uri = parts.release(connections, root).uri
    minio.store().write("colours/v1/model.onnx", b"altered")
    with pytest.raises(ReleaseError, match=r"model.onnx of .* SHA-256 \w{64}, the .* \w{64}"):
        open_release(uri, scratch=tmp_path / "s", connections=connections)
    minio.store().delete("colours/v1/model.onnx")
    with pytest.raises(ReleaseError, match=r"incomplete, model.onnx is gone"):
        open_release(uri, scratch=tmp_path / "s", connections=connections)


@pytest.mark.usefixtures("impatient")
def test_a_closed_port_ends_the_release_and_registers_nothing(tmp_path: Path, parts: Parts) -> None:
    connections = replace(
        Connections.from_environment(tmp_path, {}),
        s3_endpoint=f"http://127.0.0.1:{free_port()}",
        s3_access_key="a",
        s3_secret_key="b",
    )
    with pytest.raises(StoreUnreachableError):
        parts.release(connections, "s3://bucket/releases")
    assert Registry(connections).releases() == []


def test_denied_credentials_release_nothing(minio: Bucket, tmp_path: Path, parts: Parts) -> None:
    connections = minio.connections(tmp_path, s3_secret_key="wrong-secret")
    with pytest.raises(StoreDeniedError):
        parts.release(connections, f"s3://{minio.name}")
    assert list(minio.store().entries()) == []


@pytest.mark.usefixtures("impatient")
def test_a_server_killed_while_releasing_shows_no_release_and_blocks_none(
    tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, port = tmp_path / "data", free_port()
    server = serve_minio(data, port, "linnet", "linnet-secret")
    connections = replace(
        Connections.from_environment(tmp_path / "workspace", {}),
        s3_endpoint=f"http://127.0.0.1:{port}",
        s3_access_key="linnet",
        s3_secret_key="linnet-secret",
    )
    store, _ = open_store("s3://bucket", connections)
    assert isinstance(store, S3Store)
    store._client.make_bucket("bucket")

    def killing(self: S3Store, path: Path, key: str) -> None:
        if path.name == "report.json":
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
        upload(self, path, key)

    upload = S3Store.upload
    try:
        with monkeypatch.context() as killed:
            killed.setattr(S3Store, "upload", killing)
            with pytest.raises(StoreUnreachableError, match=r"can't write .*report.json"):
                parts.release(connections, "s3://bucket", version="v1")
        server = serve_minio(data, port, "linnet", "linnet-secret")
        assert store.exists("colours/v1/model.onnx")
        assert list_releases("s3://bucket", connections=connections) == []
        assert parts.release(connections, "s3://bucket", version="v1").aliases == ("champion",)
    finally:
        server.kill()
        server.wait()


def test_a_signed_release_in_s3_opens_where_its_key_is_trusted_and_can_be_signed_again(
    minio: Bucket, postgres: str, parts: Parts, tmp_path: Path
) -> None:
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    connections = minio.connections(tmp_path, tracking_uri=postgres, signing_key=_pem(ours))
    uri = parts.release(connections, f"s3://{minio.name}/releases").uri

    def opened(public: ec.EllipticCurvePrivateKey) -> Release:
        trusting = replace(connections, trusted_key=_public_pem(public))
        return open_release(uri, scratch=tmp_path / "scratch", connections=trusting)

    assert opened(ours).manifest["version"] == "v1"
    sign_release("colours@champion", replace(connections, signing_key=_pem(theirs)))
    assert opened(theirs).manifest["version"] == "v1"
    with pytest.raises(ReleaseError, match="Key mismatch"):
        opened(ours)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def _public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()
