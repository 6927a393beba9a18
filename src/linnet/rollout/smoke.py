"""Asking pods a release's own sample pictures, whose answers it carries, beside the traffic."""

import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linnet.errors import ClusterUnreachableError, RolloutError
from linnet.inference.answers import Rule
from linnet.release.samples import Sample
from linnet.rollout.cluster import PODS, Cluster
from linnet.rollout.pods import is_ready
from linnet.rollout.seen import Replayed
from linnet.rollout.traffic import Backend

logger = logging.getLogger(__name__)

# Kinds of CPU differ by less; the server holds itself to its own bound when it starts.
_TOLERANCE = 0.05
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Told:
    """What a pod answered for one picture."""

    label: str
    probabilities: tuple[float, ...]
    release: str


def smoke(
    cluster: Cluster,
    candidate: Backend,
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    model: str,
    namespace: str,
    rule: Rule | None = None,
) -> list[str]:
    """Ask every ready pod of a candidate every sample and return what is wrong; nothing is good.

    An answer is right when it comes from this release, names the class that its `rule` makes of the
    recorded probabilities (null: the most probable), and its probabilities are the recorded ones.
    """
    pods = ready_pods(cluster, candidate, namespace=namespace)
    if not pods:
        return [f"no pod of {candidate.version} is ready"]
    problems = []
    for pod in pods:
        for sample in samples:
            try:
                told = ask(cluster, pod, sample, model=model, namespace=namespace)
            except (RolloutError, ClusterUnreachableError) as error:
                problems.append(str(error))
                break
            expected = classes[int((rule or Rule()).labels(sample.probabilities[None])[0])]
            problem = _difference(told, sample, expected, f"{model}/{candidate.version}")
            if problem:
                problems.append(f"pod {pod}: {problem}")
    return problems


def replay(
    cluster: Cluster,
    champion: Backend,
    candidate: Backend,
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    model: str,
    namespace: str,
) -> Replayed | None:
    """Ask one pod of each side the same labelled pictures; None when either has no ready pod.

    A picture that either side does not answer is left out: errors are counted elsewhere.
    """
    ours = ready_pods(cluster, candidate, namespace=namespace)
    theirs = ready_pods(cluster, champion, namespace=namespace)
    if not ours or not theirs:
        return None
    answers = []
    for sample in samples:
        try:
            one = ask(cluster, theirs[0], sample, model=model, namespace=namespace)
            other = ask(cluster, ours[0], sample, model=model, namespace=namespace)
        except (RolloutError, ClusterUnreachableError) as error:
            logger.info("sample %s was not compared: %s", sample.key, error)
            continue
        answers.append((classes[sample.label], one.label, other.label))
    return Replayed(
        pictures=len(answers),
        agreeing=sum(one == other for _, one, other in answers),
        labelled=len(answers),
        both_right=sum(truth == one == other for truth, one, other in answers),
        lost=sum(truth == one != other for truth, one, other in answers),
        gained=sum(truth == other != one for truth, one, other in answers),
    )


def ready_pods(cluster: Cluster, backend: Backend, *, namespace: str) -> list[str]:
    """Return the names of a release's ready pods, sorted."""
    pods = cluster.list(PODS, namespace=namespace, labels=backend.labels)
    return sorted(pod["metadata"]["name"] for pod in pods if is_ready(pod))


def ask(cluster: Cluster, pod: str, sample: Sample, *, model: str, namespace: str) -> Told:
    """Send one sample picture to a pod by V2 REST and return its answer.

    Raises:
        RolloutError: the answer is an error, or not one of V2's.
        ClusterUnreachableError: there is no answer in time.
    """
    body = {
        "inputs": [
            {
                "name": "pictures",
                "datatype": "BYTES",
                "shape": [1],
                "data": [base64.b64encode(sample.encoded).decode()],
            }
        ],
        "outputs": [{"name": name} for name in ("label", "probabilities", "release")],
    }
    status, answer = cluster.ask_pod(
        pod, f"v2/models/{model}/infer", namespace=namespace, body=body, timeout_s=_TIMEOUT_S
    )
    words = answer[:300].decode(errors="replace")
    if status != 200:
        raise RolloutError(f"pod {pod} answered sample {sample.key} with status {status}: {words}")
    try:
        outputs: dict[str, Any] = {
            output["name"]: output["data"] for output in json.loads(answer)["outputs"]
        }
        return Told(
            label=str(outputs["label"][0]),
            probabilities=tuple(float(value) for value in outputs["probabilities"]),
            release=str(outputs["release"][0]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RolloutError(
            f"pod {pod} answered sample {sample.key} with what is no V2 answer ({error!r}): {words}"
        ) from error


def _difference(told: Told, sample: Sample, expected: str, release: str) -> str | None:
    if told.release != release:
        return f"{told.release} answered, expected {release}"
    if told.label != expected:
        return (
            f"sample {sample.key} was named {told.label!r}, the release's own answer is "
            f"{expected!r}"
        )
    if len(told.probabilities) != len(sample.probabilities):
        return f"{len(told.probabilities)} probabilities, expected {len(sample.probabilities)}"
    difference = max(
        abs(one - float(other))
        for one, other in zip(told.probabilities, sample.probabilities, strict=True)
    )
    if not difference <= _TOLERANCE:
        return f"sample {sample.key} differs by {difference:.3f} from the release's own answer"
    return None
