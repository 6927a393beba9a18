"""The choose step."""

from kfp import dsl

from components.step import step


@step("gpu")
def choose(
    dataset: dsl.Input[dsl.Dataset],
    model: str,
    train_settings: dict,
    settings: dict,
    trials: list,
    workspace: str,
    found: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> dict:
    """Report a search that its workers have ended: the best trial's train settings."""
    import shutil
    from pathlib import Path

    from linnet.settings import SearchSettings, TrainSettings
    from linnet.stores.connections import Connections
    from linnet.training.search import Search
    from linnet.training.search_report import conclude

    about = Search(
        Path(dataset.path),
        TrainSettings.parse(train_settings, "train"),
        SearchSettings.parse(settings, "search"),
        model,
        Path(workspace),
        Connections.from_environment(Path(workspace)),
    )
    report = conclude(about, Path(found.path))
    shutil.copy(Path(found.path, "search.html"), page.path)
    return report.settings
