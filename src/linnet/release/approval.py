"""A person's yes between a release and its traffic, kept with the release in the registry.

The tag `approval` of MLflow's model version decides, so it can be set there too; `approval_by`,
`approval_at` and `approval_reason` tell of the last decision, `approval_history` of all, with
reasons as far as there is room.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from linnet.errors import ApprovalError, ReleaseError
from linnet.stores.connections import Connections
from linnet.stores.registry import RegisteredRelease, Registry

logger = logging.getLogger(__name__)

Decision = Literal["approved", "refused", "withdrawn"]

PENDING = "pending"
_HISTORY_CHARACTERS = 4000
_REASON_CHARACTERS = 500


@dataclass(frozen=True)
class Approval:
    """A decision on a release: by whom, when (UTC in ISO 8601) and why."""

    model: str
    version: str
    state: Decision
    by: str
    at: str
    reason: str


def decide(
    model: str,
    version: str,
    decision: Decision,
    *,
    by: str,
    reason: str = "",
    connections: Connections,
) -> Approval:
    """Record a decision on a registered release, named by its version or alias.

    The first release of a model becomes its champion with its approval, as it would have done
    without the need of one. What is decided so already stays as it was decided.

    Raises:
        ReleaseError: no such release is registered.
        ApprovalError: what was approved is to be refused, or what was not to be withdrawn.
        TrackingError: the registry can't be reached.
    """
    registry = Registry(connections)
    found = _find(registry, model, version)
    state = state_of(found.tags)
    name = found.tags.get("release", str(found.number))
    if state == decision:
        logger.info("%s %s is %s already", model, name, decision)
        return _kept(model, name, decision, found.tags)
    if decision == "refused" and state == "approved":
        raise ApprovalError(f"{model} {name} is {_told(found.tags)}: withdraw that (--withdraw)")
    if decision == "withdrawn" and state != "approved":
        raise ApprovalError(
            f"{model} {name} is {state or 'in no need of approval'}, so there is no approval to "
            "withdraw: refuse it (--refuse)"
        )
    made = Approval(
        model, name, decision, by, datetime.now(UTC).isoformat(timespec="seconds"), reason
    )
    registry.tag(model, found.uri, _tags(made, found.tags))
    if decision == "approved" and registry.champion(model) is None:
        registry.move(model, "champion", found.uri)
        if "candidate" in found.aliases:
            registry.remove(model, "candidate")
    return made


def state_of(tags: Mapping[str, str]) -> str | None:
    """Return what the registry says of a release's approval, None when nothing."""
    return tags.get("approval", "").strip().lower() or None


def require_approved(
    model: str, version: str, registered: RegisteredRelease | None, *, required: bool
) -> None:
    """Check that nothing is in the way of a release's traffic.

    `required` is what the release itself says, for one of which the registry says nothing.

    Raises:
        ApprovalError: it waits for an approval, or was refused one.
    """
    tags = {} if registered is None else registered.tags
    state = state_of(tags) or (PENDING if required else "approved")
    if state == "approved":
        return
    if state == PENDING:
        raise ApprovalError(
            f"{model} {version} waits for a person's approval: `linnet approve {model} {version}` "
            "gives it, and the rollout can be started again"
        )
    raise ApprovalError(
        f"{model} {version} is not approved, it is {_told(tags)}: `linnet approve {model} "
        f"{version}` changes that, or roll out another release"
    )


def _find(registry: Registry, model: str, version: str) -> RegisteredRelease:
    known = registry.releases(model)
    for release in known:
        if version in (release.tags.get("release"), str(release.number), *release.aliases):
            return release
    names = ", ".join(release.tags.get("release", str(release.number)) for release in known)
    raise ReleaseError(
        f"no release {version} of {model} is registered in MLflow at "
        f"{registry.connections.tracking_shown}; there is {names or 'none of this model'}"
    )


def _tags(made: Approval, before: Mapping[str, str]) -> dict[str, str]:
    entry = {key: value for key, value in asdict(made).items() if key not in ("model", "version")}
    entry["reason"] = made.reason[:_REASON_CHARACTERS]
    history = [*json.loads(before.get("approval_history", "[]")), entry]
    return {
        "approval_by": made.by,
        "approval_at": made.at,
        "approval_reason": made.reason,
        "approval_history": _shortened(history),
        # Last: until then nothing is decided.
        "approval": made.state,
    }


def _shortened(history: list[dict[str, str]]) -> str:
    """Return a history as JSON that fits a tag: the oldest reasons go first, then decisions."""
    texts = iter(history[:-1])
    while len(text := json.dumps(history, ensure_ascii=False)) > _HISTORY_CHARACTERS:
        if (older := next(texts, None)) is not None:
            older["reason"] = ""
        else:
            history.pop(0)
    return text


def _kept(model: str, version: str, state: Decision, tags: Mapping[str, str]) -> Approval:
    told = (tags.get(f"approval_{what}", "") for what in ("by", "at", "reason"))
    return Approval(model, version, state, *told)


def _told(tags: Mapping[str, str]) -> str:
    by, at, reason = (tags.get(f"approval_{what}") for what in ("by", "at", "reason"))
    words = f"{state_of(tags)}{f' by {by}' if by else ''}{f' at {at}' if at else ''}"
    return f"{words} ({reason})" if reason else words
