"""The drift step."""

from kfp import dsl

from components.step import step


@step("cpu")
def drift(
    source: str,
    release: str,
    settings: dict,
    workspace: str,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Compare new pictures with what the release was measured on: `drift` or `none`."""
    import shutil
    from pathlib import Path

    from linnet.monitoring.drift import look, record
    from linnet.monitoring.settings import DriftSettings
    from linnet.stores.connections import Connections

    connections = Connections.from_environment(Path(workspace))
    wanted = DriftSettings.parse(settings, "drift")
    result = look(source, release, Path(report.path), wanted, connections=connections)
    record(result, Path(report.path), connections)
    shutil.copy(Path(report.path, "drift.html"), page.path)
    metrics.metadata.update(result.values())
    return result.verdict
