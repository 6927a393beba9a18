"""What the server counts, told apart by model and release, in Prometheus's form."""

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from linnet.inference.answers import Answers

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Finer, because a rollout judges whole requests by these bounds alone.
_REQUEST_SECONDS = (
    *(ms / 1000 for ms in (1, 1.5, 2.5, 3.5, 5, 7, 10, 15, 25, 35, 50, 70)),
    *(ms / 1000 for ms in (100, 150, 250, 350, 500, 700)),
    *(1.0, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 15.0, 30.0),
)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_OF = ("model", "release")


class Metrics:
    """All counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        to = self.registry
        self.requests = Counter(
            "linnet_requests", "Requests by answer", (*_OF, "protocol", "code"), registry=to
        )
        self.request_seconds = Histogram(
            "linnet_request_seconds",
            "From the whole request to the answer",
            (*_OF, "protocol"),
            buckets=_REQUEST_SECONDS,
            registry=to,
        )
        self.stage_seconds = Histogram(
            "linnet_stage_seconds",
            "Time in a stage: queue, decode, infer",
            (*_OF, "stage"),
            buckets=_SECONDS,
            registry=to,
        )
        self.batch_pictures = Histogram(
            "linnet_batch_pictures",
            "Pictures in one run of the model",
            _OF,
            buckets=_BATCH,
            registry=to,
        )
        self.predictions = Counter(
            "linnet_predictions", "Pictures by predicted class", (*_OF, "label"), registry=to
        )
        self.abstained = Counter(
            "linnet_abstained", "Pictures scored below their class's threshold", _OF, registry=to
        )
        self.confidence = Histogram(
            "linnet_confidence",
            "Scores of the predicted classes",
            _OF,
            buckets=_CONFIDENCE,
            registry=to,
        )
        self.refused = Counter(
            "linnet_refused",
            "Requests that were refused without a model: unread, unknown, unauthorized",
            ("protocol", "code"),
            registry=to,
        )
        self.max_batch = Gauge(
            "linnet_max_batch", "Most pictures in one run of the model", _OF, registry=to
        )
        self.queue_pictures = Gauge(
            "linnet_queue_pictures", "Pictures accepted and not yet answered", _OF, registry=to
        )
        self.queue_limit = Gauge(
            "linnet_queue_limit_pictures",
            "Pictures that are accepted now at most",
            _OF,
            registry=to,
        )
        self.logged = Counter(
            "linnet_prediction_log",
            "Rows noted for the prediction log, by what became of them",
            (*_OF, "outcome"),
            registry=to,
        )
        self.log_held = Gauge(
            "linnet_prediction_log_held_bytes", "Noted and not yet written", registry=to
        )
        self.log_failures = Gauge(
            "linnet_prediction_log_failures",
            "Times in a row that the store did not take a part of the log, at most 6",
            registry=to,
        )
        self.feedback = Counter(
            "linnet_feedback",
            "True labels that came back for answers of this server, by whether they were right",
            (*_OF, "right"),
            registry=to,
        )
        self.ready = Gauge("linnet_model_ready", "1 when the model answers", _OF, registry=to)
        self.connections = Gauge("linnet_rest_connections", "Open REST connections", registry=to)

    def render(self) -> bytes:
        """Return everything in Prometheus's text form."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The counters of one release of one model, looked up once; `Watch` of its engine."""

    def __init__(self, metrics: Metrics, model: str, release: str, classes: Sequence[str]) -> None:
        self._metrics = metrics
        self._of = (model, release)
        stage = metrics.stage_seconds
        self._decode = stage.labels(*self._of, "decode")
        self._infer = stage.labels(*self._of, "infer")
        self._queue = stage.labels(*self._of, "queue")
        self._pictures = metrics.batch_pictures.labels(*self._of)
        self._labels = [metrics.predictions.labels(*self._of, name) for name in classes]
        self._confidence = metrics.confidence.labels(*self._of)
        self._abstained = metrics.abstained.labels(*self._of)
        self._requests: dict[tuple[str, str], Counter] = {}
        self._seconds: dict[str, Histogram] = {}
        self.batch = metrics.max_batch.labels(*self._of)
        self.queued = metrics.queue_pictures.labels(*self._of)
        self.queue_limit = metrics.queue_limit.labels(*self._of)
        self.ready = metrics.ready.labels(*self._of)

    def decoded(self, seconds: float) -> None:
        """Note the preparation of one picture."""
        self._decode.observe(seconds)

    def ran(self, pictures: int, seconds: float, queued: list[float]) -> None:
        """Note one run of the model, and how long each of its jobs had been in the queue."""
        self._infer.observe(seconds)
        self._pictures.observe(pictures)
        for waited in queued:
            self._queue.observe(waited)

    def answered(self, answers: Answers) -> None:
        """Note what was predicted."""
        for best, score, abstain in zip(
            answers.best.tolist(), answers.scores.tolist(), answers.abstain.tolist(), strict=True
        ):
            self._labels[best].inc()
            self._confidence.observe(score)
            if abstain:
                self._abstained.inc()

    def finished(self, protocol: str, code: str, seconds: float) -> None:
        """Note a finished request."""
        counter = self._requests.get((protocol, code))
        if counter is None:
            counter = self._metrics.requests.labels(*self._of, protocol, code)
            self._requests[protocol, code] = counter
        counter.inc()
        histogram = self._seconds.get(protocol)
        if histogram is None:
            histogram = self._metrics.request_seconds.labels(*self._of, protocol)
            self._seconds[protocol] = histogram
        histogram.observe(seconds)

    def same(self, other: "ModelMetrics") -> bool:
        """Return whether another one is of the same release under the same name."""
        return self._of == other._of

    def forget(self) -> None:
        """Stop showing what is only true of a model that is there."""
        metrics = self._metrics
        for gauge in (
            metrics.max_batch,
            metrics.queue_pictures,
            metrics.queue_limit,
            metrics.ready,
        ):
            gauge.remove(*self._of)
