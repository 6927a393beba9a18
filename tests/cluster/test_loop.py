"""Day two on a real cluster, as docs/loop.md tells it: each test is one of its steps, in order.

Helm and a Label Studio (make services) are needed besides the platform and the images. What
happened when goes to build/loop/<model>/record.json, and what was looked at beside it.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
import urllib3
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from linnet.annotation.label_studio import LabelStudio
from linnet.batch.summary import BatchSummary
from linnet.kubeflow import Kubeflow
from linnet.rollout.cluster import Cluster
from linnet.stores.connections import Connections
from linnet.stores.objects import open_store
from linnet.stores.registry import Registry
from linnet.submission import Pipeline, Submitted, follow
from linnet.triggers.ledger import Entry, Ledger
from manifests.install.kubectl import Kubectl
from tests.cluster.apples import TRAIN, Apple, Pickers, apples, request_of
from tests.cluster.conftest import PLATFORM, REPOSITORY, SERVING
from tests.cluster.recurring import is_again, stopped_at_the_end
from tests.cluster.serving_here import GATEWAY, ROOT, SMALL, forwarded, store_connections
from tests.services.annotating import LINNET, Person, backend
from tests.services.label_studio import label_studio_answers
from tests.services.start import read_record

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

T = TypeVar("T")
MODEL = os.environ.get("LINNET_LOOP_MODEL") or f"t{secrets.token_hex(3)}"
LOG = "s3://linnet/log"
PICTURES = f"s3://linnet/pictures/{MODEL}"
ANNOTATED = f"s3://linnet/annotated/{MODEL}"
WATCH = ("-n", PLATFORM, "deployment/linnet-watch")
SEED = secrets.randbits(30)
VALUES = {
    "release": {"model": MODEL, "root": ROOT},
    "runtime": {
        "name": MODEL,
        "args": ["--set=prediction_log.part_s=5"],
        "predictionLog": {"to": LOG, "share": 1, "perSecond": 100},
        "feedback": True,
        "resources": SMALL,
    },
    "monitoring": {"dashboards": False},
}
# What was retrained because of drift is meant to answer otherwise than the champion.
ROLLOUT = {
    "runtime": MODEL,
    "steps": [20, 60, 100],
    "analysis": {
        "hold_s": 10.0,
        "poll_s": 2.0,
        "min_requests": 40,
        "p50_factor": 100.0,
        "p99_factor": 100.0,
        "max_class_shift": 1.0,
        "max_confidence_shift": 1.0,
    },
}
WATCHED = {
    "run": "run.yaml",
    "at_least_s": 0,
    "poll_s": 5,
    "registry": [],
    "on_drift": False,
    "drift": {
        "source": f"{LOG}/predictions/{MODEL}",
        "every_s": 20,
        "settings": {"pictures": 100},
    },
    "cluster": {
        "endpoint": "http://ml-pipeline.kubeflow.svc:8888",
        "pipeline": "train_and_release.yaml",
        "roll_out": "rollout.yaml",
    },
    "metrics_port": 9100,
}


@dataclass
class Loop:
    """One model's day two: the ways in, and what has happened so far."""

    kubectl: Kubectl
    connections: Connections
    kubeflow: Kubeflow
    prometheus: str
    label_studio: dict[str, Any]
    folder: Path
    tag: str
    pipeline: Path
    happened: dict[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"{MODEL}-{SERVING}.example.com"

    @property
    def champion(self) -> str | None:
        return Registry(self.connections).champion(MODEL)

    @property
    def environment(self) -> dict[str, str]:
        """What a person's shell has exported."""
        given = {
            "AWS_ENDPOINT_URL": self.connections.s3_endpoint,
            "AWS_ACCESS_KEY_ID": self.connections.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self.connections.s3_secret_key,
            "AWS_REGION": self.connections.s3_region,
            "MLFLOW_TRACKING_URI": self.connections.tracking_uri,
            "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
            "LINNET_RELEASE_ROOT": ROOT,
            "LINNET_WORKSPACE": str(self.folder / "workspace"),
            "LABEL_STUDIO_URL": self.label_studio["address"],
            "LABEL_STUDIO_API_KEY": self.label_studio["token"],
        }
        return {**os.environ, **{name: str(value) for name, value in given.items()}}

    def linnet(self, *arguments: str, code: int = 0) -> str:
        """Return what a command of ours printed."""
        command = [LINNET, *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == code, (
            f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def upload(self, pictures: list[Apple]) -> None:
        """Put pictures into folders by class."""
        store, prefix = open_store(PICTURES, self.connections)
        with ThreadPoolExecutor(8) as pool:
            for number, apple in enumerate(pictures):
                key = f"{prefix}/{apple.label}/{number:04}.jpg"
                pool.submit(store.write, key, apple.encoded)

    def watch(self, source: dict[str, Any]) -> Path:
        """Have the cluster watch a source, and return the watch's settings."""
        folder = self.folder / "watch"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(REPOSITORY / "manifests/components/triggers", folder / "triggers")
        run = {"model": MODEL, "source": source, "train": TRAIN}
        run["evaluate"] = {"slices": ["added"]} if "more" in source else {}
        files = {"run.yaml": run, "watch.yaml": WATCHED, "rollout.yaml": ROLLOUT}
        for name, values in files.items():
            (folder / name).write_text(yaml.safe_dump(values, sort_keys=False))
        shutil.copy(self.pipeline, folder)
        settings = {"name": "linnet-watch", "namespace": PLATFORM, "behavior": "merge"}
        kustomization = {
            "resources": ["triggers"],
            "images": [{"name": "linnet/cpu", "newTag": self.tag}],
            "configMapGenerator": [{**settings, "files": [*files, self.pipeline.name]}],
            "generatorOptions": {"disableNameSuffixHash": True},
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization, sort_keys=False))
        self.kubectl.run("apply", "-k", str(folder))
        self.kubectl.run("rollout", "restart", *WATCH)
        self.kubectl.run("rollout", "status", *WATCH, "--timeout=240s")
        return folder / "watch.yaml"

    def started(self, number: int) -> Entry:
        """Return the trigger of this number once its run is started."""

        def look() -> Entry | None:
            entries = Ledger(MODEL, self.connections).entries()
            return next((one for one in entries if one.number == number and one.run), None)

        return until(look, 300, f"trigger {number}")

    def ended(self, entry: Entry) -> dict[str, float]:
        """Return the seconds of each step of a run, once it has released."""
        submitted = Submitted(entry.run, entry.words, Pipeline.load(self.pipeline))
        outcome = follow(submitted, self.kubeflow)
        outcome.require_release()
        return outcome.seconds

    def submit(self, pipeline: str, *parameters: str, more: tuple[str, ...] = ()) -> Any:
        """Return what submitting another pipeline for the watched run says, at its end."""
        file = self.pipeline.with_name(f"{pipeline}.yaml")
        given = [part for each in parameters for part in ("-p", each)]
        to = ("-e", self.kubeflow.endpoint, "--pipeline", str(file), "--json")
        return json.loads(
            self.linnet("submit", str(self.folder / "watch/run.yaml"), *to, *given, *more)
        )

    def metric(self, query: str) -> float | None:
        """Return the value of a query to Prometheus that has one."""
        url = f"{self.prometheus}/api/v1/query"
        found = urllib3.request("GET", url, fields={"query": query}).json()["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    def ask(self, pictures: list[Apple]) -> float:
        """Return the share of right answers, asked through the gateway."""
        headers = {"Host": self.host, "Content-Type": "application/json"}
        url, right = f"{GATEWAY}/v2/models/{MODEL}/infer", 0
        with urllib3.PoolManager(retries=False, timeout=30) as pool:
            for apple in pictures:
                answer = pool.request("POST", url, body=request_of(apple), headers=headers)
                assert answer.status == 200, answer.data
                said = {one["name"]: one["data"][0] for one in answer.json()["outputs"]}
                right += said["label"] == apple.label
        return right / len(pictures)

    def serves(self) -> None:
        """Wait until the gateway has the model's route."""
        url, headers = f"{GATEWAY}/v2/models/{MODEL}/ready", {"Host": self.host}
        ready = lambda: urllib3.request("GET", url, headers=headers).status == 200  # noqa: E731
        until(ready, 120, "the model at the gateway")

    def note(self, step: str, **values: Any) -> None:
        """Keep what a step showed."""
        self.happened[step] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **values}
        text = json.dumps(self.happened, indent=1, default=str)
        (self.folder / "record.json").write_text(text)


def until(look: Callable[[], T | None], timeout_s: float, what: str, every_s: float = 2) -> T:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not in {timeout_s:.0f} s"
        time.sleep(every_s)
    return found


@pytest.fixture(scope="module")
def loop(
    kubectl: Kubectl, kubeflow: str, cluster: Cluster, store_url: str, tag: str, pipeline: Path
) -> Iterator[Loop]:
    if shutil.which("helm") is None:
        pytest.skip("needs Helm: https://helm.sh/docs/intro/install")
    label_studio = read_record().get("label_studio", {})
    if not label_studio_answers(label_studio.get("address", "http://127.0.0.1:9")):
        pytest.skip("needs a Label Studio: make services")
    if kubectl.get("deployment", "linnet-watch", PLATFORM):
        pytest.skip(
            "somebody watches on this cluster: kubectl delete -k manifests/components/triggers"
        )
    folder = REPOSITORY / "build" / "loop" / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    with (
        forwarded(f"{PLATFORM}/svc/mlflow", 5000) as mlflow,
        forwarded(f"{PLATFORM}/svc/prometheus", 9090) as prometheus,
    ):
        there = {"tracking_uri": mlflow, "artifact_root": None, "release_root": ROOT}
        connections = replace(store_connections(cluster, store_url, folder), **there)
        made = Loop(
            kubectl,
            connections,
            Kubeflow(kubeflow),
            prometheus,
            label_studio,
            folder,
            tag,
            pipeline,
        )
        try:
            yield made
        finally:
            remove(made)
            with contextlib.suppress(MlflowException):  # there was no release yet
                MlflowClient(mlflow).delete_registered_model(MODEL)


def remove(loop: Loop) -> None:
    """Take away what serves and watches; pictures, log and releases stay in the store."""
    if (loop.folder / "watch").is_dir():
        loop.kubectl.run("delete", "-k", str(loop.folder / "watch"), "--ignore-not-found")
    subprocess.run(["helm", "uninstall", MODEL, "-n", SERVING, "--ignore-not-found"], check=True)
    left = (f"inferenceservice/{MODEL}", f"configmap/linnet-rollout-{MODEL}")
    loop.kubectl.run("delete", "-n", SERVING, *left, "--ignore-not-found")


def test_pictures_in_the_store_make_the_first_release(loop: Loop) -> None:
    loop.upload(apples(120, "daylight", seed=SEED))
    values = loop.folder / "values.yaml"
    values.write_text(yaml.safe_dump({**VALUES, "images": {"tag": loop.tag}}))
    chart = ("helm", "upgrade", "--install", MODEL, str(REPOSITORY / "helm/linnet"))
    subprocess.run([*chart, "-n", SERVING, "-f", str(values)], check=True, capture_output=True)
    loop.watch({"uri": PICTURES})
    first = loop.started(1)
    steps = loop.ended(first)
    assert first.trigger.kind == "dataset"
    assert loop.champion == f"{ROOT}/{MODEL}/v1"
    loop.serves()
    loop.note("first release", trigger=asdict(first), steps_s=steps, images=loop.tag)


def test_drift_is_noticed_and_shown(loop: Loop) -> None:
    drift = f'linnet_drift{{model="{MODEL}"}}'
    alert = f'ALERTS{{alertname="LinnetDrift",alertstate="firing",model="{MODEL}"}}'
    by_day = loop.ask(apples(40, "daylight", seed=SEED + 1))
    until(lambda: loop.metric(f"{drift} == bool 0"), 240, "a look without drift")
    began = time.monotonic()
    by_lamp = loop.ask(apples(80, "lamp", seed=SEED + 2))
    until(lambda: loop.metric(drift), 240, "drift in Prometheus")
    noticed_s = time.monotonic() - began
    until(lambda: loop.metric(alert), 240, "an alert")
    distances = loop.metric(f'max(linnet_drift_distance{{model="{MODEL}"}})')
    page = loop.folder / "drift"
    shutil.rmtree(page, ignore_errors=True)
    look = ("drift", f"{LOG}/predictions/{MODEL}", "-r", f"{MODEL}@champion", "-o", str(page))
    said = json.loads(loop.linnet(*look, "--set", "pictures=100", "--json", code=3))
    assert by_day > 0.9
    assert by_lamp < 0.75
    assert (page / "drift.html").is_file()
    loop.note(
        "drift",
        **{"right by daylight": by_day, "right by the lamp": by_lamp},
        noticed_s=round(noticed_s),
        alert_s=round(time.monotonic() - began),
        distance=distances,
        chance=said["chance"],
        drifted=[shift["name"] for shift in said["shifts"] if shift["drifted"]],
    )


def test_people_label_what_the_served_model_is_unsure_of(loop: Loop) -> None:
    truth = {
        apple.sha256: apple.label
        for light, each, seed in (("daylight", 40, SEED + 1), ("lamp", 80, SEED + 2))
        for apple in apples(each, light, seed=seed)
    }
    of_lamp = {apple.sha256 for apple in apples(80, "lamp", seed=SEED + 2)}
    studio = LabelStudio(loop.label_studio["address"], loop.label_studio["token"])
    anna, ben = Person(studio.address), Person(studio.address)
    by_hand = apples(1, "lamp", seed=SEED + 3)[0]
    truth[by_hand.sha256] = by_hand.label
    through = ("--authority", loop.host, "--model", MODEL)
    with backend(loop.label_studio, GATEWAY, *through) as (address, _):
        setup = ("annotate", "setup", f"{MODEL}@champion", "--votes", "2", "--backend", address)
        loop.linnet(*setup)
        sent = ("annotate", "import", MODEL, LOG, "--model", MODEL, "--limit", "150", "--json")
        imported = json.loads(loop.linnet(*sent))
        project = studio.get(MODEL).id
        file = {f"{by_hand.sha256}.jpg": by_hand.encoded}
        data = {"sha256": by_hand.sha256}
        studio.add_pictures(project, file, lambda name, url: {"data": {"picture": url, **data}})
        last = max(task["id"] for task in studio.tasks(project))
        asked = {"selectedItems": {"all": False, "included": [last]}}
        ask = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
        anna.send("POST", ask, asked)
    tasks = sorted(studio.tasks(project), key=lambda task: task["id"])
    assert all(task["predictions"] for task in tasks)
    (said,) = anna.send("GET", f"/api/tasks/{last}")["predictions"]
    assert said["model_version"] == f"{MODEL}/v1"
    labels = [(task["id"], truth[task["data"]["sha256"]]) for task in tasks]
    (disputed, label), *agreed = labels
    other = "ripe" if label == "rotten" else "rotten"
    with ThreadPoolExecutor(2) as both:
        said_by = ((anna, labels), (ben, [(disputed, other), *agreed]))
        list(both.map(lambda one: [one[0].choose(*each) for each in one[1]], said_by))
    export = ("annotate", "export", MODEL, ANNOTATED, "--least-votes", "2", "--json")
    exported = json.loads(loop.linnet(*export))
    assert exported["quarantined"] == {"tied_votes": 1}
    assert exported["pictures"] == len(tasks) - 1
    corrected = sum(
        task["data"].get("answer") not in (None, truth[task["data"]["sha256"]]) for task in tasks
    )
    loop.note(
        "annotation",
        imported=imported,
        by_lamp=sum(task["data"]["sha256"] in of_lamp for task in tasks),
        pre_labelled_by=said["model_version"],
        corrected=corrected,
        exported=exported,
    )


def test_annotations_start_one_run_and_the_new_release_is_promoted_and_better(loop: Loop) -> None:
    by_day, by_lamp = apples(20, "daylight", seed=SEED + 4), apples(40, "lamp", seed=SEED + 5)
    before = loop.ask(by_day), loop.ask(by_lamp)
    table = {"path": "annotations.csv", "vote_columns": ["vote *"]}
    source = {"uri": PICTURES, "more": {"annotated": {"uri": ANNOTATED, "csv": table}}}
    began = time.monotonic()
    with Pickers(GATEWAY, loop.host, MODEL, [*by_day, *by_lamp]) as pickers:
        pickers.until(20)
        settings = loop.watch(source)
        second = loop.started(2)
        again = ("trigger", str(settings), "--kind", "dataset", "--settle", "1", "--json")
        outcomes = [json.loads(loop.linnet(*again))["outcome"] for _ in range(2)]
        steps = loop.ended(second)
        pickers.until(50)
    after = loop.ask(by_day), loop.ask(by_lamp)
    rollout = json.loads(loop.linnet("rollout", "status", MODEL, "-n", SERVING, "--json"))
    loop.note(
        "second release",
        trigger=asdict(second),
        again=outcomes,
        steps_s=steps,
        took_s=round(time.monotonic() - began),
        rollout=rollout,
        requests=pickers.words(),
        live_accuracy=pickers.accuracy(),
        **{"before: daylight, lamp": before, "after: daylight, lamp": after},
        drift_of_new=loop.metric(f'linnet_drift{{model="{MODEL}",release="v2"}}'),
    )
    assert outcomes == ["duplicate", "duplicate"]
    assert len(Ledger(MODEL, loop.connections).entries()) == 2
    assert loop.champion == f"{ROOT}/{MODEL}/v2"
    assert pickers.lost == []
    assert set(pickers.answered) == {f"{MODEL}/v1", f"{MODEL}/v2"}
    assert after[0] > 0.9
    assert after[1] > before[1] + 0.15


def test_pods_share_out_the_pictures_of_a_batch(loop: Loop) -> None:
    answers = f"s3://linnet/answers/{MODEL}"
    asked = (f"release={MODEL}@champion", f"output={answers}", 'shards=["1/2", "2/2"]')
    loop.submit("batch_predict", *asked)
    summary = BatchSummary.load(answers, loop.connections)
    loop.note("batch", **asdict(summary))
    assert summary.metrics["accuracy"] > 0.9
    store, prefix = open_store(answers, loop.connections)
    parts = [entry.key for entry in store.entries(f"{prefix}/answers")]
    assert {key.rpartition("part-")[2][:6] for key in parts} == {"1-of-2", "2-of-2"}


def test_a_look_for_drift_recurs(loop: Loop, kubeflow: str) -> None:
    def looked() -> str | None:
        releases = Registry(loop.connections).releases(MODEL)
        return next(one.tags.get("drift_looked") for one in releases if "champion" in one.aliases)

    loop.kubectl.run("scale", *WATCH, "--replicas=0")
    before = looked()
    asked = (f"release={MODEL}@champion", f"drift_source={LOG}/predictions/{MODEL}")
    said = loop.submit("watch_drift", *asked, more=("--recurring", "* * * * *"))
    with stopped_at_the_end(kubeflow, said["recurring_run_id"]) as runs:
        until(lambda: is_again(runs()), 600, "a second run", every_s=5)
    assert looked() != before
