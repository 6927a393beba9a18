"""The pipeline compiles to what a cluster and `linnet run` expect."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compile_all

ROOT = Path(__file__).parents[2]
STEPS = ["ingest", "train", "export", "evaluate", "gate", "release"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pipelines")
    compile_all(folder)
    return next(yaml.safe_load_all((folder / "train_and_release.yaml").read_text()))


def tasks(ir: dict[str, Any]) -> dict[str, Any]:
    found = dict(ir["root"]["dag"]["tasks"])
    for component in ir["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return found


def test_the_shipped_pipeline_is_fresh(tmp_path: Path) -> None:
    for file in compile_all(tmp_path):
        shipped = ROOT / "src/linnet/packaged" / file.name
        assert file.read_text() == shipped.read_text(), "run `make package` and commit"


def test_every_step_is_a_task_and_release_waits_for_the_gate(compiled: dict[str, Any]) -> None:
    assert set(STEPS) < set(tasks(compiled))
    assert "release" not in compiled["root"]["dag"]["tasks"]
    condition = compiled["root"]["dag"]["tasks"]["condition-1"]["triggerPolicy"]["condition"]
    assert condition.endswith("== 'release'")


def test_gate_and_release_are_never_taken_from_the_cache(compiled: dict[str, Any]) -> None:
    cached = {
        name: task.get("cachingOptions", {}).get("enableCache", False)
        for name, task in tasks(compiled).items()
    }
    assert [name for name in STEPS if not cached[name]] == ["gate", "release"]


def test_nothing_is_installed_when_a_step_starts(compiled: dict[str, Any]) -> None:
    executors = compiled["deploymentSpec"]["executors"].values()
    assert not [e for e in executors if "pip install" in str(e["container"]["command"])]


def test_images_carry_the_prefix_and_revision_of_the_compilation(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LINNET_IMAGE_PREFIX": "registry.example/team",
        "LINNET_IMAGE_TAG": "0123456789ab",
    }
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.compile", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    ir = next(yaml.safe_load_all((tmp_path / "train_and_release.yaml").read_text()))
    executors = ir["deploymentSpec"]["executors"]
    images = {name.removeprefix("exec-"): e["container"]["image"] for name, e in executors.items()}
    with_torch = {name for name, image in images.items() if "/gpu:" in image}
    assert with_torch == {"train", "export"}
    assert {image.rpartition(":")[2] for image in images.values()} == {"0123456789ab"}
    assert all(image.startswith("registry.example/team/") for image in images.values())


@pytest.mark.parametrize("step", STEPS)
def test_an_adapter_is_short_and_decides_nothing(step: str) -> None:
    tree = ast.parse((ROOT / "components" / step / "component.py").read_text())
    adapter = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    imports = (ast.Import, ast.ImportFrom)
    work = [node for node in adapter.body[1:] if not isinstance(node, imports)]
    assert sum(len(ast.unparse(node).splitlines()) for node in work) <= 15
    assert not [node for node in ast.walk(adapter) if isinstance(node, ast.If | ast.IfExp)]
