"""What the servers of both releases counted, and the window of it that is judged.

A server's counters begin anew when it restarts, so a window is summed up from look to look, pod by
pod. Windows turn into JSON and back: a rollout that is run again goes on with them.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self, TypeVar

from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter, ValidationError

from linnet.errors import EvidenceError, LinnetError
from linnet.rollout.seen import Answered, Histogram, Replayed, Seen

# INTERNAL is also what the server makes of everything unexpected. CANCELLED is the caller's wish.
_GRPC_ERRORS: Final = frozenset(
    {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS", "ABORTED"}
)
REQUESTS: Final = "linnet_requests_total"
SECONDS: Final = "linnet_request_seconds_bucket"
LABELS: Final = "linnet_predictions_total"
CONFIDENCE: Final = "linnet_confidence_bucket"
FEEDBACK: Final = "linnet_feedback_total"
READY: Final = "linnet_model_ready"
STARTED: Final = "process_start_time_seconds"

_NOTHING: Final = Answered()
_Key = TypeVar("_Key")


def is_error(protocol: str, code: str) -> bool:
    """Return whether an answer is the server's fault: 5xx, and gRPC's codes for such."""
    return code in _GRPC_ERRORS if protocol == "grpc" else code.startswith("5")


def is_refused(protocol: str, code: str) -> bool:
    """Return whether an answer declines the request: 4xx, above all 429 when the server is full."""
    if protocol == "grpc":
        return code not in {"OK", "CANCELLED"} and code not in _GRPC_ERRORS
    return code.startswith("4")


@dataclass(frozen=True)
class Pod:
    """A pod of one of the two releases, as Kubernetes shows it now; `release` is the version."""

    name: str
    release: str
    ready: bool
    restarts: int


@dataclass(frozen=True)
class Sample:
    """One value of one series, as a server or Prometheus tells it."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Counted:
    """What a pod's server counted since it started; `started_s` in Unix time, 0: unknown."""

    started_s: float
    answered: Answered


@dataclass(frozen=True)
class Counters:
    """All pods at one moment, in Unix time, and what was counted by those that could be asked."""

    taken_s: float
    pods: tuple[Pod, ...]
    counted: dict[str, Counted]

    @classmethod
    def of(
        cls,
        taken_s: float,
        pods: Iterable[Pod],
        samples: Mapping[str, Sequence[Sample]],
        *,
        model: str,
    ) -> Self:
        """Return what the samples, by the pod's name, show of a model on the pods that are ready.

        Raises:
            EvidenceError: a ready pod shows nothing of the release that it should serve.
        """
        known = tuple(pods)
        counted = {
            pod.name: _counted(pod, samples.get(pod.name, ()), model) for pod in known if pod.ready
        }
        return cls(taken_s, known, counted)


class Evidence(Protocol):
    """Where counters come from."""

    def snapshot(self) -> Counters:
        """Return the counters of all pods now.

        Raises:
            EvidenceError: they can't be had: nothing may be concluded from this moment.
        """


class PodEvidence:
    """Reads each ready pod's /metrics; `scrape` returns its text by the pod's name."""

    def __init__(
        self,
        model: str,
        *,
        pods: Callable[[], Sequence[Pod]],
        scrape: Callable[[str], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model = model
        self._pods = pods
        self._scrape = scrape
        self._clock = clock

    def snapshot(self) -> Counters:
        """Return the counters of all pods now; those that are not ready are not asked.

        Raises:
            EvidenceError: a ready pod's metrics can't be read, or are of another release.
        """
        pods = self._pods()
        samples = {pod.name: self._samples(pod.name) for pod in pods if pod.ready}
        return Counters.of(self._clock(), pods, samples, model=self._model)

    def _samples(self, pod: str) -> list[Sample]:
        try:
            return [
                Sample(sample.name, sample.labels, sample.value)
                for family in text_string_to_metric_families(self._scrape(pod))
                for sample in family.samples
            ]
        except (LinnetError, ValueError) as error:
            raise EvidenceError(
                f"the metrics of pod {pod} can't be read ({error}): see whether it runs and "
                "answers GET /metrics"
            ) from error


@dataclass(frozen=True)
class Window:
    """What both releases answered from `begun_s` to `seen_s`, Unix time.

    `counted` and `restarts` are each pod's when they were seen last, to tell what comes on top.
    """

    champion_release: str
    candidate_release: str
    begun_s: float
    seen_s: float
    counted: dict[str, Counted]
    restarts: dict[str, int]
    champion: Answered = _NOTHING
    candidate: Answered = _NOTHING

    @classmethod
    def open(cls, counters: Counters, *, champion: str, candidate: str) -> Self:
        """Return the window that begins with these counters."""
        now, restarts = counters.taken_s, {pod.name: pod.restarts for pod in counters.pods}
        return cls(champion, candidate, now, now, counters.counted, restarts).extended(counters)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the window that `to_json` was called on.

        Raises:
            EvidenceError: the values are of no window.
        """
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise EvidenceError(
                f"the window kept of an earlier look can't be read ({error.error_count()} wrong "
                f"values, the first: {error.errors()[0]['msg']}): begin this step's window anew"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        values: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return values

    def extended(self, counters: Counters) -> Self:
        """Return the window up to later counters."""
        return replace(
            self,
            seen_s=counters.taken_s,
            counted=self.counted | counters.counted,
            restarts=self.restarts | {pod.name: pod.restarts for pod in counters.pods},
            champion=self._side(self.champion, self.champion_release, counters),
            candidate=self._side(self.candidate, self.candidate_release, counters),
        )

    def seen(
        self,
        *,
        champion: Answered | None = None,
        replayed: Replayed | None = None,
        total_seconds: float = 0.0,
    ) -> Seen:
        """Return what the judge is to see; `champion` stands in for the window's, for 100 %."""
        return Seen(
            champion=champion or self.champion,
            candidate=self.candidate,
            seconds=self.seen_s - self.begun_s,
            replayed=replayed,
            total_seconds=total_seconds,
        )

    def _side(self, so_far: Answered, release: str, counters: Counters) -> Answered:
        pods = [pod for pod in counters.pods if pod.release == release]
        restarts = sum(max(0, pod.restarts - self.restarts.get(pod.name, 0)) for pod in pods)
        total = so_far
        for pod in pods:
            if pod.name in counters.counted:
                total = _sum(total, self._since(pod.name, counters.counted[pod.name]), 1)
        return replace(
            total,
            restarts=so_far.restarts + restarts,
            ready_pods=sum(pod.ready for pod in pods),
            pods=len(pods),
        )

    def _since(self, pod: str, now: Counted) -> Answered:
        """Return what a pod counted since it was seen last, or since its server started anew."""
        before = self.counted.get(pod)
        if before is None:
            # It counted before the window, and how much is not known: it counts from now on.
            return Answered() if 0.0 < now.started_s < self.begun_s else now.answered
        begun_anew = (
            now.started_s != before.started_s or now.answered.requests < before.answered.requests
        )
        return now.answered if begun_anew else _sum(now.answered, before.answered, -1)


def _sum(one: Answered, other: Answered, sign: int) -> Answered:
    """Return the counts of `one` plus, or minus, those of `other`."""
    return Answered(
        requests=one.requests + sign * other.requests,
        errors=one.errors + sign * other.errors,
        refused=one.refused + sign * other.refused,
        seconds=Histogram(_counts(one.seconds.at_most, other.seconds.at_most, sign)),
        labels=_counts(one.labels, other.labels, sign),
        confidence=Histogram(_counts(one.confidence.at_most, other.confidence.at_most, sign)),
        told=one.told + sign * other.told,
        wrong=one.wrong + sign * other.wrong,
    )


def _counts(one: dict[_Key, int], other: dict[_Key, int], sign: int) -> dict[_Key, int]:
    return {key: one.get(key, 0) + sign * other.get(key, 0) for key in one | other}


def _counted(pod: Pod, samples: Sequence[Sample], model: str) -> Counted:
    of_model = [each for each in samples if each.labels.get("model") == model]
    # The label is model/version: of the release's own model, which may be served by another name.
    mine = [each for each in of_model if each.labels["release"].rpartition("/")[2] == pod.release]
    if not any(each.name == READY for each in mine):
        shown = sorted({each.labels["release"] for each in of_model})
        raise EvidenceError(
            f"pod {pod.name} is ready, but its metrics show no {READY} of model {model}, release "
            f"{pod.release} (releases shown: {', '.join(shown) or 'none'}): see what it serves, "
            "and whether Prometheus, where it is asked, reads this pod"
        )
    started = [each.value for each in samples if each.name == STARTED]
    told = _by(mine, FEEDBACK, "right")
    return Counted(
        max(started, default=0.0),
        Answered(
            requests=_total(mine, lambda protocol, code: True),
            errors=_total(mine, is_error),
            refused=_total(mine, is_refused),
            seconds=_histogram(mine, SECONDS),
            labels=_by(mine, LABELS, "label"),
            confidence=_histogram(mine, CONFIDENCE),
            told=sum(told.values()),
            wrong=told.get("false", 0),
        ),
    )


def _total(samples: Iterable[Sample], counts: Callable[[str, str], bool]) -> int:
    return round(
        sum(
            each.value
            for each in samples
            if each.name == REQUESTS and counts(each.labels["protocol"], each.labels["code"])
        )
    )


def _histogram(samples: Iterable[Sample], name: str) -> Histogram:
    return Histogram({float(bound): n for bound, n in _by(samples, name, "le").items()})


def _by(samples: Iterable[Sample], name: str, label: str) -> dict[str, int]:
    totals: dict[str, int] = {}
    for each in samples:
        if each.name == name:
            key = each.labels[label]
            totals[key] = totals.get(key, 0) + round(each.value)
    return totals
