"""A rollout from its first check to its end, and on from wherever it was interrupted.

The cluster shows where the traffic is; the journal keeps what was under way and what was judged.
Each phase may be entered again: what is done already is found done.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, Self

from pydantic import TypeAdapter

from linnet.errors import (
    ApprovalError,
    EvidenceError,
    ReleaseError,
    RolloutAbortedError,
    RolloutBusyError,
    RolloutError,
    StoreError,
)
from linnet.inference.answers import Rule
from linnet.release.approval import require_approved
from linnet.release.opening import Release, open_release
from linnet.release.samples import Sample, read_samples
from linnet.rollout.cluster import INFERENCE_SERVICES, PODS, Cluster
from linnet.rollout.evidence import Evidence, Pod, PodEvidence, Window
from linnet.rollout.journal import Entry, Journal, Lease, Phase, Record, lease_holder, now
from linnet.rollout.judge import Judgement, judge
from linnet.rollout.pods import is_ready, restarts
from linnet.rollout.preflight import (
    require_access,
    require_candidate,
    require_kserve,
    require_service,
)
from linnet.rollout.prometheus import PrometheusEvidence
from linnet.rollout.route_split import RouteSplit
from linnet.rollout.seen import Replayed
from linnet.rollout.settings import RolloutSettings
from linnet.rollout.smoke import replay, smoke
from linnet.rollout.traffic import Backend, KServeCanary, Shown, Traffic
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry

logger = logging.getLogger(__name__)

Watch = Callable[[Entry], None]

LEASE_S = 15.0
_REPLAYED = TypeAdapter(Replayed | None)


def log_entry(entry: Entry) -> None:
    """Log what a rollout did, for who reads a pod's log; the cluster's record keeps all of it."""
    level = logging.DEBUG if entry.verdict == "hold" else logging.INFO
    logger.log(level, "%d %%, %s: %s", entry.weight, entry.verdict, entry.reason)


@dataclass(frozen=True)
class Status:
    """What the cluster shows of a model, and its present or last rollout."""

    model: str
    shown: Shown
    holder: str | None
    record: Record | None
    previous: Record | None


class _Asked(Exception):
    """Another process asked for the rollout's end."""

    def __init__(self, request: str) -> None:
        super().__init__(request)
        values = json.loads(request)
        self.phase: Phase = "promoting" if values["do"] == "promote" else "aborting"
        self.reason = str(values["reason"])


class Rollouts:
    """The rollouts of one model on one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        model: str,
        settings: RolloutSettings,
        *,
        connections: Connections,
        watch: Watch = lambda entry: None,
        sleep: Callable[[float], None] = time.sleep,
        lease_s: float = LEASE_S,
    ) -> None:
        self._cluster = cluster
        self._model = model
        self._settings = settings
        self._namespace = settings.namespace
        self._connections = connections
        self._registry = Registry(connections)
        self._watch = watch
        self._sleep = sleep
        self._lease_s = lease_s
        self._lease: Lease | None = None
        self._listens = False
        self._journal = Journal(cluster, model, namespace=settings.namespace)
        self._scratch = Path()
        self._opened: dict[str, Release] = {}

    @classmethod
    def connect(
        cls,
        model: str,
        settings: RolloutSettings,
        *,
        connections: Connections,
        kubeconfig: str | None = None,
        context: str | None = None,
        watch: Watch = log_entry,
    ) -> Self:
        """Return the rollouts of a model on the cluster of a kubeconfig, or of this pod."""
        cluster = Cluster.connect(
            kubeconfig=kubeconfig, context=context, patience_s=settings.api_timeout_s
        )
        return cls(cluster, model, settings, connections=connections, watch=watch)

    def start(self, address: str | None = None) -> Record:
        """Roll out a release, or go on with the rollout that was interrupted.

        `address`: a version, `s3://…` or `model@alias`; None: the registry's candidate.

        Raises:
            RolloutAbortedError: the candidate was taken back, with the reasons.
            RolloutBusyError: another process is at it.
            ApprovalError: a person has yet to approve the release, or has refused to.
            RolloutError: it can't start or go on; the traffic is left where the message says.
            LinnetError: another subclass, of the release, the registry or the cluster.
        """
        require_access(self._cluster, self._settings, self._traffic.needs)
        with self._leased():
            record = self._journal.read()
            if record is None or record.finished:
                record = self._begin(address)
            else:
                self._require_same(record, address)
                logger.info(
                    "going on with %s at %s %% (%s)", record.candidate, record.weight, record.phase
                )
            return self._carry_out(record)

    def start_when_approved(self, address: str) -> str:
        """Roll out a release; return the new champion's version, or `waiting` for an approval.

        For pipelines: that a person has yet to approve is how such a run ends, not a failure.

        Raises:
            LinnetError: as `start`, of everything else.
        """
        try:
            return self.start(address).candidate
        except ApprovalError as waits:
            logger.info("%s", waits)
            return "waiting"

    def promote(self) -> Record:
        """Give the candidate all the traffic and make it the champion, without further analysis.

        Raises:
            RolloutError: there is no rollout under way.
        """
        return self._command("promote", "promoted by hand")

    def abort(self, reason: str) -> Record:
        """Take the candidate back, also one that was put there without a rollout.

        Raises:
            RolloutError: there is no candidate.
        """
        return self._command("abort", reason)

    def status(self) -> Status:
        """Return what is so now."""
        return Status(
            self._model,
            self._traffic.show(),
            lease_holder(self._cluster, self._model, namespace=self._namespace),
            self._journal.read(),
            self._journal.previous(),
        )

    def follow(self) -> Record:
        """Hand every entry of the rollout to `watch` until its end, and return the last record.

        Raises:
            RolloutError: there is none, or nobody carries it on.
        """
        shown: tuple[Entry, ...] = ()
        alive = time.monotonic()
        lease = None
        while True:
            record = self._journal.read()
            if record is None:
                raise RolloutError(f"{self._model} never had a rollout in {self._namespace}")
            for entry in record.entries:
                if entry not in shown:
                    self._watch(entry)
            shown = record.entries
            if record.finished:
                return record
            seen = self._lease_seen()
            if seen != lease:
                lease, alive = seen, time.monotonic()
            if seen is None or time.monotonic() - alive > 2 * self._lease_s:
                raise RolloutError(
                    f"the rollout of {record.candidate} stands at {record.weight} % "
                    f"({record.phase}) and no process carries it on: `linnet rollout start "
                    f"{self._model}` does"
                )
            self._sleep(min(1.0, self._settings.analysis.poll_s))

    @cached_property
    def _traffic(self) -> Traffic:
        made = KServeCanary if self._settings.traffic == "canary" else RouteSplit
        return made(self._cluster, self._model, self._settings, sleep=self._pause)

    @contextmanager
    def _leased(self) -> Iterator[None]:
        lease = Lease(
            self._cluster,
            self._model,
            namespace=self._namespace,
            duration_s=self._lease_s,
            sleep=self._sleep,
        )
        with lease, TemporaryDirectory(prefix="linnet-rollout-") as scratch:
            self._lease, self._scratch, self._opened = lease, Path(scratch), {}
            try:
                yield
            finally:
                self._lease = None

    def _command(self, do: str, reason: str) -> Record:
        try:
            with self._leased():
                return self._obey(do, reason)
        except RolloutBusyError:
            if self._journal.read() is None:
                raise
            logger.info("asking the process that carries the rollout out to %s", do)
            self._journal.request(json.dumps({"do": do, "reason": reason}))
        return self.follow()

    def _obey(self, do: str, reason: str) -> Record:
        record = self._journal.read()
        if record is None or record.finished:
            shown = self._traffic.show()
            if do == "promote" or shown.candidate is None or shown.champion is None:
                raise RolloutError(
                    f"{self._model} has no candidate in {self._namespace}: `linnet rollout start "
                    f"{self._model}` begins a rollout"
                )
            record = self._record(shown.candidate.version, shown.candidate.uri, shown)
            self._journal.begin(record)
        asked = _Asked(json.dumps({"do": do, "reason": reason}))
        try:
            return self._carry_out(self._turn(record, asked))
        except RolloutAbortedError:
            if do == "abort":
                return self._journal.read() or record
            raise

    def _begin(self, address: str | None) -> Record:
        """Check everything, write the first record and return it. Nothing is changed before."""
        require_kserve(self._cluster, self._settings)
        service = self._cluster.find(INFERENCE_SERVICES, self._model, namespace=self._namespace)
        require_service(service, self._settings)
        shown = self._traffic.show()
        release = self._open(self._resolve(address, shown.champion))
        require_candidate(release, shown, self._model)
        required = release.manifest.get("approval") == "required"
        self._require_approved(release.version, release.uri, required=required)
        if shown.champion is not None:
            self._evidence(shown).snapshot()
        self._registry.register(self._model, release.uri)
        if self._registry.resolve(self._model, "champion") != release.uri:
            self._registry.move(self._model, "candidate", release.uri)
        record = self._record(release.version, release.uri, shown)
        self._journal.begin(record)
        return self._noted(record, "start", f"{release.uri} beside {record.champion or 'nothing'}")

    def _require_approved(self, version: str, uri: str, *, required: bool = False) -> None:
        known = {one.uri: one for one in self._registry.releases(self._model)}
        require_approved(self._model, version, known.get(uri), required=required)

    def _record(self, version: str, uri: str, shown: Shown) -> Record:
        return Record(
            model=self._model,
            candidate=version,
            candidate_uri=uri,
            champion=shown.champion.version if shown.champion else None,
            champion_uri=shown.champion.uri if shown.champion else None,
            phase="adding",
            started=time.time(),
            weight=shown.weight,
            replicas=shown.replicas,
        )

    def _require_same(self, record: Record, address: str | None) -> None:
        if address is None:
            return
        uri = self._resolve(address, self._traffic.show().champion)
        if uri.rstrip("/") != record.candidate_uri.rstrip("/") and record.candidate != address:
            raise RolloutError(
                f"a rollout of {record.candidate} is under way at {record.weight} % "
                f"({record.phase}): `linnet rollout start {self._model}` goes on with it, "
                f"`linnet rollout abort {self._model} --reason …` ends it"
            )

    def _carry_out(self, record: Record) -> Record:
        """Go through the phases to the end.

        Raises:
            RolloutAbortedError: the end is that the candidate was taken back.
        """
        phases: dict[Phase, Callable[[Record], Record]] = {
            "adding": self._add,
            "dark": self._dark,
            "weights": self._weigh,
            "promoting": self._promote,
            "aborting": self._take_back,
        }
        while not record.finished:
            self._listens = record.phase in ("adding", "dark", "weights")
            try:
                record = phases[record.phase](record)
            except _Asked as asked:
                record = self._turn(self._journal.read() or record, asked)
            finally:
                self._listens = False
        if record.phase == "aborted":
            _raise_aborted(record)
        return record

    def _add(self, record: Record) -> Record:
        shown = self._traffic.show()
        if record.champion is None:
            self._traffic.create(record.candidate, record.candidate_uri)
            return self._finished(record, "the first release of its model serves")
        if shown.champion is None:
            raise RolloutError(f"the InferenceService {self._model} is gone: nothing serves")
        try:
            self._traffic.add(record.candidate, record.candidate_uri, replicas=record.replicas)
        except RolloutBusyError:
            raise
        except RolloutError as error:
            return self._against(record, str(error))
        record = replace(record, phase="dark", weight=0)
        return self._noted(record, "added", f"{record.candidate} is ready at 0 %")

    def _dark(self, record: Record) -> Record:
        if not self._settings.dark:
            return self._advance(record, self._settings.steps[0])
        candidate = self._sides(record)[1]
        release = self._open(record.candidate_uri)
        problems = smoke(
            self._cluster,
            candidate,
            read_samples(release.samples_path),
            release.manifest["classes"],
            model=self._model,
            namespace=self._namespace,
            rule=Rule.of(release.manifest),
        )
        if problems:
            return self._against(record, "smoke test: " + "; ".join(problems))
        record = replace(record, phase="weights", window=self._open_window(record))
        return self._noted(record, "smoke", "every pod answers the release's samples rightly")

    def _weigh(self, record: Record) -> Record:
        """Judge once at the present weight, and do what follows."""
        weight = self._shown_weight(record)
        if weight is None:
            return self._against(record, "the candidate was taken away by another")
        if weight != record.weight or not record.window:
            self._traffic.set_weight(weight, replicas=record.replicas)
            record = replace(record, weight=weight, window=self._open_window(record))
        judgement, record = self._judged(record)
        ends: dict[str, Phase] = {"abort": "aborting", "done": "promoting"}
        if judgement.verdict in ends:
            record = replace(record, phase=ends[judgement.verdict], reason=judgement.reason)
        checks = tuple(asdict(check) for check in judgement.checks)
        record = self._noted(record, judgement.verdict, judgement.reason, checks=checks)
        if judgement.verdict in ends:
            return record
        if judgement.verdict == "advance":
            return self._advance(record, judgement.weight)
        if judgement.overdue:
            raise RolloutError(
                f"{record.candidate} stays at {weight} %: {judgement.reason}. `linnet rollout "
                f"promote {self._model}` or `linnet rollout abort {self._model} --reason …` ends it"
            )
        self._pause(self._settings.analysis.poll_s)
        return record

    def _judged(self, record: Record) -> tuple[Judgement, Record]:
        """Return the judgement on what the window has seen by now, and the record that keeps it."""
        try:
            window = Window.from_json(record.window["window"]).extended(
                self._evidence(self._traffic.show()).snapshot()
            )
        except EvidenceError as error:
            return self._blind(record, error), record
        before = record.window.get("before")
        seen = window.seen(
            champion=Window.from_json(before).champion if before and record.weight == 100 else None,
            replayed=_REPLAYED.validate_python(record.window.get("replayed")),
            total_seconds=time.time() - record.started,
        )
        kept = {**record.window, "window": window.to_json()}
        return judge(record.weight, seen, self._settings), replace(record, window=kept)

    def _blind(self, record: Record, error: EvidenceError) -> Judgement:
        """Return what follows when there is no evidence: nothing, until the time is over."""
        reason = f"no evidence: {error}"
        if time.time() - record.started <= self._settings.timeout_s:
            return Judgement("hold", record.weight, (), reason)
        if self._settings.on_timeout == "abort":
            return Judgement("abort", 0, (), f"the rollout's time is over and there is {reason}")
        return Judgement("hold", record.weight, (), reason, overdue=True)

    def _advance(self, record: Record, weight: int) -> Record:
        try:
            self._traffic.set_weight(weight, replicas=record.replicas)
        except RolloutBusyError:
            raise
        except RolloutError as error:
            return self._against(record, str(error))
        record = replace(
            record,
            phase="weights",
            weight=weight,
            window=self._open_window(record),
        )
        return self._noted(record, "weight", f"{record.candidate} has {weight} % of the traffic")

    def _promote(self, record: Record) -> Record:
        shown = self._traffic.show()
        if self._shown_weight(record) is None and not self._serves(shown, record):
            return self._against(record, "the candidate was taken away by another")
        if shown.candidate is not None:
            # An approval may have been withdrawn since the rollout began.
            try:
                self._require_approved(record.candidate, record.candidate_uri)
            except ApprovalError as error:
                return self._against(record, str(error))
            self._traffic.add(record.candidate, record.candidate_uri, replicas=record.replicas)
        self._traffic.promote(replicas=record.replicas)
        return self._finished(replace(record, weight=100), record.reason)

    def _finished(self, record: Record, reason: str) -> Record:
        """Move the registry's aliases and close the record."""
        self._registry.register(self._model, record.candidate_uri)
        self._registry.move(self._model, "champion", record.candidate_uri)
        self._drop_candidate(record)
        self._registry.tag(self._model, record.candidate_uri, {"rollout": "promoted"})
        if record.champion_uri is not None:
            tags = {"rollout": "replaced", "replaced_by": record.candidate}
            self._registry.tag(self._model, record.champion_uri, tags)
        record = replace(record, phase="done", reason=reason, window={})
        return self._noted(record, "promoted", f"{record.candidate} is the champion: {reason}")

    def _take_back(self, record: Record) -> Record:
        shown = self._traffic.show()
        if record.champion is None:
            self._traffic.delete()
        elif self._serves(shown, record):
            return self._finished(record, "it was promoted before it could be taken back")
        elif shown.candidate is None or shown.candidate.version == record.candidate:
            self._traffic.remove(replicas=record.replicas)
        self._drop_candidate(record)
        tags = {"rollout": "aborted", "rollout_reason": record.reason[:4000]}
        self._registry.tag(self._model, record.candidate_uri, tags)
        record = replace(record, phase="aborted", weight=0, window={})
        left = f"{record.champion} has all the traffic" if record.champion else "nothing serves"
        return self._noted(record, "aborted", left)

    def _drop_candidate(self, record: Record) -> None:
        if self._registry.resolve(self._model, "candidate") == record.candidate_uri:
            self._registry.remove(self._model, "candidate")

    def _turn(self, record: Record, asked: _Asked) -> Record:
        self._journal.request(None)
        if asked.phase == "aborting":
            return self._against(record, asked.reason)
        record = replace(record, phase="promoting", reason=asked.reason)
        return self._noted(record, "promote", asked.reason)

    def _against(self, record: Record, reason: str) -> Record:
        record = replace(record, phase="aborting", reason=reason)
        return self._noted(record, "abort", reason)

    def _noted(
        self, record: Record, verdict: str, reason: str, *, checks: tuple[dict[str, str], ...] = ()
    ) -> Record:
        """Write the record with one more entry and return it."""
        entry = Entry(now(), record.weight, verdict, reason, checks)
        record = record.with_entry(entry)
        self._journal.write(record)
        self._watch(record.entries[-1])
        return record

    def _shown_weight(self, record: Record) -> int | None:
        shown = self._traffic.show()
        if shown.candidate is None or shown.candidate.version != record.candidate:
            return None
        return shown.weight

    def _serves(self, shown: Shown, record: Record) -> bool:
        """Return whether the candidate is the only one already."""
        return (
            shown.champion is not None
            and shown.candidate is None
            and shown.champion.version == record.candidate
        )

    def _sides(self, record: Record) -> tuple[Backend, Backend]:
        shown = self._traffic.show()
        if shown.champion is None or shown.candidate is None:
            raise RolloutError(
                f"{self._model} has no candidate beside its champion any more: another one changed "
                f"it; `linnet rollout status {self._model}` shows what is there"
            )
        return shown.champion, shown.candidate

    def _open_window(self, record: Record) -> dict[str, Any]:
        """Replay pictures on both sides, then open the window that the traffic is judged in."""
        champion, candidate = self._sides(record)
        replayed = self._replay(record, champion, candidate)
        counters = self._patient_snapshot()
        window = Window.open(counters, champion=champion.version, candidate=candidate.version)
        return {
            "window": window.to_json(),
            "before": (record.window or {}).get("window"),
            "replayed": _REPLAYED.dump_python(replayed, mode="json"),
        }

    def _patient_snapshot(self) -> Any:
        """Return counters as soon as there are any: new pods may not show theirs at once."""
        deadline = time.monotonic() + self._settings.settle_timeout_s
        while True:
            try:
                return self._evidence(self._traffic.show()).snapshot()
            except EvidenceError:
                if time.monotonic() > deadline:
                    raise
            self._pause(min(1.0, self._settings.analysis.poll_s))

    def _replay(self, record: Record, champion: Backend, candidate: Backend) -> Replayed | None:
        try:
            release = self._open(record.candidate_uri)
            samples: dict[bytes, Sample] = {
                sample.encoded: sample for sample in read_samples(release.samples_path)
            }
        except (StoreError, ReleaseError) as error:
            logger.warning("no pictures are replayed: %s", error)
            return None
        return replay(
            self._cluster,
            champion,
            candidate,
            tuple(samples.values()),
            release.manifest["classes"],
            model=self._model,
            namespace=self._namespace,
        )

    def _evidence(self, shown: Shown) -> Evidence:
        def pods() -> Sequence[Pod]:
            return [
                Pod(pod["metadata"]["name"], backend.version, is_ready(pod), restarts(pod))
                for backend in (shown.champion, shown.candidate)
                if backend is not None
                for pod in self._cluster.list(
                    PODS, namespace=self._namespace, labels=backend.labels
                )
            ]

        if self._settings.prometheus is not None:
            return PrometheusEvidence(
                self._settings.prometheus,
                model=self._model,
                namespace=self._namespace,
                pods=pods,
            )
        return PodEvidence(self._model, pods=pods, scrape=self._scrape)

    def _scrape(self, pod: str) -> str:
        status, answer = self._cluster.ask_pod(pod, "metrics", namespace=self._namespace)
        text = answer.decode(errors="replace")
        if status != 200:
            raise EvidenceError(f"status {status}: {text[:200]}")
        return text

    def _resolve(self, address: str | None, champion: Backend | None) -> str:
        """Return the address of a release: the registry knows aliases and versions.

        A version that it doesn't know is looked for where the champion is.
        """
        if address is None:
            found = self._registry.resolve(self._model, "candidate")
            if found is None and champion is None:
                found = self._registry.champion(self._model)
            if found is None:
                raise RolloutError(
                    f"no release of {self._model} is the candidate in MLflow at "
                    f"{self._connections.tracking_shown}: name a release, `linnet releases "
                    f"{self._model}` lists them"
                )
            return found
        if "@" in address and "://" not in address:
            model, _, alias = address.partition("@")
            found = self._registry.resolve(model, alias)
            if found is None:
                raise RolloutError(
                    f"no release of {model} has the alias {alias} in MLflow at "
                    f"{self._connections.tracking_shown}: `linnet releases` lists what there is"
                )
            return found
        if "/" in address:
            return address
        for release in self._registry.releases(self._model):
            if release.uri.rstrip("/").rpartition("/")[2] == address:
                return release.uri
        beside = champion.uri.rstrip("/").rpartition("/")[0] if champion is not None else ""
        return f"{beside or f'{self._connections.release_root}/{self._model}'}/{address}"

    def _open(self, uri: str) -> Release:
        if uri not in self._opened:
            self._opened[uri] = open_release(
                uri, scratch=self._scratch, connections=self._connections
            )
        return self._opened[uri]

    def _pause(self, seconds: float) -> None:
        """Sleep; then see whether the lease is still ours and another process asks for the end."""
        self._sleep(seconds)
        if self._lease is not None:
            self._lease.require()
        if self._listens:
            request = self._journal.requested()
            if request is not None:
                raise _Asked(request)

    def _lease_seen(self) -> object:
        from linnet.rollout.cluster import LEASES

        name = f"linnet-rollout-{self._model}"
        lease = self._cluster.find(LEASES, name, namespace=self._namespace)
        if lease is None or not lease["spec"].get("holderIdentity"):
            return None
        return json.dumps(lease["spec"], sort_keys=True)


def _raise_aborted(record: Record) -> NoReturn:
    left = f"{record.champion} has all the traffic" if record.champion else "nothing serves"
    raise RolloutAbortedError(
        f"{record.candidate} of {record.model} was taken back, {left}: {record.reason}"
    )
