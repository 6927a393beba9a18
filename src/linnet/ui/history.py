"""How a model got better: its releases' metrics, and the epochs of the one that serves."""

import logging
from dataclasses import dataclass, field

from linnet.errors import LinnetError
from linnet.release.bundle import ReleaseRow, releases
from linnet.stores.connections import Connections
from linnet.stores.tracking import open_client, tracking_errors

logger = logging.getLogger(__name__)

CURVES = ("val_macro_f1", "val_accuracy", "train_loss", "val_loss")

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class History:
    """Releases, oldest first, and curves of (epoch, value) by metric; `missing` says what isn't."""

    releases: tuple[ReleaseRow, ...] = ()
    curves: dict[str, Curve] = field(default_factory=dict)
    missing: str = ""


def read_history(model: str, run_id: str | None, connections: Connections) -> History:
    """Return what the release root and MLflow know; what can't be had is only missing."""
    try:
        rows = tuple(releases(connections, model=model))
        return History(rows, {} if run_id is None else _curves(run_id, connections))
    except LinnetError as error:
        logger.warning("the model page is without its history: %s", error)
        return History(missing="MLflow, or the store of releases, does not answer")


def _curves(run_id: str, connections: Connections) -> dict[str, Curve]:
    client = open_client(connections)
    with tracking_errors(connections, f"read run {run_id}"):
        found = {name: client.get_metric_history(run_id, name) for name in CURVES}
    return {
        name: tuple(sorted((point.step, point.value) for point in points))
        for name, points in found.items()
        if len(points) > 1
    }
