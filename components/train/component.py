"""The train step."""

from kfp import dsl

from components.step import step


@step("gpu")
def train(
    dataset: dsl.Input[dsl.Dataset],
    model: str,
    settings: dict,
    workspace: str,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> float:
    """Fit the classifier and report its macro F1 on the validation split."""
    from pathlib import Path

    from linnet.settings import TrainSettings
    from linnet.stores.connections import Connections
    from linnet.stores.tracking import Tracker
    from linnet.training import fit

    connections = Connections.from_environment(Path(workspace))
    with Tracker.start(connections, experiment=model) as tracker:
        report = fit(
            Path(dataset.path),
            Path(checkpoint.path),
            TrainSettings.parse(settings, "train"),
            workspace=Path(workspace),
            tracker=tracker,
            connections=connections,
        )
    for name, value in report.metrics.items():
        metrics.log_metric(name, value)
    return report.metrics["val_macro_f1"]
