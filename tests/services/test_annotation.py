"""The loop on a real Label Studio: import, pre-label, annotate as two people, export, ingest."""

import json
import secrets
import signal
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from linnet.annotation.exporting import export
from linnet.annotation.importing import import_pictures
from linnet.annotation.label_studio import LabelStudio
from linnet.annotation.setup import set_up
from linnet.data.ingest import ingest
from linnet.errors import (
    AnnotationAbsentError,
    AnnotationDeniedError,
    AnnotationError,
    AnnotationUnreachableError,
    SettingsError,
    StoreError,
)
from linnet.settings import IngestSettings, SourceSettings
from linnet.stores.connections import Connections
from linnet.triggers.content import content_of
from tests.pictures import jpeg, write_tree
from tests.services.annotating import Person, backend
from tests.services.conftest import Bucket
from tests.serving.conftest import free_port, launch, wait_until_ready
from tests.serving.tiny_release import write_release

pytestmark = pytest.mark.services

PICTURES = {f"{n:02}.jpg": jpeg(n) for n in range(12)}
VOTES = {"path": "annotations.csv", "vote_columns": ["vote *"]}


@pytest.fixture(scope="module")
def where(label_studio: dict[str, Any]) -> dict[str, Any]:
    return label_studio


@pytest.fixture(scope="module")
def studio(where: dict[str, Any]) -> LabelStudio:
    return LabelStudio(where["address"], where["token"])


@pytest.fixture(scope="module")
def people(where: dict[str, Any]) -> tuple[Person, Person]:
    return Person(where["address"]), Person(where["address"])


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("releases"), {"one.jpg": jpeg(1)})


@pytest.fixture
def title() -> str:
    return f"flowers {secrets.token_hex(4)}"


def test_annotations_of_two_people_become_a_new_version_with_its_conflicts_in_quarantine(
    studio: LabelStudio,
    people: tuple[Person, Person],
    release: Path,
    title: str,
    tmp_path: Path,
) -> None:
    write_tree(tmp_path / "in", PICTURES)
    assert set_up(studio, str(release), title=title, votes=2).made
    assert not set_up(studio, str(release), title=title).made
    more = {"order": "margin", "release": str(release)}
    first = import_pictures(studio, title, str(tmp_path / "in"), limit=9, **more)
    again = import_pictures(studio, title, str(tmp_path / "in"), limit=9, **more)
    assert (first.sent, again.sent, again.known) == (9, 3, 9)
    tasks = sorted(studio.tasks(studio.get(title).id), key=lambda task: task["id"])
    margins = [task["data"]["margin"] for task in tasks]
    assert margins == sorted(margins)

    ann, ben = people
    said = ann.send("GET", f"/api/tasks/{tasks[0]['id']}")["predictions"][0]
    assert said["model_version"] == "flowers/v1"
    assert said["result"][0]["value"]["choices"] == [tasks[0]["data"]["answer"]]
    assert said["score"] == pytest.approx(tasks[0]["data"]["score"])
    with pytest.raises(AnnotationError, match="no annotation that can be used"):
        export(studio, title, str(tmp_path / "out"))
    ids = [int(task["id"]) for task in tasks]
    for number, task in enumerate(ids[:8]):
        for person in people:
            person.choose(task, ("daisy", "temple")[number % 2])
    ann.choose(ids[8], "daisy")
    ben.choose(ids[8], "tulip")
    mistaken = ann.choose(ids[9], "tulip")
    ann.send("DELETE", f"/api/annotations/{mistaken}")
    ann.skip(ids[9])
    exported = export(studio, title, str(tmp_path / "out"))
    assert exported.labels == {"daisy": 4, "temple": 4}
    assert exported.quarantined == {"skipped": 1, "tied_votes": 1}
    assert (exported.waiting, exported.votes, exported.changed) == (2, 18, True)
    assert exported.alpha == pytest.approx(1 - 17 * 2 / (9 * 9 + 8 * 10 + 17), abs=1e-3)
    quarantine = pd.read_csv(tmp_path / "out/quarantine.csv")
    assert list(quarantine.reason) == ["tied_votes", "skipped"]
    assert quarantine.detail[0] == "daisy 1, tulip 1"

    source = SourceSettings.parse({"uri": str(tmp_path / "out"), "csv": VOTES})
    made = ingest(source, tmp_path / "dataset", IngestSettings(workers=1))
    left_out = pd.read_csv(tmp_path / "dataset/quarantine.csv")
    assert list(left_out.reason) == ["tied_votes"]

    connections = Connections.from_environment(tmp_path, {})
    before = content_of(source, connections)
    assert not export(studio, title, str(tmp_path / "out")).changed
    assert content_of(source, connections) == before
    ben.choose(ids[8], "daisy")
    anew = export(studio, title, str(tmp_path / "out"))
    assert anew.changed
    assert anew.version != exported.version
    assert content_of(source, connections).annotations != before.annotations
    later = ingest(source, tmp_path / "later", IngestSettings(workers=1))
    assert later.version != made.version
    assert later.quarantined == {}


def test_annotations_go_to_a_bucket_and_ingest_reads_them_there(
    studio: LabelStudio,
    people: tuple[Person, Person],
    release: Path,
    title: str,
    minio: Bucket,
    tmp_path: Path,
) -> None:
    write_tree(tmp_path / "in", PICTURES)
    set_up(studio, str(release), title=title)
    import_pictures(studio, title, str(tmp_path / "in"), limit=8, release=str(release))
    tasks = sorted(task["id"] for task in studio.tasks(studio.get(title).id))
    said = [people[0].choose(task, ("daisy", "temple")[n % 2]) for n, task in enumerate(tasks)]
    place, connections = f"s3://{minio.name}/annotations/flowers", minio.connections(tmp_path)
    first = export(studio, title, place, connections=connections)
    assert (first.pictures, first.changed) == (8, True)
    assert not export(studio, title, place, connections=connections).changed
    source = SourceSettings.parse({"uri": place, "csv": VOTES})
    before = content_of(source, connections)
    made = ingest(source, tmp_path / "first", IngestSettings(workers=1), connections=connections)
    assert made.pictures == 8

    people[0].send("DELETE", f"/api/annotations/{said[0]}")
    assert export(studio, title, place, connections=connections).pictures == 7
    keys = [entry.key for entry in minio.store().entries("annotations/flowers/pictures")]
    assert len(keys) == 7
    assert content_of(source, connections) != before
    later = ingest(source, tmp_path / "later", IngestSettings(workers=1), connections=connections)
    assert (later.pictures, later.version == made.version) == (7, False)

    minio.store().write("elsewhere/notes.txt", b"mine")
    with pytest.raises(AnnotationError, match="is left alone"):
        export(studio, title, f"s3://{minio.name}/elsewhere", connections=connections)
    with pytest.raises(StoreError, match="absent-bucket"):
        export(studio, title, "s3://absent-bucket/annotations", connections=connections)


def test_label_studio_pre_labels_through_the_served_release(
    where: dict[str, Any],
    studio: LabelStudio,
    people: tuple[Person, Person],
    release: Path,
    title: str,
    tmp_path: Path,
) -> None:
    server = launch(tmp_path, release)
    try:
        wait_until_ready(server)
        with backend(where, server.url) as (address, process):
            set_up(studio, str(release), title=title, backend=address)
            set_up(studio, str(release), title=title, backend=address)
            project = studio.get(title).id
            ann = people[0]
            (connected,) = ann.send("GET", f"/api/ml?project={project}")
            assert (connected["state"], connected["model_version"]) == ("CO", "flowers/v1")
            picture = {"sha.jpg": PICTURES["03.jpg"]}
            studio.add_pictures(project, picture, lambda name, url: {"data": {"picture": url}})
            body = [{"data": {"picture": "/data/upload/0/gone.jpg"}}, {"data": {"picture": ""}}]
            ann.send("POST", f"/api/projects/{project}/import", body)
            asked = {"selectedItems": {"all": True, "excluded": []}}
            act = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
            ann.send("POST", act, asked)
            noted = urllib.request.Request(f"{address}/webhook", b"{}", method="POST")
            with urllib.request.urlopen(noted, timeout=30) as answer:
                assert json.load(answer) == {}
            tasks = sorted(studio.tasks(project), key=lambda task: task["id"])
            assert [len(task["predictions"]) for task in tasks] == [1, 0, 0]
            said = ann.send("GET", f"/api/tasks/{tasks[0]['id']}")["predictions"][0]
            octets = {"Content-Type": "application/octet-stream"}
            served = server.send("POST", "/predict/flowers", PICTURES["03.jpg"], octets)[1]
            expected = json.loads(served)
            assert said["result"][0]["value"]["choices"] == [expected["label"]]
            assert said["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert said["model_version"] == "flowers/v1"
            server.stop()
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(f"{address}/health", timeout=30)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        server.stop()


def test_what_can_not_be_exported_is_put_aside_with_its_reason(
    studio: LabelStudio,
    people: tuple[Person, Person],
    release: Path,
    title: str,
    tmp_path: Path,
) -> None:
    write_tree(tmp_path / "in", PICTURES)
    set_up(studio, str(release), title=title)
    import_pictures(studio, title, str(tmp_path / "in"), limit=4, release=str(release))
    project, ann = studio.get(title).id, people[0]
    elsewhere = [
        {"data": {"picture": "https://elsewhere.example/a.jpg"}},
        {"data": {"picture": ""}},
    ]
    ann.send("POST", f"/api/projects/{project}/import", elsewhere)
    tasks = sorted(studio.tasks(project), key=lambda task: task["id"])
    for task in tasks:
        ann.choose(task["id"], "daisy")
    ann.send("PATCH", f"/api/tasks/{tasks[1]['id']}", {"data": {**tasks[1]["data"], "sha256": "0"}})
    gone = f"/api/projects/{project}/file-uploads"
    uploads = studio._json("GET", gone, query={"all": "true"}, kind=list)
    name = tasks[0]["data"]["picture"].removeprefix("/data/")
    ids = [upload["id"] for upload in uploads if upload["file"] == name]
    ann.send("DELETE", gone, {"file_upload_ids": ids})
    exported = export(studio, title, str(tmp_path / "out"))
    assert exported.pictures == 2
    assert exported.quarantined == {"changed": 1, "missing": 2, "no_picture": 1}
    few = export(studio, title, str(tmp_path / "out"), least_votes=1)
    assert few.version == exported.version
    with pytest.raises(AnnotationError, match="no annotation that can be used"):
        export(studio, title, str(tmp_path / "out"), least_votes=2)
    other = f"{title} again"
    set_up(studio, str(release), title=other)
    with pytest.raises(AnnotationError, match="not the annotations of"):
        export(studio, other, str(tmp_path / "out"))
    with pytest.raises(AnnotationError, match="is left alone"):
        export(studio, title, str(tmp_path / "in"))


def test_a_personal_access_token_is_as_good_and_a_wrong_one_is_told(
    where: dict[str, Any], studio: LabelStudio, people: tuple[Person, Person]
) -> None:
    personal = people[0].send("POST", "/api/token/")["token"]
    asking = LabelStudio(where["address"], personal)
    assert asking.find("there is none of this title") is None
    # As after five minutes.
    asking._access = "a.b.c"
    assert asking.find("there is none of this title") is None
    for wrong in ("0" * 40, "a.b.c"):
        with pytest.raises(AnnotationDeniedError, match="LABEL_STUDIO_API_KEY"):
            LabelStudio(where["address"], wrong).find("any")
    with pytest.raises(AnnotationAbsentError, match="linnet annotate setup"):
        studio.get("there is none of this title")


def test_what_is_not_label_studio_is_told(release: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationUnreachableError, match="label-studio start"):
        LabelStudio(f"http://127.0.0.1:{free_port()}", "0" * 40).find("any")
    with pytest.raises(SettingsError, match="is not Label Studio's address"):
        LabelStudio("label-studio:8080", "0" * 40)
    with pytest.raises(SettingsError, match="LABEL_STUDIO_API_KEY"):
        LabelStudio("http://127.0.0.1:8080", None)


def test_a_project_of_other_classes_takes_neither_setup_nor_pictures(
    studio: LabelStudio, release: Path, title: str, tmp_path: Path
) -> None:
    classes = ("a", "b", "c", "d", "e")
    pets = write_release(tmp_path, {"one.jpg": jpeg(1)}, model="pets", classes=classes)
    set_up(studio, str(pets), title=title)
    with pytest.raises(AnnotationError, match="asks for other classes than flowers v1 has"):
        set_up(studio, str(release), title=title)
    write_tree(tmp_path / "in", PICTURES)
    with pytest.raises(AnnotationError, match="does not ask for"):
        import_pictures(studio, title, str(tmp_path / "in"), release=str(release))
    assert studio.tasks(studio.get(title).id) == []


def test_a_webhook_is_called_when_somebody_annotates(
    studio: LabelStudio, people: tuple[Person, Person], release: Path, title: str
) -> None:
    called = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["action"] == "ANNOTATION_CREATED":
                called.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        hook = f"http://127.0.0.1:{receiver.server_port}/"
        for _ in range(2):
            set_up(studio, str(release), title=title, webhook=hook)
        project = studio.get(title).id
        assert len(people[0].send("GET", f"/api/webhooks/?project={project}")) == 1
        picture = {"sha.jpg": PICTURES["01.jpg"]}
        studio.add_pictures(project, picture, lambda name, url: {"data": {"picture": url}})
        people[0].choose(studio.tasks(project)[0]["id"], "daisy")
        assert called.wait(30)
        receiver.shutdown()
