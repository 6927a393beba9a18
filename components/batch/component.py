"""The batch step."""

from components.step import step


@step("cpu")
def batch(
    source: dict, release: str, output: str, shard: str, settings: dict, workspace: str
) -> str:
    """Answer a shard of a source's pictures and report how many; goes on where it was killed."""
    from pathlib import Path

    from linnet.batch.predicting import batch
    from linnet.batch.settings import BatchSettings, Shard
    from linnet.settings import SourceSettings
    from linnet.stores.connections import Connections

    summary = batch(
        SourceSettings.parse(source, "source"),
        release,
        output,
        BatchSettings.parse(settings, "batch"),
        shard=Shard.parse(shard),
        connections=Connections.from_environment(Path(workspace)),
    )
    return summary.headline()
