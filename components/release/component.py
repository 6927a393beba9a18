"""The release step."""

from kfp import dsl

from components.step import step


@step("cpu")
def release(
    graph: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    report: dsl.Input[dsl.Artifact],
    model: str,
    settings: dict,
    workspace: str,
    released: dsl.Output[dsl.Artifact],
) -> str:
    """Write the immutable release, register it and report its address."""
    from pathlib import Path

    from linnet.release.bundle import release
    from linnet.settings import ReleaseSettings
    from linnet.stores.connections import Connections

    result = release(
        Path(graph.path),
        Path(report.path),
        Path(dataset.path),
        model=model,
        settings=ReleaseSettings.parse(settings, "release"),
        connections=Connections.from_environment(Path(workspace)),
    )
    Path(released.path).write_text(result.to_json(), encoding="utf-8")
    return result.uri
