"""The summarise step."""

from kfp import dsl

from components.step import step


@step("cpu")
def summarise(
    shards: list,
    output: str,
    workspace: str,
    metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
) -> str:
    """Show what came of a batch whose shards have all ended: counts, metrics, confusion matrix."""
    from pathlib import Path

    from linnet.batch.summary import BatchSummary
    from linnet.stores.connections import Connections

    summary = BatchSummary.load(output, Connections.from_environment(Path(workspace)))
    metrics.metadata.update(summary.values())
    classification.log_confusion_matrix(*summary.confusion_matrix())
    return summary.headline()
