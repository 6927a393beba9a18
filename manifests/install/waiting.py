"""Waiting until workloads run, and saying why one does not."""

import sys
import time
from collections.abc import Iterator

from manifests.install.kubectl import InstallError, Kubectl, Object, identity

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
EVERY_S = 2.0
TELL_EVERY_S = 20.0


def wait_for(kubectl: Kubectl, objects: list[Object]) -> None:
    """Wait until the workloads among these objects are ready.

    Raises:
        InstallError: one is not ready in time; the message has its pods' states and events.
    """
    waiting = [identity(one) for one in objects if one["kind"] in WORKLOADS]
    deadline = time.monotonic() + kubectl.timeout_s
    told = time.monotonic()
    while True:
        waiting = [who for who in waiting if not _is_ready(kubectl, *who)]
        if not waiting:
            return
        if time.monotonic() > deadline:
            reasons = "\n".join(_why(kubectl, *who) for who in waiting)
            raise InstallError(f"not ready after {kubectl.timeout_s} s:\n{reasons}")
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            sys.stdout.write(f"  waiting for {', '.join(name for _, _, name in waiting)}\n")
            sys.stdout.flush()
        time.sleep(EVERY_S)


def is_ready(one: Object) -> bool:
    """Return whether a workload, as the cluster shows it, runs what it was last told to."""
    status, spec = one.get("status", {}), one["spec"]
    if one["kind"] == "Job":
        return any(
            condition["type"] == "Complete" and condition["status"] == "True"
            for condition in status.get("conditions", [])
        )
    if status.get("observedGeneration", 0) < one["metadata"]["generation"]:
        return False
    if one["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        return bool(status.get("updatedNumberScheduled", 0) >= wanted <= status["numberReady"])
    wanted = spec.get("replicas", 1)
    updated, ready = status.get("updatedReplicas", 0), status.get("readyReplicas", 0)
    return bool(updated >= wanted and ready >= wanted and status.get("replicas", 0) == wanted)


def _is_ready(kubectl: Kubectl, kind: str, namespace: str, name: str) -> bool:
    one = kubectl.get(kind, name, namespace)
    # A Job that cleans up after itself is gone once it is done.
    return kind == "Job" if one is None else is_ready(one)


def _why(kubectl: Kubectl, kind: str, namespace: str, name: str) -> str:
    one = kubectl.get(kind, name, namespace) or {"spec": {}}
    labels = one["spec"].get("selector", {}).get("matchLabels", {})
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    pods = kubectl.items("pods", namespace, selector=selector)
    names = {name, *(pod["metadata"]["name"] for pod in pods)}
    lines = [f"{kind} {name} in {namespace}", *(line for pod in pods for line in explain(pod))]
    for event in kubectl.items("events", namespace):
        about = event["involvedObject"].get("name", "")
        if event.get("type") == "Warning" and (about in names or about.startswith(f"{name}-")):
            lines.append(f"  event: {event.get('reason')}: {event.get('message', '').strip()}")
    return "\n".join([*dict.fromkeys(lines), f"  look: kubectl -n {namespace} describe pods"])


def explain(pod: Object) -> Iterator[str]:
    """Yield lines that say what keeps a pod from being ready."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"  pod {name} is not scheduled: {condition.get('message', '')}"
    for container in [
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ]:
        state, last = container.get("state", {}), container.get("lastState", {})
        if waiting := state.get("waiting"):
            why = f"{waiting.get('reason')} {waiting.get('message', '')}".strip()
            yield f"  pod {name}, container {container['name']} ({container['image']}): {why}"
        if ended := last.get("terminated") or state.get("terminated"):
            if ended.get("exitCode"):
                yield (
                    f"  pod {name}, container {container['name']} ended with exit code "
                    f"{ended['exitCode']} ({ended.get('reason')}): kubectl -n "
                    f"{pod['metadata']['namespace']} logs {name} -c {container['name']} --previous"
                )
        elif state.get("running") and not container.get("ready"):
            yield f"  pod {name}, container {container['name']} runs and is not ready"
