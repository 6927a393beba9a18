"""Which triggers started what: a numbered list that any number of processes may append to.

It lies beside the model's releases, in a folder or in S3. An entry's number is taken by a
conditional put, so of several processes that saw the same list only one appends, and the others
look again: what is decided from the list, that a trigger is new and not too soon, stays true.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from linnet.errors import StoreAbsentError, TriggerError
from linnet.stores.connections import Connections
from linnet.stores.objects import open_store

logger = logging.getLogger(__name__)

Kind = Literal["dataset", "annotations", "drift", "schedule", "registry", "manual"]
KINDS: tuple[Kind, ...] = get_args(Kind)
State = Literal["claimed", "started", "released", "refused", "failed", "not started", "interrupted"]

FOLDER = ".triggers"
# After so long, a process that claimed a trigger and started nothing is taken for dead.
CLAIM_S = 900.0
_TRIES = 100
# What started nothing, or stopped half way, may be tried again by the same trigger.
_VOID: tuple[State, ...] = ("not started", "interrupted")


@dataclass(frozen=True)
class Trigger:
    """A reason to run. Two with the same `key` are the same; `by` and `why` are for people."""

    model: str
    kind: Kind
    key: str
    by: str
    why: str


@dataclass(frozen=True)
class Entry:
    """A trigger that was let through, and what came of it; times in seconds since 1970."""

    number: int
    trigger: Trigger
    at: float
    state: State = "claimed"
    run: str = ""
    words: str = ""
    ended: float | None = None

    @property
    def counts(self) -> bool:
        """Return whether it stands in the way of the same trigger, and of the next one's time."""
        abandoned = self.state == "claimed" and time.time() - self.at > CLAIM_S
        return self.state not in _VOID and not abandoned


@dataclass(frozen=True)
class Claim:
    """What became of a trigger: `number` of the entry that is now ours, or why there is none."""

    outcome: Literal["claimed", "duplicate", "too soon"]
    number: int
    words: str = field(default="", compare=False)


class Ledger:
    """The triggers of one model."""

    def __init__(self, model: str, connections: Connections) -> None:
        """Open the list, which need not be there yet.

        Raises:
            TriggerError: nothing says where releases lie.
        """
        if connections.release_root is None:
            raise TriggerError(
                "nothing says where releases lie, and triggers are kept beside them: set "
                "LINNET_RELEASE_ROOT to a folder or s3://bucket/prefix"
            )
        self._store, prefix = open_store(connections.release_root, connections)
        self._prefix = "/".join(filter(None, (prefix, model, FOLDER)))

    @property
    def uri(self) -> str:
        """Return where the list is."""
        return self._store.uri(self._prefix)

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first.

        Raises:
            TriggerError: one can't be read.
            StoreError: or a subclass: the store can't be reached or denies.
        """
        try:
            keys = {entry.key for entry in self._store.entries(self._prefix)}
        except StoreAbsentError:
            return []
        numbers = sorted(key for key in keys if key.endswith(".json"))
        return [
            self._entry(key, self._outcome_key(key) if self._outcome_key(key) in keys else None)
            for key in numbers
        ]

    def claim(self, trigger: Trigger, *, at_least_s: float) -> Claim:
        """Append a trigger unless the same was there already or the last one was too recent.

        Of ten processes with one trigger at once, one gets `claimed` and nine `duplicate`.

        Raises:
            TriggerError: so many others append that there was no turn.
            StoreError: or a subclass: the store can't be reached or denies.
        """
        for _ in range(_TRIES):
            known = self.entries()
            if (refusal := _refusal(trigger, known, at_least_s)) is not None:
                return refusal
            number = known[-1].number + 1 if known else 1
            content = {"number": number, "at": time.time(), "trigger": asdict(trigger)}
            if self._store.create(self._key(number), _encoded(content)):
                logger.info(
                    "%s: %s (%s, by %s)", trigger.model, trigger.why, trigger.kind, trigger.by
                )
                return Claim("claimed", number)
        raise TriggerError(f"{self.uri}: no turn to append in {_TRIES} tries: try again later")

    def note(self, number: int, state: State, *, run: str = "", words: str = "") -> None:
        """Say what has become of an entry; the last word counts."""
        content = {"state": state, "run": run, "words": words, "ended": time.time()}
        self._store.write(self._outcome_key(self._key(number)), _encoded(content))

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number:06}.json"

    def _outcome_key(self, key: str) -> str:
        return f"{key.removesuffix('.json')}.outcome"

    def _entry(self, key: str, outcome: str | None) -> Entry:
        try:
            content = json.loads(self._store.read(key))
            made = {} if outcome is None else json.loads(self._store.read(outcome))
            return Entry(
                number=content["number"],
                trigger=Trigger(**content["trigger"]),
                at=content["at"],
                **made,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TriggerError(
                f"{self._store.uri(key)} can't be read ({error!r}): put it right or remove it with "
                "its .outcome; then the same trigger may start a run again"
            ) from error


def _refusal(trigger: Trigger, known: Sequence[Entry], at_least_s: float) -> Claim | None:
    counting = [entry for entry in known if entry.counts]
    for entry in counting:
        if entry.trigger.key == trigger.key:
            words = f"{trigger.key} was let through already: number {entry.number}, {entry.state}"
            return Claim("duplicate", entry.number, words)
    # A clock that is ahead of ours holds nothing up for longer than the setting says.
    since = min((time.time() - entry.at for entry in counting), default=at_least_s)
    wait_s = at_least_s - max(0.0, since)
    if wait_s > 0:
        words = (
            f"the last trigger was {max(0.0, since):.0f} s ago: not before {wait_s:.0f} s from now"
        )
        return Claim("too soon", counting[-1].number, words)
    return None


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
