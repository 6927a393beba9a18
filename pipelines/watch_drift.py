"""A look for drift, to be run on a schedule."""

from kfp import dsl

from components.conclude.component import conclude
from components.drift.component import drift
from pipelines import placement
from pipelines.settings import DIGITS


@dsl.pipeline(name="watch-drift", description=__doc__)
def watch_drift(
    model: str = DIGITS.model,
    release: str = f"{DIGITS.model}@champion",
    drift_source: str = "",
    drift_settings: dict = {},  # noqa: B006
    workspace: str = placement.WORKSPACE,
) -> None:
    """Compare the newest pictures of a log or folder with what a release was measured on."""
    ended = conclude(model=model, workspace=workspace)
    with dsl.ExitHandler(placement.deciding(ended), name="run"):
        on = {"source": drift_source, "release": release, "settings": drift_settings}
        placement.deciding(drift(**on, workspace=workspace))
