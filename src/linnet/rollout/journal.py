"""What a rollout remembers outside its process: a ConfigMap, and a Lease that lets one work.

Both are called `linnet-rollout-<model>`. The cluster's own objects say where the traffic is; the
journal says what the rollout was doing, since when, and everything it judged.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from linnet.errors import ClusterConflictError, ClusterError, RolloutBusyError, RolloutError
from linnet.rollout.cluster import CONFIG_MAPS, LEASES, Cluster, Object

logger = logging.getLogger(__name__)

Phase = Literal["adding", "dark", "weights", "promoting", "aborting", "done", "aborted"]
FINISHED: tuple[Phase, ...] = ("done", "aborted")

_MOST_ENTRIES = 400
_RENEWALS = 3


@dataclass(frozen=True)
class Entry:
    """One line of the log: what was decided at a weight, and why. Times are UTC, ISO 8601.

    Judgements to hold that look at the same things with the same results are one entry: `times`
    says how many, `until` when the last was, whose words these are.
    """

    at: str
    weight: int
    verdict: str
    reason: str
    checks: tuple[dict[str, str], ...] = ()
    times: int = 1
    until: str = ""


@dataclass(frozen=True)
class Record:
    """A rollout's state. `window` is what the evidence needs to go on after a restart.

    `replicas`: the model's pods, all in all, as the rollout found them.
    """

    model: str
    candidate: str
    candidate_uri: str
    champion: str | None
    champion_uri: str | None
    phase: Phase
    started: float
    weight: int = 0
    replicas: int = 1
    reason: str = ""
    window: dict[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()

    @property
    def finished(self) -> bool:
        """Return whether there is nothing left to do."""
        return self.phase in FINISHED

    def with_entry(self, entry: Entry) -> Self:
        """Return the record with one more line, merged with the last one where they are alike."""
        entries = self.entries
        if entries and _alike(entries[-1], entry):
            last = entries[-1]
            entry = replace(entry, at=last.at, until=entry.at, times=last.times + 1)
            entries = entries[:-1]
        return replace(self, entries=(*entries, entry)[-_MOST_ENTRIES:])

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote, without fields that this version doesn't know.

        Raises:
            RolloutError: it is damaged.
        """
        try:
            values = json.loads(text)
            known = {one.name for one in fields(cls)}
            entries = tuple(
                Entry(**{**entry, "checks": tuple(entry["checks"])}) for entry in values["entries"]
            )
            kept = {key: value for key, value in values.items() if key in known}
            return cls(**{**kept, "entries": entries})
        except (ValueError, KeyError, TypeError) as error:
            raise RolloutError(
                f"the rollout's journal is damaged ({error!r}): see what serves with `kubectl get "
                "inferenceservices`, then delete the ConfigMap and start again"
            ) from error


class Journal:
    """The ConfigMap of one model's rollouts: the present or last one, and the one before."""

    def __init__(self, cluster: Cluster, model: str, *, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self.name = f"linnet-rollout-{model}"

    def read(self) -> Record | None:
        """Return the record, or None when the model never had a rollout."""
        text = self._data().get("rollout.json")
        return None if text is None else Record.from_json(text)

    def previous(self) -> Record | None:
        """Return the record of the rollout before."""
        text = self._data().get("previous.json")
        return None if text is None else Record.from_json(text)

    def begin(self, record: Record) -> None:
        """Keep the record of a new rollout; the last one becomes the one before."""
        data: dict[str, str | None] = {"rollout.json": record.to_json(), "request": None}
        last = self._data().get("rollout.json")
        if last is not None:
            data["previous.json"] = last
        self._write(data)

    def write(self, record: Record) -> None:
        """Keep the record."""
        self._write({"rollout.json": record.to_json()})

    def request(self, words: str | None) -> None:
        """Ask whoever is rolling out to do something else, or take that back."""
        self._write({"request": words})

    def requested(self) -> str | None:
        """Return what another process asked for."""
        return self._data().get("request")

    def _data(self) -> dict[str, str]:
        found = self._cluster.find(CONFIG_MAPS, self.name, namespace=self._namespace)
        return dict((found or {}).get("data") or {})

    def _write(self, data: dict[str, str | None]) -> None:
        if self._cluster.find(CONFIG_MAPS, self.name, namespace=self._namespace) is None:
            body = {
                "apiVersion": CONFIG_MAPS.api,
                "kind": "ConfigMap",
                "metadata": {
                    "name": self.name,
                    "labels": {"app.kubernetes.io/managed-by": "linnet"},
                },
                "data": {key: value for key, value in data.items() if value is not None},
            }
            try:
                self._cluster.create(CONFIG_MAPS, body, namespace=self._namespace)
                return
            except ClusterConflictError:
                logger.debug("%s was there already", self.name)
        self._cluster.patch(CONFIG_MAPS, self.name, {"data": data}, namespace=self._namespace)


class Lease:
    """The right to move one model's traffic, renewed by a thread while it is held.

    Whether another holder lives is seen by watching it renew, so clocks need not agree.
    """

    def __init__(
        self,
        cluster: Cluster,
        model: str,
        *,
        namespace: str,
        duration_s: float = 15.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster = cluster
        self._model = model
        self._namespace = namespace
        self._duration_s = duration_s
        self._sleep = sleep
        self._name = f"linnet-rollout-{model}"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._renewed = 0.0
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    def __enter__(self) -> Self:
        """Take the lease; a holder that doesn't renew for its duration is taken for dead.

        Raises:
            RolloutBusyError: another one holds it and renews it.
        """
        self._take()
        self._thread = threading.Thread(target=self._keep, name=self._name, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            with self._lock:
                lease = self._read()
                if lease is not None and _holder(lease) == self.holder:
                    self._hold(lease, "")
        except ClusterError as error:
            logger.warning("the lease %s could not be given back: %s", self._name, error)

    def require(self) -> None:
        """Raise unless the lease is still ours; asks again when the last renewal is long ago.

        Raises:
            RolloutBusyError: another one took it.
        """
        if time.monotonic() - self._renewed > self._duration_s / 2:
            self._renew()

    def _take(self) -> None:
        seen: tuple[str, str] | None = None
        watched_since = time.monotonic()
        while True:
            lease = self._read()
            try:
                if lease is None:
                    self._create()
                    return
                now = (_holder(lease), str(lease["spec"].get("renewTime")))
                stale = time.monotonic() - watched_since > _duration(lease)
                if not now[0] or now[0] == self.holder or (now == seen and stale):
                    self._hold(lease, self.holder)
                    return
            except ClusterConflictError:
                seen = None
                continue
            if seen is not None and now != seen:
                raise RolloutBusyError(
                    f"{now[0]} is rolling out {self._model} (it renewed its lease at {now[1]}): "
                    f"follow it with `linnet rollout watch {self._model}`"
                )
            if seen is None:
                seen, watched_since = now, time.monotonic()
                logger.info("%s holds the lease of %s: seeing whether it lives", now[0], self._name)
            self._sleep(self._duration_s / 10)

    def _keep(self) -> None:
        while not self._stop.wait(self._duration_s / _RENEWALS):
            try:
                self._renew()
            except RolloutBusyError:
                return
            except ClusterError as error:
                logger.debug("the lease %s was not renewed: %s", self._name, error)

    def _renew(self) -> None:
        with self._lock:
            lease = self._read()
            holder = "" if lease is None else _holder(lease)
            if lease is None:
                self._create()
            elif holder == self.holder:
                try:
                    self._hold(lease, self.holder)
                except ClusterConflictError:
                    holder = _holder(self._read() or {"spec": {}})
            if lease is not None and holder != self.holder:
                raise RolloutBusyError(
                    f"{holder or 'another process'} took over the rollout of {self._model}: this "
                    "one stops and leaves the traffic as it is"
                )

    def _read(self) -> Object | None:
        return self._cluster.find(LEASES, self._name, namespace=self._namespace)

    def _create(self) -> None:
        body = {
            "apiVersion": LEASES.api,
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": self._spec(self.holder),
        }
        self._cluster.create(LEASES, body, namespace=self._namespace)
        self._renewed = time.monotonic()

    def _hold(self, lease: Object, holder: str) -> None:
        self._cluster.replace(
            LEASES, {**lease, "spec": self._spec(holder)}, namespace=self._namespace
        )
        self._renewed = time.monotonic()

    def _spec(self, holder: str) -> Object:
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._duration_s)),
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }


def lease_holder(cluster: Cluster, model: str, *, namespace: str) -> str | None:
    """Return who holds the lease of a model's rollout, alive or not, or None."""
    found = cluster.find(LEASES, f"linnet-rollout-{model}", namespace=namespace)
    return None if found is None else _holder(found) or None


def now() -> str:
    """Return the time of an entry."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _holder(lease: Object) -> str:
    return str(lease["spec"].get("holderIdentity") or "")


def _duration(lease: Object) -> float:
    return float(lease["spec"].get("leaseDurationSeconds") or 15)


def _alike(one: Entry, other: Entry) -> bool:
    def what(entry: Entry) -> list[Any]:
        checks = [(check["name"], check["verdict"]) for check in entry.checks]
        return [entry.weight, entry.verdict, checks, entry.checks == () and entry.reason]

    return one.verdict == "hold" and what(one) == what(other)
