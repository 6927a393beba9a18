"""The ingest step."""

from kfp import dsl

from components.step import step


@step("cpu")
def ingest(
    source: dict,
    settings: dict,
    workspace: str,
    dataset: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.HTML],
) -> str:
    """Make a checked, split and versioned dataset and report its version."""
    import shutil
    from pathlib import Path

    from linnet.data.ingest import ingest
    from linnet.settings import IngestSettings, SourceSettings
    from linnet.stores.connections import Connections

    summary = ingest(
        SourceSettings.parse(source, "source"),
        Path(dataset.path),
        IngestSettings.parse(settings, "ingest"),
        connections=Connections.from_environment(Path(workspace)),
    )
    dataset.metadata.update(version=summary.version, pictures=summary.pictures)
    shutil.copy(Path(dataset.path, "card.html"), card.path)
    return summary.version
