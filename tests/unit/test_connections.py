from pathlib import Path

import pytest

from linnet.errors import SettingsError
from linnet.stores.connections import Connections


def test_nothing_in_the_environment_means_files_in_the_workspace(tmp_path: Path) -> None:
    connections = Connections.from_environment(tmp_path, {})
    assert connections.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert connections.artifact_root == f"{tmp_path}/mlartifacts"
    assert connections.release_root == f"{tmp_path}/releases"
    assert connections.s3_endpoint is None
    assert connections.tracking_run_id is None


def test_the_standard_variables_are_read() -> None:
    connections = Connections.from_environment(
        Path("workspace"),
        {
            "MLFLOW_TRACKING_URI": "http://mlflow:5000",
            "MLFLOW_RUN_ID": "abc",
            "AWS_ENDPOINT_URL": "http://all:9000",
            "AWS_ENDPOINT_URL_S3": "http://s3:9000",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_SESSION_TOKEN": "token",
            "AWS_DEFAULT_REGION": "eu-west-3",
        },
    )
    assert connections.tracking_uri == "http://mlflow:5000"
    assert connections.artifact_root is None
    assert connections.tracking_run_id == "abc"
    assert connections.s3_endpoint == "http://s3:9000"
    assert (connections.s3_access_key, connections.s3_secret_key) == ("key", "secret")
    assert connections.s3_region == "eu-west-3"


def test_releases_go_where_the_environment_says() -> None:
    variables = {"LINNET_RELEASE_ROOT": "s3://linnet/releases"}
    connections = Connections.from_environment(Path("workspace"), variables)
    assert connections.release_root == "s3://linnet/releases"


def test_an_empty_variable_counts_as_absent() -> None:
    connections = Connections.from_environment(Path(), {"AWS_ENDPOINT_URL": "", "AWS_REGION": ""})
    assert connections.s3_endpoint is None
    assert connections.s3_region is None


def test_secrets_are_never_shown() -> None:
    connections = Connections(
        tracking_uri="postgresql://linnet:hunter2@db:5432/mlflow",
        s3_access_key="AKIA",
        s3_secret_key="swordfish",
        s3_session_token="opensesame",
    )
    shown = repr(connections) + connections.tracking_shown
    assert connections.tracking_shown == "postgresql://linnet:***@db:5432/mlflow"
    for secret in ("hunter2", "AKIA", "swordfish", "opensesame"):
        assert secret not in shown


@pytest.mark.parametrize(
    "endpoint", ["minio:9000", "127.0.0.1", "ftp://minio", "http://", "http://minio/bucket"]
)
def test_an_endpoint_that_is_no_bare_url_is_refused_with_an_example(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"set AWS_ENDPOINT_URL to .* http://127.0.0.1:9000"):
        Connections(tracking_uri="", s3_endpoint=endpoint)


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(SettingsError, match="set both AWS_ACCESS_KEY_ID and AWS_SECRET"):
        Connections(tracking_uri="", s3_access_key="key")


def test_mlflow_is_told_where_s3_is_and_to_give_up_soon_and_to_count_nothing() -> None:
    variables = Connections(
        tracking_uri="", s3_endpoint="http://s3:9000", s3_access_key="k", s3_secret_key="s"
    ).for_mlflow()
    assert variables["MLFLOW_S3_ENDPOINT_URL"] == "http://s3:9000"
    assert variables["AWS_SECRET_ACCESS_KEY"] == "s"
    assert int(variables["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 3
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "AWS_SESSION_TOKEN" not in variables


def test_kubeflow_s_own_address_of_mlflow_comes_before_the_platform_s(tmp_path: Path) -> None:
    platform = {"LINNET_TRACKING_URI": "http://platform:5000"}
    assert Connections.from_environment(tmp_path, platform).tracking_uri == "http://platform:5000"
    plugin = platform | {"MLFLOW_TRACKING_URI": "http://plugin:5000"}
    assert Connections.from_environment(tmp_path, plugin).tracking_uri == "http://plugin:5000"
