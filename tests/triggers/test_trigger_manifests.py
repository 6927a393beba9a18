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
    files = ("triggers/watch.yaml", "triggers/network.yaml", "argo-events/network.yaml")
    ours = [manifest for file in files for manifest in read(COMPONENTS / file)]
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
            place = change["dest"].removeprefix("spec.template.spec.containers.0.args.")
            if place.isdigit():
                arguments[int(place)] = change["src"].get("value", "retrain:7")
        commands[name] = [*container["command"][1:], *arguments]
    assert commands["registry"][-6:] == [
        *("--kind", "registry", "--by", "argo-events", "--key", "retrain:7")
    ]
    for command in commands.values():
        shown = CliRunner().invoke(app, command)
        # Usage is right; only the settings are not on this machine.
        assert "/settings/watch.yaml can't be read" in str(shown.exception)


def test_events_ask_for_a_job_by_a_name_so_that_many_of_a_minute_make_one() -> None:
    for name, _, changes in _jobs():
        (named,) = (change["src"] for change in changes if change["dest"] == "metadata.name")
        template = named.get("contextTemplate", named.get("dataTemplate"))
        assert template.startswith("linnet-"), name
    rights = [m for m in read(COMPONENTS / "argo-events/sensor.yaml") if m["kind"] == "Role"]
    assert rights[0]["rules"][0]["verbs"] == ["get", "create", "patch"]


def test_what_listens_and_what_serves_are_apart_as_argo_events_wants_it() -> None:
    events = read(COMPONENTS / "argo-events/events.yaml")
    sources = {one["metadata"]["name"]: one["spec"] for one in events[1:]}
    kinds = {name: spec.keys() & {"minio", "webhook"} for name, spec in sources.items()}
    assert kinds == {"linnet-pictures": {"minio"}, "linnet-registry": {"webhook"}}
    for one in read(COMPONENTS / "argo-events/sensor.yaml")[-1]["spec"]["dependencies"]:
        (kind,) = kinds[one["eventSourceName"]]
        assert one["eventName"] in sources[one["eventSourceName"]][kind]


def test_a_job_waits_as_long_as_the_events_that_share_it_come() -> None:
    (job,) = (job for name, job, _ in _jobs() if name == "pictures")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert float(arguments[arguments.index("--settle") + 1]) >= 60


def test_what_argo_events_starts_is_restricted() -> None:
    bus, *sources = read(COMPONENTS / "argo-events/events.yaml")
    sensor = read(COMPONENTS / "argo-events/sensor.yaml")[-1]
    of_bus = bus["spec"]["jetstream"]
    containers = {
        "EventBus": [of_bus[f"{name}ontainerTemplate"] for name in ("c", "reloaderC", "metricsC")],
        **{one["metadata"]["name"]: [one["spec"]["template"]["container"]] for one in sources},
        "Sensor": [sensor["spec"]["template"]["container"]],
    }
    templates = {
        "EventBus": of_bus,
        **{one["metadata"]["name"]: one["spec"]["template"] for one in sources},
        "Sensor": sensor["spec"]["template"],
    }
    for kind, template in templates.items():
        named = [{"name": str(number), **one} for number, one in enumerate(containers[kind])]
        pod = {"securityContext": template["securityContext"], "containers": named}
        assert unrestricted(pod) == [], kind
        assert template["metadata"]["labels"] == {"app.kubernetes.io/name": "linnet-events"}


def test_each_pod_of_ours_may_go_where_it_has_to() -> None:
    policies = [
        one
        for file in ("triggers/network.yaml", "argo-events/network.yaml")
        for one in read(COMPONENTS / file)
    ]
    leaving = [one["spec"]["podSelector"] for one in policies if "egress" in one["spec"]]
    labels = {
        pod["matchLabels"]["app.kubernetes.io/name"] for pod in leaving if "matchLabels" in pod
    }
    labels |= {
        value
        for pod in leaving
        for expression in pod.get("matchExpressions", ())
        for value in expression["values"]
    }
    assert labels >= {"linnet-watch", "linnet-trigger", "linnet-events"}
