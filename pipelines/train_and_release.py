"""From labelled pictures to a gated release, and where it is asked for on to all the traffic."""

from kfp import dsl

from components.conclude.component import conclude
from components.evaluate.component import evaluate
from components.export.component import export
from components.gate.component import gate
from components.ingest.component import ingest
from components.release.component import release
from components.rollout.component import rollout
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
    after_release: str = "stop",
    rollout_settings: dict = {},  # noqa: B006
    workspace: str = placement.WORKSPACE,
) -> None:
    """Train a model, release it if the gate lets it pass, and roll it out if asked to."""
    ended = conclude(model=model, workspace=workspace)
    with dsl.ExitHandler(placement.deciding(ended), name="run"):
        data = ingest(source=source, settings=ingest_settings, workspace=workspace)
        dataset = placement.decoding(data).outputs["dataset"]
        trained = train(dataset=dataset, model=model, settings=train_settings, workspace=workspace)
        checkpoint = placement.training(trained).outputs["checkpoint"]
        exported = export(checkpoint=checkpoint, dataset=dataset, settings=export_settings)
        graph = placement.decoding(exported).outputs["graph"]
        made = {"graph": graph, "dataset": dataset, "model": model}
        evaluated = evaluate(**made, settings=evaluate_settings)
        made["report"] = placement.decoding(evaluated).outputs["report"]
        gated = gate(**made, settings=gate_settings, workspace=workspace)
        placement.deciding(gated)
        with dsl.If(gated.outputs["Output"] == "release", name="passed"):
            made["report"] = gated.outputs["gated_report"]
            released = release(**made, settings=release_settings, workspace=workspace)
            placement.releasing(released)
            with dsl.If(after_release == "rollout", name="asked"):
                on = {"model": model, "settings": rollout_settings, "workspace": workspace}
                rolled_out = rollout(release=released.outputs["Output"], **on)
                placement.deciding(rolled_out)
