"""What the servers counted: from their pods, from Prometheus, and summed up in windows."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from linnet.errors import ClusterUnreachableError, EvidenceError
from linnet.inference.metrics import Metrics, ModelMetrics
from linnet.rollout.evidence import (
    Counted,
    Counters,
    Pod,
    PodEvidence,
    Window,
    is_error,
    is_refused,
)
from linnet.rollout.prometheus import PrometheusEvidence
from linnet.rollout.seen import Answered, Histogram, Replayed

NOW_S = 1_000_000.0


class Server:
    """A pod's server: the real counters of one release."""

    def __init__(self, release: str, *, model: str = "birds") -> None:
        self.metrics = Metrics()
        named = f"any/{release}"
        self.of_model = ModelMetrics(self.metrics, model, named, ("finch", "linnet"))
        self.of_model.ready.set(1)

    def answer(self, *codes: str, protocol: str = "rest", seconds: float = 0.02) -> None:
        for code in codes:
            self.of_model.finished(protocol, code, seconds)

    def text(self) -> str:
        return self.metrics.render().decode()


def ready(name: str, release: str, restarts: int = 0) -> Pod:
    return Pod(name, release, True, restarts)


def counted(requests: int, errors: int = 0, started_s: float = 1.0) -> Counted:
    return Counted(started_s, Answered(requests, errors))


def counters(taken_s: float, **pods: tuple[Pod, Counted | None]) -> Counters:
    return Counters(
        taken_s,
        tuple(pod for pod, _ in pods.values()),
        {pod.name: values for pod, values in pods.values() if values is not None},
    )


def opened(**pods: tuple[Pod, Counted | None]) -> Window:
    return Window.open(counters(NOW_S, **pods), champion="v1", candidate="v2")


@pytest.mark.parametrize(
    ("protocol", "code", "error", "refused"),
    [
        ("rest", "200", False, False),
        ("rest", "404", False, True),
        ("rest", "429", False, True),
        ("rest", "500", True, False),
        ("rest", "503", True, False),
        ("rest", "504", True, False),
        ("grpc", "OK", False, False),
        ("grpc", "INVALID_ARGUMENT", False, True),
        ("grpc", "CANCELLED", False, False),
        ("grpc", "RESOURCE_EXHAUSTED", False, True),
        ("grpc", "INTERNAL", True, False),
        ("grpc", "UNAVAILABLE", True, False),
        ("grpc", "DEADLINE_EXCEEDED", True, False),
    ],
)
def test_only_what_is_the_servers_fault_is_an_error(
    protocol: str, code: str, error: bool, refused: bool
) -> None:
    assert (is_error(protocol, code), is_refused(protocol, code)) == (error, refused)


def test_a_pods_own_metrics_become_counts_by_release() -> None:
    servers = {"old": Server("v1"), "new": Server("v2")}
    servers["old"].answer("200", "200", "400")
    servers["new"].answer("200", "500", "429", seconds=0.3)
    servers["new"].answer("OK", "INTERNAL", protocol="grpc", seconds=0.003)
    evidence = PodEvidence(
        "birds",
        pods=lambda: [ready("old", "v1"), ready("new", "v2", restarts=3)],
        scrape=lambda pod: servers[pod].text(),
        clock=lambda: NOW_S,
    )
    found = evidence.snapshot()
    new = found.counted["new"].answered
    assert found.taken_s == NOW_S
    assert found.counted["new"].started_s > 1e9
    assert (new.requests, new.errors, new.refused) == (5, 2, 1)
    assert (new.seconds.at_most[0.0035], new.seconds.at_most[0.35], new.seconds.total) == (2, 5, 5)
    assert new.labels == {"finch": 0, "linnet": 0}
    assert new.confidence.total == 0
    assert found.counted["old"].answered.requests == 3
    assert found.counted["old"].answered.errors == 0


def test_pods_that_are_not_ready_are_not_asked() -> None:
    def scrape(pod: str) -> str:
        raise AssertionError(f"{pod} was asked")

    pods = [Pod("new", "v2", False, 7)]
    found = PodEvidence("birds", pods=lambda: pods, scrape=scrape).snapshot()
    assert (found.pods, found.counted) == (tuple(pods), {})


def test_a_ready_pod_that_can_not_be_read_is_no_evidence() -> None:
    def scrape(pod: str) -> str:
        raise ClusterUnreachableError("timed out")

    evidence = PodEvidence("birds", pods=lambda: [ready("new", "v2")], scrape=scrape)
    with pytest.raises(EvidenceError, match=r"pod new can't be read \(timed out\)"):
        evidence.snapshot()
    evidence = PodEvidence("birds", pods=lambda: [ready("new", "v2")], scrape=lambda _: "<html>{")
    with pytest.raises(EvidenceError, match="pod new"):
        evidence.snapshot()


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        (Server("v7"), "releases shown: any/v7"),
        (Server("v2", model="fish"), "releases shown: none"),
    ],
)
def test_a_pod_that_serves_something_else_is_no_evidence(server: Server, shown: str) -> None:
    evidence = PodEvidence(
        "birds", pods=lambda: [ready("new", "v2")], scrape=lambda _: server.text()
    )
    with pytest.raises(EvidenceError, match=f"model birds, release v2 .{shown}"):
        evidence.snapshot()


def test_a_window_begins_empty_and_counts_what_comes_on_top() -> None:
    old, new = ready("old", "v1"), ready("new", "v2")
    window = opened(old=(old, counted(900, 5)), new=(new, counted(10, 10)))
    assert (window.champion.requests, window.candidate.requests) == (0, 0)
    assert (window.candidate.ready_pods, window.candidate.pods) == (1, 1)
    window = window.extended(
        counters(NOW_S + 10, old=(old, counted(990, 6)), new=(new, counted(20, 11)))
    )
    window = window.extended(
        counters(NOW_S + 20, old=(old, counted(1000, 6)), new=(new, counted(25, 12)))
    )
    seen = window.seen(replayed=Replayed(8, 8), total_seconds=99.0)
    assert (seen.champion.requests, seen.champion.errors) == (100, 1)
    assert (seen.candidate.requests, seen.candidate.errors) == (15, 2)
    assert (seen.seconds, seen.total_seconds, seen.replayed) == (20.0, 99.0, Replayed(8, 8))
    assert window.seen(champion=Answered(7)).champion.requests == 7


def test_histograms_and_labels_are_windowed_as_well() -> None:
    def of(fast: int, slow: int, finch: int) -> Counted:
        times = Histogram({0.1: fast, math.inf: fast + slow})
        return Counted(
            1.0, Answered(fast + slow, seconds=times, labels={"finch": finch}, confidence=times)
        )

    new = ready("new", "v2")
    window = opened(new=(new, of(5, 5, 7))).extended(counters(NOW_S, new=(new, of(6, 8, 9))))
    assert window.candidate.seconds == Histogram({0.1: 1, math.inf: 4})
    assert window.candidate.confidence.total == 4
    assert window.candidate.labels == {"finch": 2}


@pytest.mark.parametrize(
    "restarted", [counted(4, 1, started_s=2.0), counted(120, 1, started_s=2.0), counted(4, 1)]
)
def test_a_restarted_pod_keeps_what_it_counted_before_and_counts_anew(restarted: Counted) -> None:
    new = ready("new", "v2")
    window = opened(new=(new, counted(100)))
    window = window.extended(counters(NOW_S + 10, new=(new, counted(110, 9))))
    again = ready("new", "v2", restarts=1)
    window = window.extended(counters(NOW_S + 20, new=(again, restarted)))
    assert window.candidate.requests == 10 + restarted.answered.requests
    assert window.candidate.errors == 9 + 1
    assert window.candidate.restarts == 1
    same = window.extended(counters(NOW_S + 30, new=(again, restarted)))
    assert same.candidate == window.candidate


def test_a_pod_that_is_not_ready_for_a_while_goes_on_where_it_was() -> None:
    new = ready("new", "v2")
    window = opened(new=(new, counted(100)))
    window = window.extended(counters(NOW_S + 10, new=(Pod("new", "v2", False, 0), None)))
    assert (window.candidate.requests, window.candidate.ready_pods) == (0, 0)
    window = window.extended(counters(NOW_S + 20, new=(new, counted(130))))
    assert (window.candidate.requests, window.candidate.ready_pods) == (30, 1)


def test_a_pod_that_is_gone_leaves_what_it_answered() -> None:
    one, two = ready("one", "v2"), ready("two", "v2")
    window = opened(one=(one, counted(0)), two=(two, counted(0)))
    window = window.extended(counters(NOW_S + 10, one=(one, counted(5)), two=(two, counted(5))))
    window = window.extended(counters(NOW_S + 20, one=(one, counted(6))))
    assert (window.candidate.requests, window.candidate.pods) == (11, 1)


def test_a_pod_that_joins_counts_from_its_start_if_that_was_within_the_window() -> None:
    one = ready("one", "v2")
    window = opened(one=(one, counted(0)))
    later = ready("later", "v2")
    young = window.extended(counters(NOW_S + 10, later=(later, counted(40, started_s=NOW_S + 2))))
    old = window.extended(counters(NOW_S + 10, later=(later, counted(40, started_s=NOW_S - 99))))
    assert (young.candidate.requests, old.candidate.requests) == (40, 0)
    old = old.extended(counters(NOW_S + 20, later=(later, counted(50, started_s=NOW_S - 99))))
    assert old.candidate.requests == 10


def test_a_window_survives_as_json_and_goes_on() -> None:
    server = Server("v2")
    evidence = PodEvidence(
        "birds", pods=lambda: [ready("new", "v2")], scrape=lambda _: server.text()
    )
    window = Window.open(evidence.snapshot(), champion="v1", candidate="v2")
    server.answer("200", "500")
    window = window.extended(evidence.snapshot())
    again = Window.from_json(json.loads(json.dumps(window.to_json())))
    assert again == window
    server.answer("200")
    assert again.extended(evidence.snapshot()).candidate.requests == 3


@pytest.mark.parametrize("kept", [{}, {"begun_s": "yesterday"}])
def test_a_window_that_was_kept_wrongly_is_refused(kept: dict[str, str]) -> None:
    with pytest.raises(EvidenceError, match="begin this step's window anew"):
        Window.from_json(kept)


@dataclass
class FakePrometheus:
    """Answers instant queries as Prometheus does, over the metrics of real servers."""

    servers: dict[str, Server] = field(default_factory=dict)
    age_s: float = 5.0
    jobs: tuple[str, ...] = ("models",)
    asked: list[str] = field(default_factory=list)
    instead: Callable[[str], tuple[int, bytes]] | None = None
    address: str = ""

    def respond(self, query: str) -> tuple[int, bytes]:
        self.asked.append(query)
        if self.instead is not None:
            return self.instead(query)
        result = []
        for pod, server in self.servers.items():
            for family in text_string_to_metric_families(server.text()):
                for sample in family.samples:
                    if sample.name in query:
                        stamp = query.startswith("timestamp(")
                        value = NOW_S - self.age_s if stamp else sample.value
                        name = {} if stamp else {"__name__": sample.name}
                        labels = {**name, **sample.labels, "pod": pod, "namespace": "serving"}
                        result += [
                            {"metric": {**labels, "job": job}, "value": [NOW_S, str(value)]}
                            for job in self.jobs
                        ]
        data = {"resultType": "vector", "result": result}
        return 200, json.dumps({"status": "success", "data": data}).encode()

    def evidence(self, *pods: Pod) -> PrometheusEvidence:
        return PrometheusEvidence(
            self.address, model="birds", namespace="serving", pods=lambda: pods, clock=lambda: NOW_S
        )


@pytest.fixture
def prometheus() -> Iterator[FakePrometheus]:
    fake = FakePrometheus()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            assert asked.path == "/api/v1/query"
            status, body = fake.respond(parse_qs(asked.query)["query"][0])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    fake.address = f"http://127.0.0.1:{server.server_port}/"
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("jobs", [("models",), ("models", "pods")])
def test_prometheus_gives_the_same_counts_as_the_pods_themselves(
    prometheus: FakePrometheus, jobs: tuple[str, ...]
) -> None:
    prometheus.jobs = jobs
    prometheus.servers = {"old": Server("v1"), "new": Server("v2"), "other": Server("v9")}
    prometheus.servers["old"].answer("200", "503")
    prometheus.servers["new"].answer("OK", "UNAVAILABLE", protocol="grpc")
    pods = (ready("old", "v1"), ready("new", "v2"))
    found = prometheus.evidence(*pods).snapshot()
    direct = PodEvidence(
        "birds", pods=lambda: pods, scrape=lambda pod: prometheus.servers[pod].text()
    ).snapshot()
    assert found.counted == direct.counted
    assert found.pods == direct.pods
    assert found.taken_s == NOW_S
    assert 'namespace="serving",model="birds"' in prometheus.asked[0]


def test_prometheus_being_down_is_no_evidence(prometheus: FakePrometheus) -> None:
    down = PrometheusEvidence(
        "http://127.0.0.1:9", model="birds", namespace="serving", pods=lambda: ()
    )
    with pytest.raises(EvidenceError, match=r"Prometheus at http://127.0.0.1:9 does not answer"):
        down.snapshot()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (503, b"<html>no backend</html>", "answers with status 503 and not as Prometheus does"),
        (200, b"{}", "check the address"),
        (200, b"[]", "check the address"),
        (200, b'{"status": "success", "data": {"result": [{"metric": {}}]}}', "check the address"),
        (200, b"\xff\xfe", "check the address"),
        (
            422,
            b'{"status": "error", "errorType": "execution", "error": "query timed out"}',
            "with status 422: execution: query timed out",
        ),
    ],
)
def test_what_is_not_an_answer_of_prometheus_is_no_evidence(
    prometheus: FakePrometheus, status: int, body: bytes, message: str
) -> None:
    prometheus.instead = lambda query: (status, body)
    with pytest.raises(EvidenceError, match=message):
        prometheus.evidence(ready("new", "v2")).snapshot()


def test_a_ready_pod_that_prometheus_does_not_read_is_no_evidence(
    prometheus: FakePrometheus,
) -> None:
    prometheus.servers = {"old": Server("v1")}
    with pytest.raises(EvidenceError, match=r'knows no linnet_model_ready.*pod="new".*/targets'):
        prometheus.evidence(ready("old", "v1"), ready("new", "v2")).snapshot()


def test_what_prometheus_read_long_ago_is_no_evidence(prometheus: FakePrometheus) -> None:
    prometheus.servers = {"new": Server("v2")}
    prometheus.age_s = 200.0
    with pytest.raises(EvidenceError, match="read pod new last 200 s ago"):
        prometheus.evidence(ready("new", "v2")).snapshot()


def test_pods_that_are_not_ready_need_not_be_known_to_prometheus(
    prometheus: FakePrometheus,
) -> None:
    found = prometheus.evidence(Pod("new", "v2", False, 0)).snapshot()
    assert found.counted == {}
    assert found.taken_s == NOW_S


def test_true_labels_that_came_back_are_counted_in_the_window_alone() -> None:
    server = Server("v2")
    told = server.metrics.feedback.labels
    told("birds", "any/v2", "false").inc(5)
    evidence = PodEvidence("birds", pods=lambda: [ready("p", "v2")], scrape=lambda _: server.text())
    window = Window.open(evidence.snapshot(), champion="v1", candidate="v2")
    told("birds", "any/v2", "true").inc(3)
    told("birds", "any/v2", "false").inc()
    later = Window.from_json(window.to_json()).extended(evidence.snapshot()).candidate
    assert (later.told, later.wrong) == (4, 1)
