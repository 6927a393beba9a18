"""The evaluate step."""

from kfp import dsl

from components.step import step


@step("cpu")
def evaluate(
    graph: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: str,
    settings: dict,
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
) -> float:
    """Measure the graph that will serve on the test split and report its macro F1."""
    from pathlib import Path

    from linnet.evaluation.evaluate import evaluate
    from linnet.settings import EvaluateSettings

    result = evaluate(
        Path(graph.path),
        Path(dataset.path),
        Path(report.path),
        EvaluateSettings.parse(settings, "evaluate"),
        model=model,
    )
    metrics.metadata.update(result.values())
    classification.log_confusion_matrix(*result.confusion_matrix())
    classification.log_roc_curve(*result.roc_curve())
    return result.values()["macro_f1"]
