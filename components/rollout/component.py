"""The rollout step."""

from components.step import step


@step("cpu")
def rollout(release: str, model: str, settings: dict, workspace: str) -> str:
    """Move a model's traffic to a release step by step and report the new champion's version.

    Reports `waiting` when a person has yet to approve the release. Fails when the evidence takes
    the release back; started again, it goes on where it was.
    """
    from pathlib import Path

    from linnet.rollout.rollout import Rollouts
    from linnet.rollout.settings import RolloutSettings
    from linnet.stores.connections import Connections

    rollouts = Rollouts.connect(
        model,
        RolloutSettings.parse(settings, "rollout"),
        connections=Connections.from_environment(Path(workspace)),
    )
    return rollouts.start_when_approved(release)
