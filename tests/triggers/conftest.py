"""A run of made pictures, what watches it, and a Kubeflow that takes runs."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from linnet.stores.connections import Connections
from linnet.stores.tracking import open_client
from linnet.triggers.settings import WatchSettings
from linnet.triggers.starting import Starter
from tests.pipelines.kubeflow_stand_in import Serving, StandIn
from tests.shades import TRAIN, write_shades


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in ("MLFLOW_TRACKING_URI", "LINNET_RELEASE_ROOT", "LINNET_WORKSPACE"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def kubeflow() -> Iterator[StandIn]:
    with Serving() as stand_in:
        yield stand_in


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_shades(tmp_path / "pictures", each=40)
    return tmp_path / "pictures"


@pytest.fixture
def settings(tmp_path: Path, pictures: Path) -> Callable[..., Path]:
    """Return a writer of watch settings, beside those of the run; without a cluster: runs here."""

    def write(**values: Any) -> Path:
        run = {
            "model": "shades",
            "source": {"uri": str(pictures)},
            "ingest": {"near_duplicates": "ignore"},
            "train": TRAIN,
            "gate": {"minimum": {"accuracy": 0.8}},
        }
        (tmp_path / "shades.yaml").write_text(yaml.safe_dump(run))
        file = tmp_path / "watch.yaml"
        file.write_text(yaml.safe_dump({"run": "shades.yaml", **values}))
        return file

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of MLflow without anything in it: making one takes seconds."""
    folder = tmp_path_factory.mktemp("tables")
    open_client(Connections.from_environment(folder, {}))
    return folder / "mlflow.db"


@pytest.fixture
def connections(workspace: Path, tables: Path) -> Connections:
    workspace.mkdir()
    shutil.copy(tables, workspace / "mlflow.db")
    return Connections.from_environment(workspace, {})


@pytest.fixture
def cluster(
    settings: Callable[..., Path], kubeflow: StandIn, connections: Connections, workspace: Path
) -> Callable[..., Starter]:
    """Return a maker of starters of runs on the cluster, whose source no pod has to see."""

    def make(**values: Any) -> Starter:
        values = {
            "cluster": {"endpoint": kubeflow.url},
            "overrides": ["source.uri=digits"],
        } | values
        file = settings(**values)
        return Starter(WatchSettings.load(file), file.parent, connections, workspace=workspace)

    return make


def runs(kubeflow: StandIn) -> list[dict[str, Any]]:
    """Return the runs that were started."""
    return [body for path, body in kubeflow.sent if path.endswith("/runs")]
