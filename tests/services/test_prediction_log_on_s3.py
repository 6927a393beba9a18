"""A server that keeps its prediction log in a real MinIO, which may be full or away."""

import json
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from linnet.inference.answers import Rule
from linnet.inference.metrics import Metrics
from linnet.inference.prediction_log import PredictionLog
from linnet.inference.settings import PredictionLogSettings
from linnet.monitoring.accuracy import live_accuracy
from tests.services.conftest import Bucket
from tests.serving.conftest import launch, wait_until_ready
from tests.serving.photographs import photographs
from tests.serving.tiny_release import write_release

pytestmark = pytest.mark.services

PICTURE = photographs()["flower.jpg"]


def logged(minio: Bucket) -> pd.DataFrame:
    store = minio.store()
    keys = [entry.key for entry in store.entries("log/predictions/flowers")]
    return pd.concat([pd.read_parquet(BytesIO(store.read(key))) for key in keys])


def test_champion_and_candidate_log_to_one_bucket_and_labels_find_both(
    minio: Bucket, tmp_path: Path
) -> None:
    known = {
        "AWS_ENDPOINT_URL": minio.address,
        "AWS_ACCESS_KEY_ID": minio.access_key,
        "AWS_SECRET_ACCESS_KEY": minio.secret_key,
        "LINNET_LOG_TO": f"s3://{minio.name}/log",
    }
    options = ("--feedback", "--set", "prediction_log.share=1")
    servers = []
    for version in ("v1", "v2"):
        release = write_release(tmp_path / version, photographs(), version=version)
        folder = tmp_path / f"server-{version}"
        folder.mkdir()
        servers.append(launch(folder, release, options=options, environment=known))
    try:
        said = []
        for number, server in enumerate(servers):
            wait_until_ready(server)
            asked = {"Content-Type": "image/jpeg", "X-Request-ID": f"request-{number}"}
            status, body = server.send("POST", "/predict/flowers", PICTURE, asked)
            assert status == 200
            said.append(json.loads(body)["label"])
        # Both labels go to the first, as a gateway may do: it knows one of the answers.
        labels = [{"request_id": f"request-{n}", "label": said[n]} for n in (0, 1)]
        told = json.dumps({"feedback": labels}).encode()
        json_type = {"Content-Type": "application/json"}
        status, body = servers[0].send("POST", "/feedback/flowers", told, json_type)
        assert (status, json.loads(body)["counted"]) == (202, 1)
    finally:
        codes = [server.stop() for server in servers]
    assert codes == [0, 0]
    rows = logged(minio).set_index("request_id")
    assert dict(rows.release) == {"request-0": "flowers/v1", "request-1": "flowers/v2"}
    assert set(rows.picture) == {PICTURE}
    place, connections = f"s3://{minio.name}/log", minio.connections(tmp_path)
    found = live_accuracy(place, "flowers", connections=connections)
    assert [(row.release, row.right) for row in found.releases] == [
        ("flowers/v1", 1),
        ("flowers/v2", 1),
    ]


def open_log(minio: Bucket, **changes: object) -> tuple[PredictionLog, Metrics]:
    metrics = Metrics()
    values = {"to": f"s3://{minio.name}/log", "share": 1.0, "part_s": 600.0} | changes
    settings = PredictionLogSettings.parse(values)
    return PredictionLog(settings, metrics, minio.connections(Path())), metrics


def note(log: PredictionLog) -> None:
    answers = Rule().answer(np.float32([[0.9, 0.1]]))
    log.note(
        *("flowers", "flowers/v1", ("daisy", "rose")),
        request_id="a",
        pixels=None,
        encoded=[PICTURE],
        answers=answers,
    )


def test_a_bucket_that_is_away_is_written_to_when_it_is_back(minio: Bucket) -> None:
    client = minio.client()
    client.remove_bucket(minio.name)
    log, metrics = open_log(minio, part_s=0.1)
    note(log)
    time.sleep(0.5)
    of = ("flowers", "flowers/v1", "written")
    assert metrics.logged.labels(*of)._value.get() == 0
    client.make_bucket(minio.name)
    until = time.monotonic() + 20
    while metrics.logged.labels(*of)._value.get() == 0:
        assert time.monotonic() < until
        time.sleep(0.1)
    log.close(10)
    assert len(logged(minio)) == 1


def test_old_days_of_a_bucket_are_deleted(minio: Bucket) -> None:
    store = minio.store()
    today = datetime.now(UTC).date()
    for days in (1, 40):
        day = f"date={today - timedelta(days=days)}"
        store.write(f"log/predictions/flowers/{day}/000000-v1-a.parquet", b"")
    log, _ = open_log(minio, part_s=0.1)
    until = time.monotonic() + 20
    while len(list(store.entries("log"))) == 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    log.close(10)
    (left,) = store.entries("log")
    assert str(today - timedelta(days=1)) in left.key
