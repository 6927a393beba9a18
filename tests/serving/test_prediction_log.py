"""What the server keeps of requests: a sample, in parts, bounded, at no caller's cost."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import grpc
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from linnet.inference.answers import Rule
from linnet.inference.metrics import Metrics
from linnet.inference.prediction_log import PredictionLog
from linnet.inference.protocol import open_inference_pb2 as pb
from linnet.inference.request_id import given_id
from linnet.inference.settings import PredictionLogSettings
from tests.serving.conftest import Running, Start
from tests.serving.photographs import photographs
from tests.serving.tiny_release import CLASSES, answers, graph

PICTURE = photographs()["flower.jpg"]
PIXELS = np.arange(2 * 30 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 30, 40, 3)
JPEG = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}


def logging_to(place: Path, **changes: object) -> tuple[str, ...]:
    values = {"to": str(place), "share": 1, "per_second": 1000, "part_s": 0.2} | changes
    return tuple(
        option
        for key, value in values.items()
        for option in ("--set", f"prediction_log.{key}={value}")
    )


def parts_of(place: Path, kind: str = "predictions") -> list[Path]:
    return sorted(place.glob(f"{kind}/flowers/date=*/*.parquet"))


def rows_of(place: Path, kind: str = "predictions") -> pd.DataFrame:
    parts = parts_of(place, kind)
    return pd.concat([pd.read_parquet(part) for part in parts]) if parts else pd.DataFrame()


def until(condition: object, within_s: float = 20.0) -> None:
    assert callable(condition)
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not come about in time"
        time.sleep(0.05)


def counted(server: Running, name: str, **labels: str) -> float:
    lines = server.get("/metrics")[1].decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    found = [line for line in lines if line.startswith(name) and all(w in line for w in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def logged(start: Start, release: Path, place: Path) -> Running:
    """A server that logs every request and takes feedback."""
    return start(release, options=(*logging_to(place), "--feedback"))


@pytest.fixture(scope="module")
def rows(logged: Running, place: Path) -> pd.DataFrame:
    """What is logged of a request by each protocol."""
    asked = {**JPEG, "X-Request-ID": "by-predict"}
    assert logged.send("POST", "/predict/flowers", PICTURE, asked)[0] == 200
    pixels = {"name": "pictures", "shape": PIXELS.shape, "datatype": "UINT8"}
    body = {"id": "by-v2", "inputs": [{**pixels, "data": PIXELS.ravel().tolist()}]}
    assert (
        logged.send("POST", "/v2/models/flowers/infer", json.dumps(body).encode(), JSON)[0] == 200
    )
    with grpc.insecure_channel(logged.grpc) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        raw = [len(PICTURE).to_bytes(4, "little") + PICTURE]
        request = pb.ModelInferRequest(model_name="flowers", id="mine", raw_input_contents=raw)
        request.inputs.add(name="pictures", datatype="BYTES", shape=[1])
        _, call = infer.with_call(request, metadata=[("x-request-id", "by-gateway")])
        assert dict(call.trailing_metadata())["x-request-id"] == "by-gateway"
        infer(request)
    until(lambda: len(rows_of(place)) >= 5)
    return rows_of(place).set_index(["request_id", "number"])


def test_each_answer_is_logged_with_its_picture_release_time_and_id(rows: pd.DataFrame) -> None:
    assert sorted(rows.index) == [
        *(("by-gateway", 0), ("by-predict", 0), ("by-v2", 0), ("by-v2", 1), ("mine", 0))
    ]
    row = rows.loc["by-predict", 0]
    assert row.picture == PICTURE
    assert (row.model, row.release) == ("flowers", "flowers/v1")
    expected = answers(graph(), [PICTURE])[0]
    np.testing.assert_allclose(row.probabilities, expected, atol=1e-6)
    assert row.label == CLASSES[expected.argmax()]
    assert row.score == pytest.approx(expected.max(), abs=1e-6)
    assert not row.abstain
    assert abs(datetime.now(UTC) - row.time) < timedelta(minutes=5)


def test_pixels_are_logged_without_loss(rows: pd.DataFrame) -> None:
    for number in (0, 1):
        with Image.open(BytesIO(rows.loc["by-v2", number].picture)) as found:
            assert np.array_equal(np.asarray(found), PIXELS[number])


def test_parts_are_sorted_by_time_and_carry_day_and_release(
    rows: pd.DataFrame, place: Path
) -> None:
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    for part in parts_of(place):
        assert part.parent.name == f"date={today}"
        assert re.fullmatch(r"\d{6}-v1-[0-9a-f]{6}\.parquet", part.name)
        assert pq.read_schema(part).field("time").type.tz == "UTC"


def test_what_is_written_is_counted(rows: pd.DataFrame, logged: Running) -> None:
    until(lambda: counted(logged, "linnet_prediction_log_total", outcome="written") >= 5)
    assert counted(logged, "linnet_prediction_log_held_bytes") == 0


def test_the_gateways_id_is_in_answer_access_log_and_prediction_log(
    logged: Running, place: Path
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    told = {**JPEG, "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert logged.send("POST", "/predict/flowers", PICTURE, told)[0] == 200
    until(lambda: trace in set(rows_of(place).request_id))
    lines = [json.loads(line) for line in logged.output().splitlines() if trace in line]
    assert [line["request_id"] for line in lines] == [trace]
    assert lines[0]["trace_id"] == trace


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-request-id": "abc"}, "abc"),
        ({"x-request-id": "a b\n"}, None),
        ({"x-request-id": "x" * 129}, None),
        ({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "4bf92f"),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": "nonsense"}, None),
        ({}, None),
    ],
)
def test_only_ids_that_can_be_sent_back_are_taken_over(
    headers: dict[str, str], expected: str | None
) -> None:
    found = given_id(headers)
    assert found is expected is None or str(found).startswith(str(expected))


def test_by_default_nothing_is_kept(server: Running) -> None:
    assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 200
    assert counted(server, "linnet_prediction_log_total") == 0
    folder = server.log.parent
    assert [path.name for path in folder.iterdir()] == ["log"]
    status, answer = feed(server, {"request_id": "a", "label": "daisy"})
    assert status == 403
    assert "feedback is off" in str(answer["error"])


def feed(server: Running, values: object) -> tuple[int, dict[str, object]]:
    status, body = server.send("POST", "/feedback/flowers", json.dumps(values).encode(), JSON)
    return status, json.loads(body)


def test_true_labels_are_counted_by_release_once(logged: Running, rows: pd.DataFrame) -> None:
    right = str(rows.loc["by-predict", 0].label)
    wrong = next(name for name in CLASSES if name != rows.loc["by-v2", 1].label)
    told = [
        {"request_id": "by-predict", "label": right},
        {"request_id": "by-v2", "number": 1, "label": wrong},
        {"request_id": "by-gateway", "label": None},
    ]
    assert feed(logged, {"feedback": told}) == (200, {"counted": 3, "repeated": 0, "kept": []})
    assert feed(logged, told[0]) == (200, {"counted": 0, "repeated": 1, "kept": []})
    of = {"model": "flowers", "release": "flowers/v1"}
    assert counted(logged, "linnet_feedback_total", right="true", **of) == 1
    assert counted(logged, "linnet_feedback_total", right="false", **of) == 2


def test_labels_of_other_pods_answers_are_kept_for_later(logged: Running, place: Path) -> None:
    label = {"request_id": "elsewhere", "label": CLASSES[0]}
    assert feed(logged, label) == (202, {"counted": 0, "repeated": 0, "kept": ["elsewhere"]})
    until(lambda: "elsewhere" in set(rows_of(place, "feedback").get("request_id", ())))
    row = rows_of(place, "feedback").set_index("request_id").loc["elsewhere"]
    assert row.true_label == CLASSES[0]
    assert pd.isna(row.release)


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        ({"request_id": "a", "label": "weed"}, 400, "is no class of flowers: send one of daisy"),
        ({"request_id": "a"}, 400, "is no class of flowers"),
        ({"label": "daisy"}, 400, "is of another form"),
        ({"request_id": 7, "label": "daisy"}, 400, "is of another form"),
        ({"request_id": "a", "label": "daisy", "extra": 1}, 400, "is of another form"),
        ({"request_id": "a", "label": "daisy", "number": -1}, 400, "names no picture"),
        ({"request_id": "a", "label": "daisy", "number": True}, 400, "names no picture"),
        ({"request_id": "\n", "label": "daisy"}, 400, "names no picture"),
        ({"feedback": []}, 400, "is no list of labels"),
        ({"feedback": [{"request_id": "a", "label": "daisy"}] * 1001}, 413, "allowed are 1000"),
        ([], 400, "send a JSON object"),
    ],
)
def test_wrong_feedback_says_what_to_change(
    logged: Running, values: object, status: int, words: str
) -> None:
    found, body = feed(logged, values)
    assert found == status
    assert words in str(body["error"])


def test_an_unknown_request_is_told_where_nothing_can_be_looked_up(
    start: Start, release: Path
) -> None:
    server = start(release, options=("--feedback", "--token", "secret", "--set", "max_batch=1"))
    labels = b'{"request_id": "nope", "label": "daisy"}'
    assert server.send("POST", "/feedback/flowers", labels, JSON)[0] == 401
    known = {**JSON, "Authorization": "Bearer secret"}
    status, body = server.send("POST", "/feedback/flowers", labels, known)
    assert status == 404
    assert "there is no request 'nope'" in json.loads(body)["error"]
    assert server.send("POST", "/feedback/roses", labels, known)[0] == 404
    assert server.send("GET", "/feedback/flowers", None, known)[0] == 405
    server.stop()


def test_on_drain_the_last_part_is_written(start: Start, release: Path, tmp_path: Path) -> None:
    server = start(release, options=logging_to(tmp_path / "log", part_s=600, pictures="none"))
    for _ in range(3):
        assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 200
    assert not parts_of(tmp_path / "log")
    assert server.stop() == 0
    rows = rows_of(tmp_path / "log")
    assert len(rows) == 3
    assert rows.picture.isna().all()


def test_a_store_that_is_down_costs_callers_nothing_and_drops_are_counted(
    start: Start, release: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "log"
    blocked.write_text("a file where the folder should be")
    options = logging_to(blocked, memory_bytes=3 * len(PICTURE), part_s=0.1)
    server = start(release, options=options)
    for _ in range(5):
        assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 200
    assert counted(server, "linnet_prediction_log_total", outcome="no_memory") == 3
    assert 0 < counted(server, "linnet_prediction_log_held_bytes") <= 3 * len(PICTURE)
    until(lambda: "the prediction log can't be written; serving goes on" in server.output())
    until(lambda: counted(server, "linnet_prediction_log_failures") >= 1)
    blocked.unlink()
    until(lambda: counted(server, "linnet_prediction_log_total", outcome="written") == 2)
    assert len(rows_of(blocked)) == 2
    until(lambda: counted(server, "linnet_prediction_log_failures") == 0)
    assert server.stop() == 0
    assert "Traceback" not in server.output()


def test_what_a_store_never_took_is_told_at_the_end(
    start: Start, release: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "log"
    blocked.write_text("a file")
    server = start(release, options=logging_to(blocked, part_s=600))
    assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 200
    assert server.stop() == 0
    assert "1 rows of the prediction log could not be written" in server.output()


def test_an_s3_that_nobody_listens_at_neither_stops_the_start_nor_the_end(
    start: Start, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    server = start(release, options=logging_to(Path("s3://bucket/log"))[2:] + LOG_TO_S3)
    assert server.send("POST", "/predict/flowers", PICTURE, JPEG)[0] == 200
    assert server.stop(20) == 0
    assert "could not be written in time" in server.output()


LOG_TO_S3 = ("--log-to", "s3://bucket/log")


def note(log: PredictionLog, count: int = 1, request_id: str = "a") -> None:
    """Note pictures as a served model does."""
    probabilities = np.tile(np.float32([0.8, 0.2]), (count, 1))
    log.note(
        "flowers",
        "flowers/v1",
        ("daisy", "rose"),
        request_id=request_id,
        pixels=None,
        encoded=[memoryview(PICTURE)] * count,
        answers=Rule().answer(probabilities),
    )


def open_log(place: Path, **changes: object) -> tuple[PredictionLog, Metrics]:
    values = {"to": str(place), "share": 1.0, "per_second": 1000.0, "part_s": 600.0} | changes
    metrics = Metrics()
    return PredictionLog(PredictionLogSettings.parse(values), metrics, None), metrics


def total(metrics: Metrics, outcome: str) -> float:
    of = ("flowers", "flowers/v1", outcome)
    return metrics.logged.labels(*of)._value.get()


def test_the_share_that_is_asked_for_is_drawn(tmp_path: Path) -> None:
    log, metrics = open_log(tmp_path, share=0.2, pictures="none", per_second=1e9)
    for _ in range(5000):
        note(log)
    log.close(20)
    assert 800 < total(metrics, "written") < 1200


def test_no_more_requests_a_second_than_allowed_are_logged(tmp_path: Path) -> None:
    log, metrics = open_log(tmp_path, per_second=3.0)
    for _ in range(10):
        note(log, 2)
    log.close(20)
    assert 6 <= total(metrics, "written") <= 8
    assert total(metrics, "written") + total(metrics, "too_many") == 20


def test_no_more_bytes_an_hour_than_allowed_are_written(tmp_path: Path) -> None:
    log, metrics = open_log(tmp_path, bytes_per_hour=int(1.5 * len(PICTURE)), part_s=0.05)
    for expected in ("written", "too_much"):
        note(log)
        until(lambda expected=expected: total(metrics, expected) == 1)
    log.close(20)
    assert len(parts_of(tmp_path)) == 1


def test_what_waited_long_is_written_in_parts_of_the_usual_size(tmp_path: Path) -> None:
    log, metrics = open_log(tmp_path, part_bytes=2 * len(PICTURE), memory_bytes=1 << 30)
    log._failed = 1  # The store was down: nothing is written before the end.
    for _ in range(10):
        note(log)
    log.close(20)
    assert total(metrics, "written") == 10
    assert len(parts_of(tmp_path)) >= 4


def test_nothing_is_written_where_space_is_short(tmp_path: Path) -> None:
    log, metrics = open_log(tmp_path, least_free_bytes=1 << 60)
    note(log)
    log.close(20)
    assert total(metrics, "disk_full") == 1
    assert not parts_of(tmp_path)


def test_thumbnails_are_small_and_of_the_same_picture(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, pictures="thumbnail", thumbnail_px=64)
    note(log)
    log.close(20)
    (encoded,) = rows_of(tmp_path).picture
    assert len(encoded) < 5000
    with Image.open(BytesIO(encoded)) as found, Image.open(BytesIO(PICTURE)) as whole:
        assert max(found.size) == 64
        difference = np.asarray(found, float) - np.asarray(whole.resize(found.size), float)
    assert np.abs(difference).mean() < 12


def test_old_days_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    kept = [f"date={today - timedelta(days=3)}", "date=unknown", "notes"]
    gone = [f"date={today - timedelta(days=4)}", "date=2020-01-01"]
    for kind in ("predictions", "feedback"):
        for day in (*kept, *gone):
            folder = tmp_path / kind / "flowers" / day
            folder.mkdir(parents=True)
            (folder / "part.parquet").write_bytes(b"")
    log, _ = open_log(tmp_path, keep_days=3, part_s=0.05)
    until(lambda: len(parts_of(tmp_path)) == 2)
    log.close(20)
    for kind in ("predictions", "feedback"):
        found = {path.parent.name for path in tmp_path.glob(f"{kind}/flowers/*/part.parquet")}
        assert found == set(kept)


def test_taking_note_takes_microseconds(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, per_second=1e9, memory_bytes=1 << 30, part_bytes=1 << 30)
    note(log)
    began = time.thread_time()
    for _ in range(1000):
        note(log)
    took = time.thread_time() - began
    log.close(30)
    # Some 30 µs, most of it a copy of the picture.
    assert took / 1000 < 0.0005
