"""What NetworkPolicies let through, as a network that enforces them would decide."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod as policies see it; `namespace` may be one that no policy speaks of."""

    namespace: str
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def named(cls, namespace: str, name: str) -> "Pod":
        """Return a pod with the label that our workloads have."""
        return cls(namespace, (("app.kubernetes.io/name", name),))


@dataclass(frozen=True)
class Network:
    """All policies of a cluster; TCP only."""

    policies: tuple[Manifest, ...]

    @classmethod
    def of(cls, objects: Iterable[Manifest]) -> "Network":
        """Return the network that has the policies among these objects."""
        return cls(tuple(one for one in objects if one["kind"] == "NetworkPolicy"))

    def lets(self, source: Pod, target: Pod, port: int) -> bool:
        """Return whether a connection leaves the source and arrives at the target."""
        leaves = self._passes("Egress", source, target, port)
        return leaves and self._passes("Ingress", target, source, port)

    def _passes(self, direction: str, pod: Pod, peer: Pod, port: int) -> bool:
        about = [one for one in self.policies if _is_about(one, pod, direction)]
        key, side = direction.lower(), "to" if direction == "Egress" else "from"
        rules = [rule for one in about for rule in one["spec"].get(key, ())]
        return not about or any(_allows(rule, side, pod.namespace, peer, port) for rule in rules)


def _is_about(policy: Manifest, pod: Pod, direction: str) -> bool:
    return (
        policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], dict(pod.labels))
    )


def _allows(rule: Manifest, side: str, namespace: str, peer: Pod, port: int) -> bool:
    ports, peers = rule.get("ports"), rule.get(side)
    right_port = ports is None or any(
        one["port"] == port and one.get("protocol", "TCP") == "TCP" for one in ports
    )
    return right_port and (peers is None or any(_is(one, namespace, peer) for one in peers))


def _is(one: Manifest, namespace: str, peer: Pod) -> bool:
    if "namespaceSelector" in one:
        names = {"kubernetes.io/metadata.name": peer.namespace}
        right_namespace = _selects(one["namespaceSelector"], names)
    else:
        right_namespace = peer.namespace == namespace
    return right_namespace and _selects(one.get("podSelector", {}), dict(peer.labels))


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    equal = selector.get("matchLabels", {}).items() <= labels.items()
    return equal and all(_holds(one, labels) for one in selector.get("matchExpressions", ()))


def _holds(expression: Manifest, labels: dict[str, str]) -> bool:
    if expression["operator"] == "Exists":
        return expression["key"] in labels
    assert expression["operator"] == "In"
    return labels.get(expression["key"]) in expression["values"]
