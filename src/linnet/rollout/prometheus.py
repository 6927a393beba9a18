"""What the servers counted, as Prometheus knows it."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import urllib3

from linnet.errors import EvidenceError
from linnet.rollout.evidence import (
    CONFIDENCE,
    FEEDBACK,
    LABELS,
    READY,
    REQUESTS,
    SECONDS,
    STARTED,
    Counters,
    Pod,
    Sample,
)

_STALE_S: Final = 120.0
_NAMES: Final = "|".join((REQUESTS, SECONDS, LABELS, CONFIDENCE, FEEDBACK, READY))

_LABELS: Final = ("pod", "model", "release", "protocol", "code", "le", "label", "right")


@dataclass(frozen=True)
class _Answer:
    """A value of an instant query, and the moment it is of, in Prometheus' Unix time."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float
    at_s: float

    @property
    def pod(self) -> str:
        return dict(self.labels).get("pod", "")


class PrometheusEvidence:
    """Asks Prometheus, where each series of the servers has the labels `namespace` and `pod`."""

    def __init__(
        self,
        address: str,
        *,
        model: str,
        namespace: str,
        pods: Callable[[], Sequence[Pod]],
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._address = address.rstrip("/")
        self._model = model
        self._of_namespace = f'namespace="{namespace}"'
        self._pods = pods
        self._clock = clock
        self._http = urllib3.PoolManager(timeout=timeout_s, retries=False)

    def snapshot(self) -> Counters:
        """Return the counters of all pods as Prometheus read them last.

        Raises:
            EvidenceError: Prometheus doesn't answer, or has not read a ready pod of late.
        """
        pods = self._pods()
        of_model = f'{self._of_namespace},model="{self._model}"'
        read = self._query(f"timestamp({READY}{{{of_model}}})")
        self._check_fresh(pods, read)
        found = self._query(f'{{__name__=~"{_NAMES}",{of_model}}}')
        started = self._query(f"{STARTED}{{{self._of_namespace}}}")
        samples = _by_pod((*found, *started))
        return Counters.of(self._clock(), pods, samples, model=self._model)

    def _check_fresh(self, pods: Sequence[Pod], read: Iterable[_Answer]) -> None:
        ages: dict[str, float] = {}
        for answer in read:
            age = answer.at_s - answer.value
            ages[answer.pod] = min(age, ages.get(answer.pod, age))
        for pod in pods:
            if pod.ready and pod.name not in ages:
                raise EvidenceError(
                    f"Prometheus at {self._address} knows no {READY} of model {self._model} with "
                    f'pod="{pod.name}": if the pod is older than a minute, see the page /targets '
                    "and that the targets' labels include namespace and pod"
                )
            if pod.ready and ages[pod.name] > _STALE_S:
                raise EvidenceError(
                    f"Prometheus at {self._address} read pod {pod.name} last "
                    f"{ages[pod.name]:.0f} s ago: see the page /targets"
                )

    def _query(self, query: str) -> list[_Answer]:
        where = f"Prometheus at {self._address}"
        try:
            response = self._http.request(
                "GET", f"{self._address}/api/v1/query", fields={"query": query}
            )
        except urllib3.exceptions.HTTPError as error:
            raise EvidenceError(
                f"{where} does not answer ({error}): see whether it is up, or leave `prometheus` "
                "out of the settings to read the pods' own metrics"
            ) from error
        try:
            answer = json.loads(response.data)
            if answer["status"] == "success":
                return [_answer(one) for one in answer["data"]["result"]]
            reason = f"{answer.get('errorType')}: {answer.get('error')}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvidenceError(
                f"{where} answers with status {response.status} and not as Prometheus does "
                f"({response.data[:80]!r}): check the address"
            ) from error
        raise EvidenceError(f"{where} refuses {query} with status {response.status}: {reason}")


def _by_pod(answers: Iterable[_Answer]) -> dict[str, list[Sample]]:
    """Return each series once, though two jobs of Prometheus may read the same pod."""
    latest: dict[tuple[str, tuple[tuple[str, str], ...]], _Answer] = {}
    for answer in answers:
        series = (answer.name, answer.labels)
        if series not in latest or answer.value > latest[series].value:
            latest[series] = answer
    samples: dict[str, list[Sample]] = defaultdict(list)
    for answer in latest.values():
        samples[answer.pod].append(Sample(answer.name, dict(answer.labels), answer.value))
    return samples


def _answer(one: dict[str, Any]) -> _Answer:
    at_s, value = one["value"]
    metric = one["metric"]
    labels = tuple((name, str(metric[name])) for name in _LABELS if name in metric)
    return _Answer(str(metric.get("__name__", "")), labels, float(value), float(at_s))
