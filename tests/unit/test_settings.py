from pathlib import Path

import pytest
from typer.testing import CliRunner

from linnet.cli import app
from linnet.errors import SettingsError
from linnet.settings import RunSettings, TrainSettings
from linnet.settings_table import rows

RUNS = sorted((Path(__file__).parents[2] / "pipelines/settings").glob("*.yaml"))


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.stem)
def test_every_run_that_comes_with_linnet_is_valid(run: Path) -> None:
    assert RunSettings.load(run).model


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trian": {}}, "trian: no such setting; did you mean 'train'?"),
        ({"train": {"whole": {"epoch": 3}}}, "train.whole.epoch: no such setting; did you mean"),
        ({"ingest": {"zzz": 1}}, "known: min_side_px, max_pixels"),
        ({"train": {"size_px": 4}}, "greater than or equal to 8 (got 4)"),
        ({"train": {"precision": "8"}}, "'auto', '32', 'bf16' or '16' (got '8')"),
        ({"train": {"head": "skip", "whole": "skip"}}, "leave at least one stage"),
        ({"train": {"weights": "none", "whole": "skip"}}, "train on random features"),
        ({"train": {"monitor": "val_accuracy"}}, "must be among keep"),
        ({"ingest": {"val_fraction": 0.5, "test_fraction": 0.5}}, "leave something to train on"),
        ({"model": "My Model"}, "(got 'My Model')"),
        ({"gate": {"minimum": {"acuracy": 0.9}}}, "'accuracy'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(values: dict, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RunSettings.parse(values)
    assert words in str(caught.value)


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        RunSettings.parse({"trian": {}, "train": {"size_px": 4, "batch_sze": 2}})
    assert len(str(caught.value).splitlines()) == 4


def test_a_section_survives_the_way_through_a_pipeline_parameter() -> None:
    settings = TrainSettings.parse({"head": "skip", "whole": {"epochs": 3, "patience": 2}})
    travelled = RunSettings(train=settings).section("train")
    assert travelled["head"] == "skip"
    as_floats = {**travelled}
    as_floats["batch_size"] = float(as_floats["batch_size"])
    assert TrainSettings.parse(as_floats) == settings


def test_a_section_holds_no_null_anywhere() -> None:
    def nulls(value: object) -> bool:
        if isinstance(value, dict):
            return any(nulls(below) for below in value.values())
        return value is None

    settings = RunSettings()
    assert not any(nulls(settings.section(name)) for name in ("source", "ingest", "train"))


def test_an_override_reaches_a_nested_setting(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {size_px: 64}\n")
    settings = RunSettings.load(file, ("train.whole.epochs=3", "gate.minimum={accuracy: 0.5}"))
    assert settings.train.size_px == 64
    assert settings.train.whole is not None
    assert settings.train.whole.epochs == 3
    assert settings.gate.minimum == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.size_px", "not of the form section.key=value"),
        ("model.name=3", "model is a value, not a section"),
        ("train.size_px=[", "is not a YAML value"),
        ("train.sise_px=3", "did you mean 'size_px'"),
    ],
)
def test_a_wrong_override_is_explained(tmp_path: Path, override: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: digits\n")
    with pytest.raises(SettingsError, match=words.replace("'", ".")):
        RunSettings.load(file, (override,))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"- a\n", "holds list"), (b"a: [\n", "not valid YAML"), (b"\xff\xfe", "not valid YAML")],
)
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        RunSettings.load(file)


def test_an_absent_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml can't be read"):
        RunSettings.load(tmp_path / "absent.yaml")


def test_every_setting_has_a_meaning() -> None:
    every = rows()
    assert len(every) > 60
    assert [row.name for row in every if not row.meaning] == []


def test_the_table_has_every_name_whole_in_a_narrow_terminal() -> None:
    words = CliRunner().invoke(app, ["settings"], env={"COLUMNS": "80"}).output.split()
    assert [row.name for row in rows() if row.name not in words] == []
