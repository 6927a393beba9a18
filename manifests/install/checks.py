"""What rollouts rely on, looked at once everything runs."""

import json
import re
import time
from typing import Any

from manifests.install.kubectl import InstallError, Kubectl, Object

NEEDED = (0, 21)
GATEWAY = "kserve-ingress-gateway"
SETTINGS: dict[str, dict[str, Any]] = {
    "ingress": {
        "enableGatewayApi": True,
        "kserveIngressGateway": f"kserve/{GATEWAY}",
        "disableIngressCreation": False,
    },
    "deploy": {"defaultDeploymentMode": "Standard"},
}


def supported(version: str, where: str) -> None:
    """Check that a version of KServe moves traffic to a canary.

    Raises:
        InstallError: it is older, or no version at all.
    """
    found = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?([-+.].*)?", version)
    if not found:
        raise InstallError(f"{where} says KServe {version!r}: expected a version such as v0.21.0")
    if (int(found[1]), int(found[2])) < NEEDED:
        raise InstallError(
            f"{where} says KServe {version}: 0.21 or later is needed. Earlier ones know "
            "spec.canary or make its pods, but no traffic goes there, so a rollout would judge a "
            "candidate that nobody asks. Set KSERVE in manifests/third-party/versions.env"
        )


def check_kserve(kubectl: Kubectl) -> None:
    """Check KServe's version and the settings that a rollout needs.

    Raises:
        InstallError: it is absent, too old, or set otherwise.
    """
    controller = kubectl.get("deployment", "kserve-controller-manager", "kserve")
    if controller is None:
        raise InstallError("namespace kserve has no kserve-controller-manager: install part kserve")
    containers = controller["spec"]["template"]["spec"]["containers"]
    image = next(one["image"] for one in containers if one["name"] == "manager")
    supported(image.split("@")[0].rpartition(":")[2], f"the controller's image {image}")
    config = kubectl.get("configmap", "inferenceservice-config", "kserve") or {}
    if wrong := wrong_settings(config.get("data", {})):
        raise InstallError(
            "ConfigMap inferenceservice-config in namespace kserve: " + "; ".join(wrong)
        )


def wrong_settings(data: dict[str, str]) -> list[str]:
    """Return what KServe's settings say that is not what rollouts need."""
    wrong = []
    for section, wanted in SETTINGS.items():
        try:
            known = json.loads(data.get(section, "{}"))
        except ValueError as error:
            wrong.append(f"{section} is not JSON ({error})")
            continue
        for key, value in wanted.items():
            if known.get(key) != value:
                given = json.dumps(known.get(key))
                wrong.append(f"{section}.{key} is {given}, {json.dumps(value)} is needed")
    return wrong


def check_gateway(kubectl: Kubectl) -> None:
    """Wait until the gateway is programmed and has an address.

    Raises:
        InstallError: it does not get there; the message has the gateway's own reason.
    """
    deadline = time.monotonic() + kubectl.timeout_s
    while reason := what_gateway_lacks(kubectl.get("gateway", GATEWAY, "kserve") or {}):
        if time.monotonic() > deadline:
            raise InstallError(
                f"gateway kserve/{GATEWAY} is not ready after {kubectl.timeout_s} s: {reason}. "
                "Look: kubectl -n envoy-gateway-system get pods,services"
            )
        time.sleep(2)


def what_gateway_lacks(gateway: Object) -> str:
    """Return why a gateway serves nobody yet, or nothing when it does."""
    if not gateway:
        return "it is absent"
    status = gateway.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "Programmed" and condition["status"] == "True":
            return "" if status.get("addresses") else "it has no address"
    for condition in status.get("conditions", []):
        if condition["status"] != "True":
            return f"{condition['type']}: {condition.get('message', condition.get('reason'))}"
    return "its controller has not looked at it"
