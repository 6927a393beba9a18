"""The pipeline compiles to what a cluster and `linnet run` expect."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compile_all

ROOT = Path(__file__).parents[2]
STEPS = ["ingest", "train", "export", "evaluate", "gate", "release", "rollout", "conclude"]
DECIDING = ["gate", "release", "rollout", "conclude"]


class Compiled:
    """A compiled pipeline: what every runner heeds, and what a cluster does beyond that."""

    def __init__(self, file: Path) -> None:
        self.text = file.read_text()
        self.ir, platform = yaml.safe_load_all(self.text)
        self.platform = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    def executor(self, step: str) -> dict[str, Any]:
        return dict(self.ir["deploymentSpec"]["executors"][f"exec-{step}"]["container"])

    def kubernetes(self, step: str) -> dict[str, Any]:
        return dict(self.platform[f"exec-{step}"])

    def tasks(self) -> dict[str, Any]:
        found = dict(self.ir["root"]["dag"]["tasks"])
        for component in self.ir["components"].values():
            found |= component.get("dag", {}).get("tasks", {})
        return found


def compiled_with(
    folder: Path, pipeline: str = "train_and_release", **environment: str
) -> Compiled:
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.compile", str(folder)]
    environment = {**os.environ, **environment}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return Compiled(folder / f"{pipeline}.yaml")


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("kind")
    compile_all(folder)
    return Compiled(folder / "train_and_release.yaml")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiled for a cluster with GPUs, at a revision and for a registry."""
    return compiled_with(
        tmp_path_factory.mktemp("gpu"),
        LINNET_OVERLAY="gpu-cluster",
        LINNET_IMAGE_PREFIX="registry.example/team",
        LINNET_IMAGE_TAG="0123456789ab",
    )


def test_a_search_is_shared_by_workers_before_training(tmp_path: Path) -> None:
    compile_all(tmp_path)
    searching = Compiled(tmp_path / "search_and_release.yaml")
    tasks = searching.tasks()
    loop = next(task for name, task in tasks.items() if name.startswith("for-loop"))
    assert loop["parameterIterator"]["items"]["inputParameter"].endswith("search_workers")
    # Kubeflow hands a worker's number on as text unless the loop says what it is.
    looped = searching.ir["components"][loop["componentRef"]["name"]]["inputDefinitions"]
    item = looped["parameters"][loop["parameterIterator"]["itemInput"]]
    assert item["parameterType"] == "NUMBER_INTEGER"
    assert "choose" in tasks["train"]["dependentTasks"]
    assert not any(tasks[name].get("cachingOptions", {}) for name in ("search", "choose"))
    for step in ("search", "choose"):
        secrets = searching.kubernetes(step)["secretAsEnv"]
        assert "linnet-search" in [
            secret["secretNameParameter"]["runtimeValue"]["constant"] for secret in secrets
        ]


def test_the_shipped_pipeline_is_fresh(tmp_path: Path) -> None:
    for file in compile_all(tmp_path):
        shipped = ROOT / "src/linnet/packaged" / file.name
        assert file.read_text() == shipped.read_text(), "run `make package` and commit"


def conditions(compiled: Compiled) -> Iterator[str]:
    for task in compiled.tasks().values():
        if "condition" in task.get("triggerPolicy", {}):
            yield task["triggerPolicy"]["condition"]


def test_release_waits_for_the_gate_and_rollout_for_being_asked_for(kind: Compiled) -> None:
    assert set(STEPS) < set(kind.tasks())
    places = {
        task: name
        for name, component in kind.ir["components"].items()
        for task in component.get("dag", {}).get("tasks", {})
    }
    assert "condition" in places["release"]
    assert "condition" in places["rollout"]
    assert places["rollout"] != places["release"]
    passed, asked = sorted(conditions(kind))[::-1]
    assert "gate-Output" in passed
    assert passed.endswith("== 'release'")
    assert "after_release" in asked
    assert kind.ir["root"]["inputDefinitions"]["parameters"]["after_release"]["defaultValue"] == (
        "stop"
    )


def test_the_last_step_runs_however_the_others_ended(kind: Compiled) -> None:
    root = kind.ir["root"]["dag"]["tasks"]
    assert set(root) == {"conclude", "exit-handler-1"}
    assert root["conclude"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    status = root["conclude"]["inputs"]["parameters"]["status"]
    assert status == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_what_depends_on_the_registry_is_never_taken_from_the_cache(kind: Compiled) -> None:
    tasks = kind.tasks()
    cached = {
        name for name in STEPS if tasks[name].get("cachingOptions", {}).get("enableCache", False)
    }
    assert set(STEPS) - cached == set(DECIDING)


@pytest.mark.parametrize("step", ["ingest", "train", "export", "evaluate"])
def test_a_changed_setting_breaks_the_cache_of_its_step(kind: Compiled, step: str) -> None:
    settings = kind.tasks()[step]["inputs"]["parameters"]["settings"]
    assert settings["componentInputParameter"].removeprefix("pipelinechannel--") == (
        f"{step}_settings"
    )
    assert "env" not in kind.executor(step), "the cache's key has no environment in it"


def test_a_changed_revision_breaks_the_cache_of_every_step(
    gpu: Compiled, tmp_path: Path, kind: Compiled
) -> None:
    later = compiled_with(
        tmp_path,
        LINNET_OVERLAY="gpu-cluster",
        LINNET_IMAGE_PREFIX="registry.example/team",
        LINNET_IMAGE_TAG="ba9876543210",
    )
    for step in STEPS:
        assert gpu.executor(step)["image"] != later.executor(step)["image"]
        assert gpu.executor(step)["command"] == later.executor(step)["command"]
    assert later.text.replace("ba9876543210", "0123456789ab") == gpu.text


def test_images_carry_the_prefix_and_revision_of_the_compilation(gpu: Compiled) -> None:
    images = {step: gpu.executor(step)["image"] for step in STEPS}
    assert {step for step in STEPS if "/gpu:" in images[step]} == {"train", "export"}
    assert {image.rpartition(":")[2] for image in images.values()} == {"0123456789ab"}
    assert all(image.startswith("registry.example/team/") for image in images.values())


def test_nothing_is_installed_when_a_step_starts(kind: Compiled) -> None:
    assert not [step for step in STEPS if "pip install" in str(kind.executor(step)["command"])]


@pytest.mark.parametrize("step", STEPS)
def test_credentials_come_from_the_secret_and_addresses_from_the_config_map(
    kind: Compiled, gpu: Compiled, step: str
) -> None:
    for compiled in (kind, gpu):
        told = compiled.kubernetes(step)
        *signing, secret = told["secretAsEnv"]
        assert [one["secretName"] for one in signing] == ["linnet-signing"] * (step == "release")
        assert all(one["optional"] for one in signing)
        needed, of_s3 = told["configMapAsEnv"]
        assert secret["secretName"] == "linnet-s3"
        assert {pair["envVar"] for pair in secret["keyToEnv"]} == {
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        }
        assert {needed["configMapName"], of_s3["configMapName"]} == {"linnet-connections"}
        # Kubeflow's MLflow plugin sets MLFLOW_TRACKING_URI: a pod with both would be refused.
        assert {pair["envVar"] for pair in needed["keyToEnv"]} == {
            "LINNET_TRACKING_URI",
            "LINNET_RELEASE_ROOT",
        }
        assert (needed["optional"], of_s3["optional"], secret["optional"]) == (False, True, True)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_not_root_and_its_image_is_pulled_once(kind: Compiled, step: str) -> None:
    told = kind.kubernetes(step)
    assert told["securityContext"] == {"runAsNonRoot": True}
    assert told["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize("step", STEPS)
def test_what_is_limited_is_requested_too(kind: Compiled, gpu: Compiled, step: str) -> None:
    for compiled in (kind, gpu):
        resources = compiled.executor(step)["resources"]
        assert {"resourceCpuRequest", "resourceMemoryRequest"} <= set(resources)
        limited = {"resourceCpuLimit", "resourceMemoryLimit"} & set(resources)
        assert bool(limited) == (compiled is gpu and step == "train")


def test_training_goes_on_in_another_pod_where_the_first_was_lost(kind: Compiled) -> None:
    retry = kind.tasks()["train"]["retryPolicy"]
    assert retry["maxRetryCount"] == 3
    (volume,) = kind.kubernetes("train")["pvcMount"]
    assert volume["constant"] == "linnet-workspace"
    workspace = kind.ir["root"]["inputDefinitions"]["parameters"]["workspace"]["defaultValue"]
    assert volume["mountPath"] == workspace


def test_on_kind_nothing_asks_for_a_gpu(kind: Compiled) -> None:
    for step in STEPS:
        assert "accelerator" not in kind.executor(step)["resources"]
        assert not {"nodeSelector", "tolerations", "emptyDirMounts"} & set(kind.kubernetes(step))
    assert "nvidia" not in kind.text


def test_on_a_gpu_cluster_training_alone_has_one_gpu_on_a_gpu_node(gpu: Compiled) -> None:
    accelerators = {s: gpu.executor(s)["resources"].get("accelerator") for s in STEPS}
    asking = {step: found for step, found in accelerators.items() if found}
    assert list(asking) == ["train"]
    assert asking["train"]["resourceType"] == "nvidia.com/gpu"
    assert asking["train"]["resourceCount"] == "1"
    told = gpu.kubernetes("train")
    assert told["nodeSelector"]["labels"] == {"nvidia.com/gpu.present": "true"}
    (toleration,) = told["tolerations"]
    assert (toleration["key"], toleration["operator"], toleration["effect"]) == (
        "nvidia.com/gpu",
        "Exists",
        "NoSchedule",
    )
    (shared_memory,) = told["emptyDirMounts"]
    assert (shared_memory["mountPath"], shared_memory["medium"]) == ("/dev/shm", "Memory")
    assert told["pvcMount"][0]["constant"] == "linnet-workspace"
    assert gpu.tasks()["train"]["retryPolicy"]["maxRetryCount"] == 3


def test_on_a_gpu_cluster_a_search_has_what_training_has(tmp_path: Path) -> None:
    compiled = compiled_with(tmp_path, "search_and_release", LINNET_OVERLAY="gpu-cluster")
    for step in ("search", "train"):
        accelerator = compiled.executor(step)["resources"]["accelerator"]
        assert (accelerator["resourceType"], accelerator["resourceCount"]) == (
            "nvidia.com/gpu",
            "1",
        )
        told = compiled.kubernetes(step)
        assert told["pvcMount"][0]["constant"] == "linnet-workspace"
        assert told["nodeSelector"]
        assert told["tolerations"]
        assert told["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        assert compiled.tasks()[step]["retryPolicy"]["maxRetryCount"] == 3


def test_an_overlay_that_is_not_known_is_refused() -> None:
    command = [sys.executable, "-c", "import pipelines.placement"]
    environment = {**os.environ, "LINNET_OVERLAY": "moon"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "LINNET_OVERLAY is 'moon': expected one of kind, gpu-cluster" in done.stderr


@pytest.mark.parametrize("step", STEPS)
def test_an_adapter_is_short_and_decides_nothing(step: str) -> None:
    tree = ast.parse((ROOT / "components" / step / "component.py").read_text())
    adapter = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    imports = (ast.Import, ast.ImportFrom)
    work = [node for node in adapter.body[1:] if not isinstance(node, imports)]
    assert sum(len(ast.unparse(node).splitlines()) for node in work) <= 15
    assert not [node for node in ast.walk(adapter) if isinstance(node, ast.If | ast.IfExp)]


def test_a_pipeline_is_a_table_of_contents() -> None:
    tree = ast.parse((ROOT / "pipelines/train_and_release.py").read_text())
    pipeline = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert pipeline.end_lineno is not None
    assert pipeline.end_lineno - pipeline.lineno < 40
