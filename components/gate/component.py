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
    from linnet.evaluation.report import Report
    from linnet.release.bundle import open_champion
    from linnet.settings import GateSettings
    from linnet.stores.connections import Connections
    from linnet.stores.tracking import log_report

    connections = Connections.from_environment(Path(workspace))
    with open_champion(model, connections) as champion:
        decision = gate(
            Path(graph.path),
            Path(dataset.path),
            Path(report.path),
            Path(gated_report.path),
            GateSettings.parse(settings, "gate"),
            champion=champion,
        )
    shutil.copy(Path(gated_report.path, "report.html"), page.path)
    log_report(connections, Report.load(Path(gated_report.path)), Path(page.path))
    return decision.decision
