"""The gate step."""

from kfp import dsl

from components.step import step


@step("cpu")
def gate(
    graph: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    report: dsl.Input[dsl.Artifact],
    model: str,
    settings: dict,
    workspace: str,
    gated_report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> str:
    """Hold the report against the settings and the champion: `release` or `refuse`."""
    import shutil
    from pathlib import Path

    from linnet.evaluation.gate import gate
    from linnet.release.bundle import open_champion
    from linnet.settings import GateSettings
    from linnet.stores.connections import Connections

    with open_champion(model, Connections.from_environment(Path(workspace))) as champion:
        decision = gate(
            Path(graph.path),
            Path(dataset.path),
            Path(report.path),
            Path(gated_report.path),
            GateSettings.parse(settings, "gate"),
            champion=champion,
        )
    shutil.copy(Path(gated_report.path, "report.html"), page.path)
    return decision.decision
