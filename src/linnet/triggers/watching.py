"""Look at a source and the registry again and again, and start what there is reason for."""

import getpass
import logging
import platform
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from linnet.errors import DriftError, LinnetError
from linnet.stores.connections import Connections
from linnet.stores.registry import RegisteredRelease, Registry
from linnet.triggers.content import Content, content_of
from linnet.triggers.exposition import Exposition
from linnet.triggers.ledger import Entry, Kind, Trigger
from linnet.triggers.starting import Fired, Starter

logger = logging.getLogger(__name__)


class Watching:
    """One model's watch. It keeps nothing that the ledger and the registry don't."""

    def __init__(
        self,
        starter: Starter,
        connections: Connections,
        *,
        workspace: Path,
        exposition: Exposition | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._starter = starter
        self._settings = starter.settings
        self._model = starter.run.model
        self._connections = connections
        self._registry = Registry(connections)
        self._workspace = workspace
        self._exposition = exposition
        self._now = now
        self._by = f"linnet watch, {getpass.getuser()}@{platform.node()}"
        self._content: Content | None = None
        # Keys that the ledger need not be asked about again.
        self._known: set[str] = set()
        self._told: dict[str, str] = {}

    def forever(self) -> None:
        """Look, start, wait, until Ctrl-C or SIGTERM. What can't be done now is tried again."""
        logger.info(
            "watching %s every %g s; triggers are kept in %s",
            *(self._model, self._settings.poll_s, self._starter.ledger.uri),
        )
        while True:
            self.look()
            time.sleep(self._settings.poll_s)

    def look(self) -> list[Fired]:
        """Look once, and fire what there is reason for; return what became of each."""
        fired = []
        for trigger in self._reasons():
            if trigger.key in self._known:
                continue
            try:
                result = self._starter.fire(trigger)
            except LinnetError as error:
                self._tell(trigger.key, "not started", f"{trigger.why}: not started: {error}")
                continue
            fired.append(result)
            if result.outcome != "too soon":
                self._known.add(trigger.key)
            words = f"{trigger.why}: {result.outcome} {result.words}".rstrip()
            self._tell(trigger.key, result.outcome, words)
        return fired

    def _reasons(self) -> Iterator[Trigger]:
        """Yield the triggers that there are now; a place that can't be reached yields none."""
        for find in (self._of_source, self._of_registry, self._of_schedule):
            try:
                yield from find()
            except LinnetError as error:
                self._tell(find.__name__, type(error).__name__, str(error))

    def _of_source(self) -> Iterator[Trigger]:
        content = content_of(self._starter.run.source, self._connections)
        before, self._content = self._content, content
        # Only what was there at the last look too: pictures may still be on their way.
        if content.pictures is not None and content == before:
            trigger = source_trigger(self._starter, content, by=self._by)
            wanted = {"dataset": self._settings.dataset, "annotations": self._settings.annotations}
            if wanted[trigger.kind]:
                yield trigger

    def _of_registry(self) -> Iterator[Trigger]:
        if self._settings.drift is not None:
            self._look_for_drift()
        releases = self._registry.releases(self._model)
        champion = next((one for one in releases if "champion" in one.aliases), None)
        if self._exposition is not None:
            notes = self._registry.notes(self._model)
            self._exposition.show(self._model, champion, notes)
        for release in releases:
            for alias in sorted(set(release.aliases) & set(self._settings.registry)):
                why = f"{_name(release)} got the alias {alias}"
                yield self._trigger("registry", f"registry:{alias}:{release.number}", why)
        if (
            champion is not None
            and self._settings.on_drift
            and champion.tags.get("drift") == "drift"
        ):
            why = champion.tags.get("drift_words", f"drift of {_name(champion)}")
            yield self._trigger("drift", f"drift:{champion.number}", why)

    def _of_schedule(self) -> Iterator[Trigger]:
        if (every_s := self._settings.every_s) is not None:
            begin = datetime.fromtimestamp(self._now() // every_s * every_s, UTC)
            text = begin.isoformat(timespec="seconds")
            yield self._trigger("schedule", f"schedule:{text}", f"the time that began {text}")

    def _trigger(self, kind: Kind, key: str, why: str) -> Trigger:
        return Trigger(self._model, kind, key, self._by, why)

    def _look_for_drift(self) -> None:
        """Look for drift of the champion if the last look at it is too long ago."""
        from linnet.monitoring.drift import look, record

        wanted = self._settings.drift
        release = next(
            (one for one in self._registry.releases(self._model) if "champion" in one.aliases), None
        )
        if wanted is None or release is None:
            return
        looked = release.tags.get("drift_looked")
        if looked and self._now() - datetime.fromisoformat(looked).timestamp() < wanted.every_s:
            return
        folder = self._workspace / "drift" / self._model
        try:
            report = look(
                wanted.source, release.uri, folder, wanted.settings, connections=self._connections
            )
        except DriftError as error:
            self._tell("drift", "no look", str(error))
            return
        record(report, folder, self._connections)

    def _tell(self, about: str, state: str, words: str) -> None:
        """Log what is new about something: a trouble that lasts is told once."""
        if self._told.get(about) != state:
            logger.info("%s", words)
        self._told[about] = state


def source_trigger(starter: Starter, content: Content, *, by: str) -> Trigger:
    """Return the trigger that is a source's content: one key for pictures and labels together."""
    key = f"source:{content.pictures}" + (
        f":{content.annotations}" if content.annotations is not None else ""
    )
    of_source = [e for e in starter.ledger.entries() if e.trigger.key.startswith("source:")]
    same_pictures = bool(of_source) and _pictures(of_source[-1]) == content.pictures
    kind: Kind = "annotations" if same_pictures and content.annotations else "dataset"
    what = "labels" if kind == "annotations" else "pictures"
    why = f"{what} of {starter.run.source.uris} are not those of the last run"
    return Trigger(starter.run.model, kind, key, by, why)


def _pictures(entry: Entry) -> str:
    return entry.trigger.key.split(":")[1]


def _name(release: RegisteredRelease) -> str:
    return f"{release.model} {release.tags.get('release', release.number)}"
