"""From labelled pictures to a gated release, with a search for the train settings before it."""

from kfp import dsl

from components.choose.component import choose
from components.conclude.component import conclude
from components.evaluate.component import evaluate
from components.export.component import export
from components.gate.component import gate
from components.ingest.component import ingest
from components.release.component import release
from components.search.component import search
from components.train.component import train
from pipelines import placement
from pipelines.settings import DIGITS, SEARCH_DEFAULTS


@dsl.pipeline(name="search-and-release", description=__doc__)
def search_and_release(
    model: str = DIGITS.model,
    source: dict = SEARCH_DEFAULTS["source"],
    ingest_settings: dict = SEARCH_DEFAULTS["ingest"],
    train_settings: dict = SEARCH_DEFAULTS["train"],
    search_settings: dict = SEARCH_DEFAULTS["search"],
    search_workers: list[int] = [1],  # noqa: B006
    export_settings: dict = SEARCH_DEFAULTS["export"],
    evaluate_settings: dict = SEARCH_DEFAULTS["evaluate"],
    gate_settings: dict = SEARCH_DEFAULTS["gate"],
    release_settings: dict = SEARCH_DEFAULTS["release"],
    workspace: str = placement.WORKSPACE,
) -> None:
    """Search, train with the best settings, and release the model if the gate lets it pass."""
    ended = conclude(model=model, workspace=workspace)
    with dsl.ExitHandler(placement.deciding(ended), name="run"):
        data = ingest(source=source, settings=ingest_settings, workspace=workspace)
        dataset = placement.decoding(data).outputs["dataset"]
        on = {"dataset": dataset, "model": model, "workspace": workspace}
        what = {**on, "train_settings": train_settings, "settings": search_settings}
        with dsl.ParallelFor(search_workers, name="workers") as worker:
            searched = placement.searching(search(**what, worker=worker))
        chosen = placement.searching(choose(**what, trials=dsl.Collected(searched.output)))
        trained = train(**on, settings=chosen.outputs["Output"])
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
            placement.releasing(release(**made, settings=release_settings, workspace=workspace))
