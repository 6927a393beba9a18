"""The one place that talks to Kubernetes: plain objects in and out, errors of ours, retries.

The `kubernetes` package finds and refreshes the credentials (kubeconfig with its plugins, or the
pod's own); the requests are its connection pool's. Objects are the JSON that the API speaks.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import quote, urlencode

import urllib3

from linnet.errors import (
    ClusterAbsentError,
    ClusterConflictError,
    ClusterError,
    ClusterForbiddenError,
    ClusterUnreachableError,
    SettingsError,
)

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Body = Object | list[Object]

_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)
_TRANSIENT = (429, 500, 502, 503, 504)
# An API server that has just started refuses everyone until it has read the roles.
_DENIED = (401, 403)
_DENIED_S = 15.0
_LONGEST_PAUSE_S = 8.0
_HOME = Path("~/.kube/config")


@dataclass(frozen=True)
class Kind:
    """A kind of objects: `api` as in apiVersion, `plural` as in a URL."""

    api: str
    plural: str

    @property
    def group(self) -> str:
        """Return the API group, empty for Kubernetes' core."""
        return self.api.rpartition("/")[0]

    @property
    def full_name(self) -> str:
        """Return the name that kubectl and RBAC messages use."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


INFERENCE_SERVICES = Kind("serving.kserve.io/v1beta1", "inferenceservices")
DEPLOYMENTS = Kind("apps/v1", "deployments")
PODS = Kind("v1", "pods")
EVENTS = Kind("v1", "events")
CONFIG_MAPS = Kind("v1", "configmaps")
LEASES = Kind("coordination.k8s.io/v1", "leases")
HTTP_ROUTES = Kind("gateway.networking.k8s.io/v1", "httproutes")
GATEWAYS = Kind("gateway.networking.k8s.io/v1", "gateways")
ACCESS_REVIEWS = Kind("authorization.k8s.io/v1", "selfsubjectaccessreviews")


@dataclass(frozen=True)
class Access:
    """One thing that must be allowed. `resource` may name a subresource: pods/proxy."""

    verb: str
    kind: Kind
    namespace: str
    subresource: str = ""

    def __str__(self) -> str:
        """Return the words of an error message."""
        what = f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural
        group = f".{self.kind.group}" if self.kind.group else ""
        return f"{self.verb} {what}{group} in namespace {self.namespace}"


class Cluster:
    """A Kubernetes API. Calls that fail for a moment are tried again for `patience_s` seconds."""

    def __init__(
        self,
        api: Any,
        *,
        patience_s: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = api
        self._patience_s = patience_s
        self._sleep = sleep

    @classmethod
    def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        patience_s: float = 120.0,
    ) -> Self:
        """Return the cluster of a kubeconfig; None: ~/.kube/config where it is, or the pod's own.

        Raises:
            ClusterError: there is no usable kubeconfig and this is no pod.
            SettingsError: the `kubernetes` package is not installed.
        """
        try:
            from kubernetes import client, config
        except ModuleNotFoundError as error:
            raise SettingsError(
                "rollouts need the kubernetes package: pip install 'linnet[rollout]'"
            ) from error
        configuration = client.Configuration()
        try:
            if kubeconfig is None and not _HOME.expanduser().exists():
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(
                    kubeconfig, context=context, client_configuration=configuration
                )
        except (config.ConfigException, OSError, TypeError, ValueError) as error:
            raise ClusterError(
                f"no Kubernetes cluster is named ({error}): set KUBECONFIG to a kubeconfig, or run "
                "in a pod with a ServiceAccount"
            ) from error
        return cls(client.ApiClient(configuration), patience_s=patience_s)

    @property
    def address(self) -> str:
        """Return the API server's URL."""
        return str(self._api.configuration.host)

    def get(self, kind: Kind, name: str, *, namespace: str) -> Object:
        """Return an object.

        Raises:
            ClusterAbsentError: it isn't there, or its whole kind isn't.
            ClusterError: or another subclass.
        """
        return self._json("GET", _path(kind, namespace, name), "get", kind, name, namespace)

    def find(self, kind: Kind, name: str, *, namespace: str) -> Object | None:
        """Return an object, or None when it isn't there."""
        try:
            return self.get(kind, name, namespace=namespace)
        except ClusterAbsentError:
            return None

    def list(self, kind: Kind, *, namespace: str, labels: str = "", fields: str = "") -> list[Any]:
        """Return the objects that match a label and a field selector."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        asked = urlencode({key: value for key, value in query.items() if value})
        path = _path(kind, namespace) + (f"?{asked}" if asked else "")
        return list(self._json("GET", path, "list", kind, "", namespace).get("items") or ())

    def create(self, kind: Kind, body: Object, *, namespace: str) -> Object:
        """Create an object and return it as the API keeps it.

        Raises:
            ClusterConflictError: there is one of that name already.
        """
        name = body["metadata"]["name"]
        path = _path(kind, namespace)
        return self._json("POST", path, "create", kind, name, namespace, body=body)

    def replace(self, kind: Kind, body: Object, *, namespace: str) -> Object:
        """Replace an object that was read before.

        Raises:
            ClusterConflictError: it was changed since (its resourceVersion is another).
        """
        name = body["metadata"]["name"]
        path = _path(kind, namespace, name)
        return self._json("PUT", path, "update", kind, name, namespace, body=body)

    def patch(self, kind: Kind, name: str, patch: Body, *, namespace: str) -> Object:
        """Merge a patch (RFC 7386: null removes, lists are replaced), or apply operations.

        The operations (RFC 6902) may test what they build on: nothing changes when a test fails.
        """
        path = _path(kind, namespace, name)
        return self._json("PATCH", path, "patch", kind, name, namespace, body=patch)

    def delete(self, kind: Kind, name: str, *, namespace: str) -> None:
        """Delete an object; none is fine."""
        try:
            path = _path(kind, namespace, name)
            self._json("DELETE", path, "delete", kind, name, namespace)
        except ClusterAbsentError:
            return

    def may(self, access: Access) -> bool:
        """Return whether who asks is allowed something."""
        attributes = {
            "verb": access.verb,
            "group": access.kind.group,
            "resource": access.kind.plural,
            "subresource": access.subresource,
            "namespace": access.namespace,
        }
        review = self._json(
            "POST",
            f"/apis/{ACCESS_REVIEWS.api}/{ACCESS_REVIEWS.plural}",
            "create",
            ACCESS_REVIEWS,
            "",
            access.namespace,
            body={
                "apiVersion": ACCESS_REVIEWS.api,
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        return bool(review["status"]["allowed"])

    def ask_pod(
        self,
        pod: str,
        path: str,
        *,
        namespace: str,
        port: int = 8080,
        body: Object | None = None,
        timeout_s: float = 30.0,
    ) -> tuple[int, bytes]:
        """Send GET, or POST with a JSON body, to a pod through the API server; tried once.

        Returns: the status and the body of the answer, which a failing proxy gives as well.

        Raises:
            ClusterUnreachableError: the API server or the pod did not answer in time.
        """
        target = f"/api/v1/namespaces/{namespace}/pods/{quote(pod)}:{port}/proxy/{path.lstrip('/')}"
        method = "GET" if body is None else "POST"
        try:
            return self._send(method, target, body, urllib3.Timeout(connect=5.0, read=timeout_s))
        except urllib3.exceptions.HTTPError as error:
            raise ClusterUnreachableError(
                f"{method} {path} on pod {pod} in {namespace} got no answer through "
                f"{self.address} ({_reason(error)}): see whether the pod runs"
            ) from error

    def _json(
        self,
        method: str,
        path: str,
        verb: str,
        kind: Kind,
        name: str,
        namespace: str,
        *,
        body: Body | None = None,
    ) -> Object:
        what = f"{kind.full_name} {name}".rstrip() + f" in namespace {namespace}"
        status, answer = self._patiently(method, path, body, f"{verb} {what}")
        if status < 300:
            return dict(json.loads(answer))
        _refuse(status, answer, verb, kind, what, self.address)

    def _patiently(
        self, method: str, path: str, body: Body | None, doing: str
    ) -> tuple[int, bytes]:
        """Send until there is an answer that is not a moment's failure, or patience ends."""
        deadline = time.monotonic() + self._patience_s
        denied_until: float | None = None
        pause_s = 0.25
        told = False
        while True:
            try:
                status, answer = self._send(method, path, body, _TIMEOUT)
            except urllib3.exceptions.HTTPError as error:
                trouble = _reason(error)
                if time.monotonic() + pause_s > deadline:
                    raise ClusterUnreachableError(
                        f"the Kubernetes API at {self.address} did not answer for "
                        f"{self._patience_s:.0f} s ({trouble}), asked to {doing}: "
                        "see whether it is up and run the same command again"
                    ) from error
            else:
                now = time.monotonic()
                if status in _DENIED and not _by_webhook(answer):
                    denied_until = denied_until or now + _DENIED_S
                    over = now + pause_s > min(deadline, denied_until)
                else:
                    over = status not in _TRANSIENT or now + pause_s > deadline
                if over:
                    if told:
                        logger.info("the Kubernetes API answers again")
                    return status, answer
                trouble = f"status {status}: {_message(answer)}"
            if not told:
                logger.warning(
                    "the Kubernetes API at %s fails (%s), trying for %.0f s",
                    self.address,
                    trouble,
                    self._patience_s,
                )
                told = True
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _send(
        self,
        method: str,
        path: str,
        body: Body | None,
        timeout: urllib3.Timeout,
    ) -> tuple[int, bytes]:
        headers = {"Accept": "application/json"}
        if body is not None:
            patch = "json-patch" if not isinstance(body, dict) else "merge-patch"
            kind = f"application/{patch}+json" if method == "PATCH" else "application/json"
            headers["Content-Type"] = kind
        self._api.update_params_for_auth(headers, [], ["BearerToken"])
        response = self._api.rest_client.pool_manager.request(
            method,
            self.address + path,
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=timeout,
            retries=False,
        )
        return int(response.status), bytes(response.data)


def _path(kind: Kind, namespace: str, name: str = "") -> str:
    root = "/apis/" if kind.group else "/api/"
    tail = f"/{quote(name)}" if name else ""
    return f"{root}{kind.api}/namespaces/{namespace}/{kind.plural}{tail}"


def _refuse(status: int, answer: bytes, verb: str, kind: Kind, what: str, address: str) -> NoReturn:
    message = _message(answer)
    if status == 401:
        raise ClusterForbiddenError(
            f"the Kubernetes API at {address} does not accept the credentials ({message}): "
            "renew the kubeconfig's login or the ServiceAccount's token"
        )
    if status == 403 and not _by_webhook(answer):
        raise ClusterForbiddenError(
            f"not allowed to {verb} {what} ({message}): bind a Role with the verb {verb} on "
            f"{kind.full_name}, as the chart's rollout Role has it"
        )
    if status == 404:
        raise ClusterAbsentError(f"there is no {what} ({message})")
    if status == 409:
        raise ClusterConflictError(f"could not {verb} {what}, it was changed by another: {message}")
    raise ClusterError(f"the Kubernetes API refused to {verb} {what}: {message} (status {status})")


def _by_webhook(answer: bytes) -> bool:
    return "admission webhook" in _message(answer)


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return answer[:300].decode(errors="replace").strip() or "no reason given"


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2] or type(error).__name__
