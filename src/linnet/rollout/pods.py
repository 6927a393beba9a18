"""Why pods are not ready, in their own words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from linnet.rollout.cluster import Object

# A container that ended this often doesn't come by waiting.
_CRASHES = 3
_FINAL = ("InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
_IMAGE = ("ErrImagePull", "ImagePullBackOff", *_FINAL)
_LONGEST = 600


@dataclass(frozen=True)
class Trouble:
    """Why something is not ready. `final`: waiting longer does not help."""

    words: str
    final: bool = False


def trouble_of(
    pods: list[Any], deployment: Object | None, service: Object | None
) -> Trouble | None:
    """Return what keeps pods from being ready, or their owners from making them."""
    found = [trouble for pod in pods for trouble in _of_pod(pod)]
    found.sort(key=lambda trouble: not trouble.final)
    if found:
        return found[0]
    if not pods:
        words = [*_false_conditions(deployment, "ReplicaFailure"), *_false_conditions(service)]
        return Trouble("; ".join(words)) if words else Trouble("there are no pods yet")
    waiting = [pod["metadata"]["name"] for pod in pods if not is_ready(pod)]
    return Trouble(f"{', '.join(waiting)} not ready yet") if waiting else None


def is_ready(pod: Object) -> bool:
    """Return whether a pod is ready and stays."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        one["type"] == "Ready" and one["status"] == "True" for one in conditions
    )


def restarts(pod: Object) -> int:
    """Return how often a pod's containers were started again."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return sum(int(one.get("restartCount", 0)) for one in statuses)


def _of_pod(pod: Object) -> Iterator[Trouble]:
    name = pod["metadata"]["name"]
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Trouble(f"pod {name} has no node: {condition.get('message', '')}")
    for init, container in _containers(status):
        trouble = _of_container(name, container, init=init)
        if trouble is not None:
            yield trouble


def _containers(status: Object) -> Iterator[tuple[bool, Object]]:
    for container in status.get("initContainerStatuses") or ():
        yield True, container
    for container in status.get("containerStatuses") or ():
        yield False, container


def _of_container(pod: str, container: Object, *, init: bool) -> Trouble | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    ended = (container.get("state") or {}).get("terminated") or (
        container.get("lastState") or {}
    ).get("terminated")
    reason = str(waiting.get("reason", ""))
    where = f"pod {pod}, container {container['name']}"
    if reason in _IMAGE:
        final = reason in _FINAL or reason == "ImagePullBackOff"
        return Trouble(f"{where}: {reason}: {waiting.get('message', '')}"[:_LONGEST], final)
    if ended and int(ended.get("exitCode", 0)) != 0:
        step = " (it fetches the release from the store)" if _fetches(container, init) else ""
        last = str(ended.get("message") or "its log says why").strip()
        words = (
            f"{where}{step} ended with {ended.get('reason', 'an error')}, "
            f"exit code {ended['exitCode']}: {last[-_LONGEST:]}"
        )
        crashing = (
            reason == "CrashLoopBackOff" and int(container.get("restartCount", 0)) >= _CRASHES
        )
        return Trouble(words, final=crashing)
    return None


def _fetches(container: Object, init: bool) -> bool:
    return init and "storage-initializer" in container["name"]


def _false_conditions(object: Object | None, *only: str) -> list[str]:
    if object is None:
        return []
    return [
        f"{one['type']}: {one.get('reason', '')} {one.get('message', '')}".strip()
        for one in (object.get("status") or {}).get("conditions") or ()
        if (one["type"] in only and one["status"] == "True")
        or (not only and one["status"] == "False" and one.get("message"))
    ]
