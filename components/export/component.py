"""The export step."""

from kfp import dsl

from components.step import step


@step("gpu")
def export(
    checkpoint: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    settings: dict,
    graph: dsl.Output[dsl.Model],
) -> float:
    """Make the ONNX graph and report its largest probability difference to torch."""
    from pathlib import Path

    from linnet.release.export import export
    from linnet.settings import ExportSettings

    report = export(
        Path(checkpoint.path),
        Path(dataset.path),
        Path(graph.path),
        ExportSettings.parse(settings, "export"),
    )
    return report.largest_difference
