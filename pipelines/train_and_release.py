"""From labelled pictures to a gated release: ingest, train, export, evaluate, gate, release."""

from kfp import dsl

from components.evaluate.component import evaluate
from components.export.component import export
from components.gate.component import gate
from components.ingest.component import ingest
from components.release.component import release
from components.train.component import train
from pipelines import placement
from pipelines.settings import DEFAULTS, DIGITS


@dsl.pipeline(name="train-and-release", description=__doc__)
def train_and_release(
    model: str = DIGITS.model,
    source: dict = DEFAULTS["source"],
    ingest_settings: dict = DEFAULTS["ingest"],
    train_settings: dict = DEFAULTS["train"],
    export_settings: dict = DEFAULTS["export"],
    evaluate_settings: dict = DEFAULTS["evaluate"],
    gate_settings: dict = DEFAULTS["gate"],
    release_settings: dict = DEFAULTS["release"],
    workspace: str = "/tmp/linnet",
) -> None:
    """Train a model on `source` and release it if the gate lets it pass."""
    data = ingest(source=source, settings=ingest_settings, workspace=workspace)
    placement.all_cpus(data)
    dataset = data.outputs["dataset"]
    trained = train(dataset=dataset, model=model, settings=train_settings, workspace=workspace)
    placement.training(trained)
    exported = export(
        checkpoint=trained.outputs["checkpoint"], dataset=dataset, settings=export_settings
    )
    graph = exported.outputs["graph"]
    evaluated = evaluate(graph=graph, dataset=dataset, model=model, settings=evaluate_settings)
    gated = gate(
        graph=graph,
        dataset=dataset,
        report=evaluated.outputs["report"],
        model=model,
        settings=gate_settings,
        workspace=workspace,
    )
    placement.never_cached(gated)
    with dsl.If(gated.outputs["Output"] == "release", name="passed"):
        released = release(
            graph=graph,
            dataset=dataset,
            report=gated.outputs["gated_report"],
            model=model,
            settings=release_settings,
            workspace=workspace,
        )
        placement.never_cached(released)
