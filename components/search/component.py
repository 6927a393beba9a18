"""The search step."""

from kfp import dsl

from components.step import step


@step("gpu")
def search(
    dataset: dsl.Input[dsl.Dataset],
    model: str,
    train_settings: dict,
    settings: dict,
    worker: int,
    workspace: str,
) -> int:
    """Run trials until the search has no more, beside other workers; report how many."""
    from pathlib import Path

    from linnet.settings import SearchSettings, TrainSettings
    from linnet.stores.connections import Connections
    from linnet.training.search import Search, run_trials

    about = Search(
        Path(dataset.path),
        TrainSettings.parse(train_settings, "train"),
        SearchSettings.parse(settings, "search"),
        model,
        Path(workspace),
        Connections.from_environment(Path(workspace)),
    )
    return run_trials(about)
