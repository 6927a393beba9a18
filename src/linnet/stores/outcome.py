"""How a pipeline's run went, said where people look: the log and the model's page in MLflow."""

import logging
from datetime import UTC, datetime

from linnet.errors import TrackingError
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from linnet.stores.tracking import Tracker, open_client

logger = logging.getLogger(__name__)

_TAG_CHARACTERS = 500
# Of what Kubeflow 2.17 tells the last step, COMPLETE is its metadata store's word; RUNNING comes
# where a branch was not taken, and where a step could not begin, so it promises no more than this.
_STATES = {"COMPLETE": "SUCCEEDED", "RUNNING": "NO_STEP_FAILED"}


def record_outcome(
    model: str, connections: Connections, *, state: str, run: str, error: str | None = None
) -> str:
    """Log how a run ended and tag it in MLflow; return the sentence that was logged.

    The tags `last_run`, `last_run_state`, `last_run_ended` and `last_run_error` go to the
    registered model, if there is one, and to the MLflow run that was joined, if one was. MLflow
    out of reach is a warning: how the run ended stays as it is.
    """
    state = _STATES.get(state, state)
    sentence = f"{model}: run {run} ended as {state}" + (f": {error}" if error else "")
    logger.log(logging.INFO if ended_well(state) else logging.ERROR, "%s", sentence)
    tags = {
        "last_run": run,
        "last_run_state": state,
        "last_run_ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "last_run_error": (error or "")[:_TAG_CHARACTERS],
    }
    try:
        if (joined := connections.tracking_run_id) is not None:
            Tracker(joined, model, connections, open_client(connections)).tags(tags)
        Registry(connections).note(model, tags)
    except TrackingError as unreachable:
        logger.warning("the outcome is not in MLflow: %s", unreachable)
    return sentence


def note_quarantine(tracker: Tracker, share: float) -> None:
    """Tag the model that a run trains, if it has a release, with what was put aside of its source.

    `share` is of the source's pictures, 0 to 1.

    Raises:
        TrackingError: MLflow can't be reached or refuses.
    """
    tags = {"last_quarantined_share": f"{share:.4f}"}
    Registry(tracker.connections).note(tracker.experiment, tags)


def ended_well(state: str) -> bool:
    """Return whether a `last_run_state` is one of a run in which nothing failed."""
    return state in ("SUCCEEDED", *_STATES.values())
