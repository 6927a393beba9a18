"""The batch pipeline on this machine: shards in processes of their own, summed up at the end."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from kfp import dsl, local

from components.batch.component import batch
from components.summarise.component import summarise
from linnet.errors import BatchError
from pipelines.batch_predict import batch_predict
from tests.pictures import class_folders, jpeg
from tests.serving.tiny_release import CLASSES, write_release

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("batch")
    release = write_release(folder, {"one.jpg": jpeg(1)})
    pictures = class_folders(folder / "in", {"daisy": 8, "tulip": 9})
    return SimpleNamespace(folder=folder, release=str(release), source={"uri": str(pictures)})


def test_the_adapters_answer_and_show_what_came_of_it(given: SimpleNamespace) -> None:
    output, workspace = str(given.folder / "out"), str(given.folder / "workspace")
    for shard in ("1/2", "2/2"):
        said = batch.python_func(
            given.source, given.release, output, shard, {"part_pictures": 4.0}, workspace
        )
    metrics = dsl.Metrics(uri=str(given.folder / "metrics"))
    classification = dsl.ClassificationMetrics(uri=str(given.folder / "classification"))
    assert summarise.python_func([said], output, workspace, metrics, classification) == said
    assert said.startswith("flowers/v1 answered 17 of 17 pictures; ")
    assert metrics.metadata["labelled"] == 17
    assert 0 <= metrics.metadata["accuracy"] <= 1
    matrix = classification.metadata["confusionMatrix"]
    assert [spec["displayName"] for spec in matrix["annotationSpecs"]] == list(CLASSES)


def test_a_batch_with_a_shard_to_come_is_not_summed_up(given: SimpleNamespace) -> None:
    output, workspace = str(given.folder / "half"), str(given.folder / "workspace")
    batch.python_func(given.source, given.release, output, "1/2", {}, workspace)
    metrics = dsl.Metrics(uri=str(given.folder / "no"))
    with pytest.raises(BatchError, match=r"a shard has not ended, run `linnet batch` for each"):
        summarise.python_func([], output, workspace, metrics, None)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_the_pipeline_answers_every_picture_once(given: SimpleNamespace) -> None:
    output = given.folder / "piped"
    local.init(
        runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(given.folder / "runs")
    )
    batch_predict(
        release=given.release,
        output=str(output),
        source=given.source,
        shards=["1/3", "2/3", "3/3"],
        workspace=str(given.folder / "workspace"),
    )
    keys = [
        key
        for path in output.glob("answers/*.parquet")
        for key in pd.read_parquet(path, columns=["key"]).key
    ]
    assert len(keys) == len(set(keys)) == 17
    assert (output / "batch.json").is_file()


@pytest.mark.parametrize("step", ["batch", "summarise"])
def test_a_batch_adapter_is_short_and_decides_nothing(step: str) -> None:
    tree = ast.parse((ROOT / "components" / step / "component.py").read_text())
    adapter = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert not [node for node in ast.walk(adapter) if isinstance(node, ast.If | ast.IfExp)]
    assert adapter.end_lineno is not None
    assert adapter.end_lineno - adapter.lineno < 30
