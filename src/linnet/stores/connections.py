"""Where the stores and services of a run are, read from the environment in one place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from linnet.errors import SettingsError


@dataclass(frozen=True)
class Connections:
    """Addresses and credentials of MLflow and S3. Secrets never show in its `repr`.

    `tracking_uri` is anything MLflow takes: `sqlite:///…`, `postgresql://…`, `http://…`.
    `artifact_root` is a folder or `s3://bucket/prefix`; None leaves the choice to an MLflow server.
    `tracking_run_id` is a run to join, that whoever started this process has begun.
    `search_storage` is the SQLAlchemy URL of the database that workers of a search share.
    `release_root`, a folder or `s3://bucket/prefix`, is for settings that name none.
    `signing_key` is the private key (PEM, or a file's path) that new releases are signed with, and
    `trusted_key` the public one that releases must be signed by to be opened; None: no matter.
    `s3_endpoint` is a URL; None means AWS. Without keys, AWS's own chain is asked (shared
    credentials file, role of the pod or machine).
    """

    tracking_uri: str = field(repr=False)
    artifact_root: str | None = None
    release_root: str | None = None
    tracking_run_id: str | None = None
    search_storage: str | None = field(default=None, repr=False)
    signing_key: str | None = field(default=None, repr=False)
    signing_password: str | None = field(default=None, repr=False)
    trusted_key: str | None = None
    s3_endpoint: str | None = None
    s3_access_key: str | None = field(default=None, repr=False)
    s3_secret_key: str | None = field(default=None, repr=False)
    s3_session_token: str | None = field(default=None, repr=False)
    s3_region: str | None = None

    def __post_init__(self) -> None:
        """Refuse an endpoint that isn't a URL and half a pair of keys.

        Raises:
            SettingsError: with the name of the variable to put right.
        """
        if self.s3_endpoint is not None:
            parts = urlsplit(self.s3_endpoint)
            bare = parts.path in ("", "/") and not parts.query
            if parts.scheme not in ("http", "https") or not parts.hostname or not bare:
                raise SettingsError(
                    f"S3 endpoint {self.s3_endpoint!r} is not a bare URL: set AWS_ENDPOINT_URL to "
                    "something like http://127.0.0.1:9000 or https://s3.example.org"
                )
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise SettingsError(
                "S3 credentials are half given: set both AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or neither"
            )

    @classmethod
    def from_environment(cls, workspace: Path, environ: Mapping[str, str] | None = None) -> Self:
        """Read the standard variables of MLflow and AWS, and LINNET_RELEASE_ROOT, at entry points.

        LINNET_TRACKING_URI stands in for MLFLOW_TRACKING_URI where Kubeflow may set that itself.
        Without either, runs go to SQLite and a folder in the workspace. With an MLflow
        server, the server places the artifacts unless MLFLOW_DEFAULT_ARTIFACT_ROOT is set.
        """
        env = {k: v for k, v in (os.environ if environ is None else environ).items() if v}
        workspace = workspace.absolute()
        tracking_uri = env.get(
            "MLFLOW_TRACKING_URI",
            env.get("LINNET_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}"),
        )
        by_server = tracking_uri.startswith(("http://", "https://"))
        return cls(
            tracking_uri=tracking_uri,
            artifact_root=env.get(
                "MLFLOW_DEFAULT_ARTIFACT_ROOT",
                None if by_server else str(workspace / "mlartifacts"),
            ),
            release_root=env.get("LINNET_RELEASE_ROOT", str(workspace / "releases")),
            tracking_run_id=env.get("MLFLOW_RUN_ID"),
            search_storage=env.get("LINNET_SEARCH_STORAGE", f"sqlite:///{workspace / 'search.db'}"),
            signing_key=env.get("LINNET_SIGNING_KEY"),
            signing_password=env.get("LINNET_SIGNING_PASSWORD"),
            trusted_key=env.get("LINNET_TRUSTED_KEY"),
            s3_endpoint=env.get("AWS_ENDPOINT_URL_S3", env.get("AWS_ENDPOINT_URL")),
            s3_access_key=env.get("AWS_ACCESS_KEY_ID"),
            s3_secret_key=env.get("AWS_SECRET_ACCESS_KEY"),
            s3_session_token=env.get("AWS_SESSION_TOKEN"),
            s3_region=env.get("AWS_REGION", env.get("AWS_DEFAULT_REGION")),
        )

    @property
    def tracking_shown(self) -> str:
        """The tracking URI as it may be printed: without a password."""
        parts = urlsplit(self.tracking_uri)
        if parts.password is None:
            return self.tracking_uri
        shown = parts.netloc.replace(f":{parts.password}@", ":***@")
        return urlunsplit(parts._replace(netloc=shown))

    def for_mlflow(self) -> dict[str, str]:
        """Return the variables by which MLflow and boto3 find the same S3, and limits on waiting.

        MLflow's defaults retry for minutes; these give up after some seconds. It also counts
        usage over the network unless it is told not to.
        """
        values = {
            "MLFLOW_S3_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ACCESS_KEY_ID": self.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3_secret_key,
            "AWS_SESSION_TOKEN": self.s3_session_token,
            "AWS_DEFAULT_REGION": self.s3_region or ("us-east-1" if self.s3_endpoint else None),
            "AWS_MAX_ATTEMPTS": "3",
            "PGCONNECT_TIMEOUT": "10",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
            "MLFLOW_LOGGING_LEVEL": "ERROR",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        return {name: value for name, value in values.items() if value is not None}
