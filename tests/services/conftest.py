"""A bucket and a database for each test, on real services; and where Label Studio is."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from linnet.stores.connections import Connections
from linnet.stores.objects import Patience, S3Store
from linnet.stores.tracking import open_client
from tests.services.start import read_record

QUICK = Patience(attempts=3, first_wait_s=0.05, connect_s=2.0, read_s=10.0)


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of a real MinIO, and how to reach it."""

    name: str
    address: str
    access_key: str
    secret_key: str

    def connections(self, workspace: Path, **changes: Any) -> Connections:
        """Return connections to this MinIO, with tracking in a folder unless changed."""
        variables = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }
        return replace(Connections.from_environment(workspace, variables), **changes)

    def store(self, **changes: Any) -> S3Store:
        """Return the store of this bucket, which gives up soon."""
        return S3Store(self.name, self.connections(Path(), **changes), patience=QUICK)

    def client(self) -> Minio:
        """Return MinIO's own client, as the administrator."""
        address = self.address.removeprefix("http://")
        return Minio(
            endpoint=address, access_key=self.access_key, secret_key=self.secret_key, secure=False
        )


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Undo what a test's connections set for MLflow and boto3."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def minio() -> Bucket:
    """Return a new bucket."""
    service = _service("minio")
    bucket = Bucket(
        name=f"test-{secrets.token_hex(6)}",
        address=service["address"],
        access_key=service["access_key"],
        secret_key=service["secret_key"],
    )
    bucket.client().make_bucket(bucket.name)
    return bucket


@pytest.fixture
def postgres(_postgres_template: tuple[str, str]) -> Iterator[str]:
    """Yield the URI of a new database that has MLflow's tables."""
    server, template = _postgres_template
    yield from _database(server, f"TEMPLATE {template}")


@pytest.fixture
def empty_postgres() -> Iterator[str]:
    """Yield the URI of a new database without any table."""
    yield from _database(_postgres_server(), "")


@pytest.fixture(scope="session")
def label_studio() -> dict[str, Any]:
    """Return where a real Label Studio is: its `address`, and its first user's `token`."""
    return _service("label_studio")


@pytest.fixture(scope="session")
def _postgres_template() -> Iterator[tuple[str, str]]:
    server = _postgres_server()
    for uri in _database(server, ""):
        open_client(Connections(tracking_uri=uri))
        _end_connections(server, uri)
        yield server, uri.rpartition("/")[2]


def _database(server: str, how: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    _execute(server, f"CREATE DATABASE {name} {how}")
    yield f"{server}/{name}"
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _end_connections(server: str, uri: str) -> None:
    """Cut MLflow's pooled connections: a template must have none."""
    name = uri.rpartition("/")[2]
    _execute(
        server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname='{name}'"
    )


def _execute(server: str, statement: str) -> None:
    from sqlalchemy import create_engine, text

    admin = server.replace("postgresql:", "postgresql+psycopg2:")
    engine = create_engine(f"{admin}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _postgres_server() -> str:
    service = _service("postgres")
    return f"postgresql://{service['user']}:{service['password']}@{service['address']}"


def _service(name: str) -> dict[str, Any]:
    service = read_record().get(name, {"unavailable": f"{name} is not started: make services"})
    if reason := service.get("unavailable"):
        if os.environ.get("LINNET_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return dict(service)
