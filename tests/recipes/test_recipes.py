"""The five recipes: their files, the plan of recorded runs, and the page made of the records."""

import csv
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

from linnet.data.ingest import ingest
from linnet.errors import SettingsError
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.gate import gate
from linnet.evaluation.metrics import Scorer
from linnet.inference.predict import Predictions
from linnet.launch import RunResult
from linnet.release.export import export
from linnet.settings import RunSettings, TrainSettings
from linnet.training import fit
from linnet.training.search import Search, run_trials
from linnet.training.search_report import conclude
from recipes.page import DOCS, drawn, interval, render
from recipes.plan import FOLDER, overrides, read_plan, settings_of
from recipes.record import (
    RESULTS,
    Record,
    at_thresholds,
    best_of_studies,
    interval_of_f1,
    read_records,
    record,
)
from recipes.trying import Trial, held_back, in_short, tried, write
from tests.shades import write_shades

FILES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("best/*.yaml")])
PLACES = {"data": "/pictures", "weights": "/weights/network.safetensors"}
SMALL = {
    "train.network": "test_resnet",
    "train.weights": "none",
    "train.size_px": 32,
    "train.positive": "dark",
    "export.parity_pictures": 8,
    "evaluate.bootstrap_samples": 100,
    "source.classes": ["bright", "dark"],
}
SHAPES = {
    "histology": {
        "train.head.epochs": 1,
        "train.whole": {"epochs": 1, "layer_decay": 0.75},
        "evaluate.decision": {"aim": "balanced_accuracy", "positive": "dark", "fewest_pictures": 1},
    },
    "pneumonia": {"train.whole.epochs": 1, "search.trials": 2, "search.space.batch_size": [16, 32]},
    "scenes": {
        "train.whole.epochs": 1,
        "search.trials": 2,
        "search.space.network": ["test_resnet"],
        "gate.minimum": {"accuracy": 0.1},
    },
    "food": {"train.whole.epochs": 1, "train.weights": "none"},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright pictures, as folders and listed as MHIST lists its own."""
    root = tmp_path_factory.mktemp("pictures")
    write_shades(root / "images", each=24)
    with (root / "annotations.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        votes = "Number of Annotators who Selected SSA (Out of 7)"
        rows.writerow(["Image Name", "Majority Vote Label", votes, "Partition"])
        for number, path in enumerate(sorted((root / "images").glob("*/*.png"))):
            name = f"{path.parent.name}/{path.name}"
            partition = "test" if number % 4 == 0 else "train"
            rows.writerow([name, path.parent.name, number % 8, partition])
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.mark.parametrize("file", [f for f in FILES if f.stem != "runs"], ids=lambda f: f.stem)
def test_every_recipe_is_valid(file: Path) -> None:
    assert RunSettings.load(file).model


def test_every_planned_run_has_valid_settings_and_a_place_on_the_page() -> None:
    plan = read_plan()
    first = {name: run for run, name in ((r, s.study) for r, s in plan.runs.items()) if name}
    for name, run in plan.runs.items():
        assert settings_of(run, plan.changes(name, first), PLACES).train.network, name
    page = render(plan, {})
    assert page.count("**not run here**") > len(plan.answers)


@pytest.mark.parametrize("recipe", sorted(SHAPES))
def test_a_recipe_runs_from_pictures_to_the_gate(
    recipe: str, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    source = pictures if recipe == "histology" else pictures / "images"
    given = {"source.uri": str(source), "train.weights": str(weights)}
    changes = {**SMALL, **given, **SHAPES[recipe]}
    settings = RunSettings.load(FOLDER / f"{recipe}.yaml", tuple(overrides(changes)))
    assert _in_this_process(settings, tmp_path).decision in ("release", "refuse")


def test_a_run_is_recorded_and_shown_on_the_page(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    plan = read_plan()
    more = {
        **SMALL,
        **{"source": {"uri": str(pictures / "images")}, "train.head.epochs": 2},
        "train.weights": str(weights),
    }
    made = record(
        plan,
        "pets-batch-32",
        PLACES,
        tmp_path,
        results=tmp_path / "made",
        more=overrides(more),
        runner=_in_this_process,
    )
    records = read_records(tmp_path / "made")
    assert records["pets-batch-32"] == made
    assert made.settings["weights"] == weights.name
    assert str(tmp_path) not in made.command
    assert interval(made.metrics["accuracy"]) in render(plan, records)


def test_settings_are_tried_on_pictures_that_are_not_learnt_from_nor_of_test(
    pictures: Path, tmp_path: Path
) -> None:
    changes = {**SMALL, "source": {"uri": str(pictures / "images")}, "train.head": "skip"}
    changes["train.whole.epochs"] = 1
    settings = RunSettings.load(None, tuple(overrides(changes)))
    hits, losses = held_back(settings, 1, tmp_path / "workspace")
    learnt_from_or_held_back = 48 - round(48 * settings.ingest.test_fraction)
    assert len(hits) == len(losses) == pytest.approx(0.25 * learnt_from_or_held_back, abs=2)
    line = Trial("shades", in_short(settings), 1, len(hits), 0.5, 0.7)
    assert line.settings.startswith("32 px, whole 1 epochs")
    for _ in range(2):
        write(line, tmp_path / "tried.csv")
    assert list(tried(tmp_path / "tried.csv")) == [line, line]


def test_a_trial_is_told_by_what_differs_between_trials() -> None:
    whole = {"epochs": 4, "lr": 0.1, "frozen": ["stem", "layer1"], "mixup": 0.2}
    changes = {"train.size_px": 96, "train.head": "skip", "train.whole": whole}
    changes |= {"train.average_weights": 0.9, "export.flip": "horizontal"}
    assert in_short(RunSettings.load(None, tuple(overrides(changes)))) == (
        "96 px, whole 4 epochs at 0.1, frozen up to layer1, none augmentation, mixup 0.2, "
        "averaged 0.9, answers to mirror images too"
    )


def test_the_page_is_what_the_records_make() -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert page == render(read_plan(), read_records()), "make docs/recipes.md"


def test_plots_of_searches_name_groups_of_settings_by_what_sets_them_apart() -> None:
    plots = drawn(read_plan(), read_records())
    shown = plots["scenes-search-parallel-coordinates"]
    assert "<!-- spnasnet_100 -->" in shown
    assert '{"' not in shown


def test_every_record_is_of_a_planned_run() -> None:
    assert {file.stem for file in RESULTS.glob("*.json")} <= set(read_plan().runs)


def test_runs_are_chosen_by_name_recipe_or_study() -> None:
    plan = read_plan()
    assert plan.named(["pets-batch"]) == ["pets-batch-32", "pets-batch-64", "pets-batch-128"]
    assert set(plan.named([])) == set(plan.runs)
    with pytest.raises(SettingsError, match="'pet' is no run, recipe or study"):
        plan.named(["pet"])


def test_a_study_goes_on_from_the_best_run_by_validation_of_the_one_before() -> None:
    plan = read_plan()
    with pytest.raises(SettingsError, match="run that one first"):
        plan.changes("pets-seed-1234", best_of_studies(plan, {}))
    reached = {"pets-batch-32": 0.5, "pets-batch-64": 0.7, "pets-batch-128": 0.6}
    best = best_of_studies(plan, {name: _record(name, value) for name, value in reached.items()})
    assert best == {"pets-batch": "pets-batch-64"}
    changes = plan.changes("pets-seed-1234", best)
    assert (changes["train.batch_size"], changes["train.seed"]) == (64, 1234)


def test_the_area_below_thresholded_answers_is_their_balanced_accuracy() -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 2, 200)
    scores = np.clip(0.2 * labels + chance.uniform(0, 0.7, 200), 0, 1)
    probabilities = np.stack([1 - scores, scores], axis=1)
    keys = [str(number) for number in range(200)]
    rows = at_thresholds(Predictions(keys, labels, probabilities), 1)
    for row in rows:
        assert row["threshold"] is not None
        answers = (scores >= row["threshold"]).astype(np.int64)
        measured = Scorer(labels, probabilities, bins=2, predicted=answers).measure()
        expected = float(measured["balanced_accuracy"][0])
        assert row["answers_auc"] == pytest.approx(expected, abs=1e-4)


def test_the_interval_of_an_f1_lies_around_it_and_narrows_with_pictures() -> None:
    few = interval_of_f1(hits=40, answered=50, support=50, pictures=100)
    many = interval_of_f1(hits=4000, answered=5000, support=5000, pictures=10_000)
    assert few[0] < many[0] < 0.8 < many[1] < few[1]


def _in_this_process(settings: RunSettings, workspace: Path) -> RunResult:
    """Do the steps of `linnet run` up to the gate, laid out alike, without a process for each."""
    folder = workspace / "runs"
    dataset, checkpoint = folder / "ingest/dataset", folder / "train/checkpoint"
    graph, report, gated = (
        folder / "export/graph",
        folder / "evaluate/report",
        folder / "gate/gated",
    )
    ingest(settings.source, dataset, settings.ingest)
    train = settings.train
    if settings.search.space:
        about = Search(dataset, train, settings.search, settings.model, workspace)
        run_trials(about)
        train = TrainSettings.parse(conclude(about, folder / "choose/found").settings)
    fit(dataset, checkpoint, train, workspace=workspace)
    export(checkpoint, dataset, graph, settings.export)
    evaluate(graph, dataset, report, settings.evaluate, model=settings.model)
    decided = gate(graph, dataset, report, gated, settings.gate, champion=None)
    seconds = dict.fromkeys(("ingest", "train", "export", "evaluate", "gate"), 1.0)
    return RunResult(folder, decided.decision, gated, dataset / "card.html", None, seconds)


def _record(name: str, accuracy: float) -> Record:
    nothing: dict[str, float | None] = {"value": None, "low": None, "high": None}
    return Record(
        run=name,
        command="",
        monitor="val_accuracy",
        settings={},
        dataset={},
        validation={"val_accuracy": accuracy},
        epochs=[],
        metrics={"accuracy": nothing},
        decision="",
        positive=None,
        fitted=None,
        thresholds=[],
        search=None,
        seconds={},
        busy=0.0,
        revision="",
        date="",
    )
