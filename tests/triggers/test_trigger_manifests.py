"""What a cluster is given for triggers: valid, restricted, and commands that this Linnet has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from linnet.cli import app
from linnet.settings import RunSettings
from linnet.triggers.settings import WatchSettings
from tests.manifests.schemas import Manifest, pods, problems, read, unrestricted

COMPONENTS = Path(__file__).parents[2] / "manifests" / "components"
WATCH = COMPONENTS / "triggers"


def _jobs() -> Iterator[tuple[str, Manifest, list[Manifest]]]:
    """Yield what the sensor makes of each event: its name, the Job, and what changes in it."""
    (sensor,) = (m for m in read(COMPONENTS / "argo-events/sensor.yaml") if m["kind"] == "Sensor")
    for trigger in sensor["spec"]["triggers"]:
        made = trigger["template"]["k8s"]
        yield trigger["template"]["name"], made["source"]["resource"], made.get("parameters", [])


def _all() -> list[Manifest]:
    files = ("watch.yaml", "network.yaml")
    ours = [manifest for file in files for manifest in read(WATCH / file)]
    return [*ours, *(job for _, job, _ in _jobs())]


@pytest.mark.parametrize("manifest", _all(), ids=lambda one: str(one["kind"]))
def test_every_object_is_what_kubernetes_knows_and_restricted(manifest: Manifest) -> None:
    named = {**manifest, "metadata": {"name": "x", **manifest["metadata"]}}
    assert problems(named) == []
    assert [problem for pod in pods(named) for problem in unrestricted(pod)] == []


def test_the_settings_of_the_watch_can_be_used() -> None:
    watch = WatchSettings.load(WATCH / "settings" / "watch.yaml")
    run = RunSettings.load(WATCH / "settings" / watch.run)
    assert run.source.uri.startswith("s3://")
    (deployment,) = (m for m in read(WATCH / "watch.yaml") if m["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(watch.metrics_port)
    assert template["spec"]["containers"][0]["command"][1:3] == ["watch", "/settings/watch.yaml"]


def test_each_event_makes_a_command_that_there_is() -> None:
    commands = {}
    for name, job, changes in _jobs():
        container = job["spec"]["template"]["spec"]["containers"][0]
        arguments = list(container["args"])
        for change in changes:
            place = int(change["dest"].rpartition(".")[2])
            arguments[place] = change["src"].get("value", "retrain:7")
        commands[name] = [*container["command"][1:], *arguments]
    assert commands["registry"][-6:] == [
        *("--kind", "registry", "--by", "argo-events", "--key", "retrain:7")
    ]
    for command in commands.values():
        shown = CliRunner().invoke(app, command)
        # Usage is right; only the settings are not on this machine.
        assert "/settings/watch.yaml can't be read" in str(shown.exception)
