"""What must be so before a rollout touches anything, each with its reason and the next move."""

import json
import logging
import re
from collections.abc import Iterable
from typing import Any

from linnet.errors import ClusterAbsentError, RolloutError
from linnet.release.opening import Release
from linnet.rollout.cluster import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    GATEWAYS,
    INFERENCE_SERVICES,
    LEASES,
    PODS,
    Access,
    Cluster,
    Object,
)
from linnet.rollout.route_split import CONFIGURATION
from linnet.rollout.settings import RolloutSettings
from linnet.rollout.traffic import Shown

logger = logging.getLogger(__name__)

CONTROLLER = "kserve-controller-manager"
# The first release whose canaries move traffic and wait for readiness.
_OLDEST = (0, 21)


def require_access(cluster: Cluster, settings: RolloutSettings, needs: Iterable[Access]) -> None:
    """Raise unless everything that a rollout does is allowed.

    Raises:
        RolloutError: with each missing verb and what it is missing on.
    """
    own, kserve = settings.namespace, settings.kserve_namespace
    wanted = (
        *needs,
        Access("list", INFERENCE_SERVICES, own),
        Access("get", PODS, own, "proxy"),
        Access("create", PODS, own, "proxy"),
        *(Access(verb, CONFIG_MAPS, own) for verb in ("get", "create", "patch")),
        *(Access(verb, LEASES, own) for verb in ("get", "create", "update")),
        *(Access("get", kind, kserve) for kind in (DEPLOYMENTS, CONFIG_MAPS, GATEWAYS)),
    )
    missing = [str(access) for access in wanted if not cluster.may(access)]
    if missing:
        raise RolloutError(
            "a rollout is not allowed what it needs:\n  "
            + "\n  ".join(missing)
            + "\nbind a Role with these, as the chart's rollout Role has them"
        )


def require_kserve(cluster: Cluster, settings: RolloutSettings) -> Object:
    """Raise unless KServe is there, new enough, with a gateway that has an address.

    Returns: the Gateway that KServe's routes use.

    Raises:
        RolloutError: with what is missing.
    """
    try:
        cluster.list(INFERENCE_SERVICES, namespace=settings.namespace)
        controller = cluster.get(DEPLOYMENTS, CONTROLLER, namespace=settings.kserve_namespace)
    except ClusterAbsentError as error:
        raise RolloutError(
            f"KServe is not in this cluster ({error}): install 0.21 or newer (`make platform`), or "
            "set kserve_namespace to where its controller is"
        ) from error
    if settings.traffic == "canary":
        _require_version(controller)
    configuration = cluster.get(CONFIG_MAPS, CONFIGURATION, namespace=settings.kserve_namespace)
    ingress = json.loads((configuration.get("data") or {}).get("ingress") or "{}")
    if settings.traffic == "canary":
        _require_gateway_on(ingress)
    return _gateway(cluster, str(ingress.get("kserveIngressGateway", "")))


def require_service(service: Object | None, settings: RolloutSettings) -> None:
    """Raise unless an InferenceService is one that a canary can be put beside.

    Raises:
        RolloutError: it is of another mode, scales itself, or has a transformer.
    """
    if service is None or settings.traffic != "canary":
        return
    name = service["metadata"]["name"]
    annotations = service["metadata"].get("annotations") or {}
    mode = annotations.get("serving.kserve.io/deploymentMode")
    if mode != "Standard":
        raise RolloutError(
            f"the InferenceService {name} is in mode {mode or 'unset'}, expected the annotation "
            "serving.kserve.io/deploymentMode: Standard: KServe has canaries in that mode alone"
        )
    if annotations.get("serving.kserve.io/autoscalerClass") != "none":
        raise RolloutError(
            f"the InferenceService {name} is scaled by an autoscaler, which works against the "
            "replicas of a canary: set the annotation serving.kserve.io/autoscalerClass: none"
        )
    if service["spec"].get("transformer"):
        raise RolloutError(
            f"the InferenceService {name} has a transformer, which a canary's share would go "
            "past: keep pre- and postprocessing in the predictor"
        )


def require_candidate(release: Release, shown: Shown, model: str) -> None:
    """Raise unless a release can become this model's candidate now.

    Raises:
        RolloutError: it is the champion, of another model, where no pod can reach it, or another
            canary is there.
    """
    if release.model != model:
        raise RolloutError(
            f"{release.uri} is a release of {release.model}, expected one of {model}: "
            f"`linnet releases {model}` lists them"
        )
    if not release.uri.startswith("s3://"):
        raise RolloutError(
            f"{release.uri} is a folder, and pods fetch releases from S3: release to s3://… (set "
            "LINNET_RELEASE_ROOT or release.root)"
        )
    if shown.candidate is not None:
        raise RolloutError(
            f"{shown.candidate.version} is already beside the champion of {model} with "
            f"{shown.weight} % of the traffic: `linnet rollout abort {model} --reason …` takes it "
            "away"
        )
    champion = shown.champion
    if champion is not None and release.version == champion.version:
        same = _same(release.uri, champion.uri)
        raise RolloutError(
            f"{release.uri} is the champion already: there is nothing to roll out"
            if same
            else f"{release.uri} and the champion {champion.uri} are both called "
            f"{release.version}: release it again under another version"
        )


def _require_version(controller: Object) -> None:
    images = [
        str(container["image"])
        for container in controller["spec"]["template"]["spec"]["containers"]
        if "kserve-controller" in container["image"] or container["name"] == "manager"
    ]
    image = images[0] if images else "unknown"
    found = re.search(r":v?(\d+)\.(\d+)", image)
    if found is None:
        logger.warning("KServe's controller is %s: its version can't be told, 0.21 needed", image)
    elif (int(found[1]), int(found[2])) < _OLDEST:
        raise RolloutError(
            f"KServe's controller is {image}, expected 0.21 or newer: older ones make canaries "
            "without moving traffic. Upgrade it, or set traffic: route"
        )


def _require_gateway_on(ingress: dict[str, Any]) -> None:
    if not ingress.get("enableGatewayApi") or ingress.get("disableIngressCreation"):
        raise RolloutError(
            "KServe makes no HTTPRoutes here (inferenceservice-config: ingress.enableGatewayApi is "
            f"{ingress.get('enableGatewayApi', False)}, disableIngressCreation is "
            f"{ingress.get('disableIngressCreation', False)}), and canaries are weighted in them: "
            "set the first to true and the second to false"
        )


def _gateway(cluster: Cluster, place: str) -> Object:
    namespace, _, name = place.partition("/")
    gateway = cluster.find(GATEWAYS, name, namespace=namespace) if name else None
    if gateway is None:
        raise RolloutError(
            f"the Gateway {place or '(none)'} of KServe's configuration is not there: make it, or "
            "set ingress.kserveIngressGateway in inferenceservice-config"
        )
    if not (gateway.get("status") or {}).get("addresses"):
        conditions = (gateway.get("status") or {}).get("conditions") or ()
        words = [
            f"{one['type']}: {one.get('message', '')}"
            for one in conditions
            if one["status"] != "True"
        ]
        raise RolloutError(
            f"the Gateway {place} has no address ({'; '.join(words) or 'no controller took it'}): "
            "no request reaches the model. See its Service and GatewayClass"
        )
    return gateway


def _same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")
