"""The REST API of Kubeflow Pipelines (v2beta1): plain JSON, time limits, errors of ours.

https://www.kubeflow.org/docs/components/pipelines/reference/api/kubeflow-pipeline-api-spec/
"""

import json
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from linnet.errors import (
    KubeflowDeniedError,
    KubeflowError,
    KubeflowUnreachableError,
    SettingsError,
)
from linnet.rest_pool import cause_of, is_address, open_pool, parsed

API = "/apis/v2beta1"

_READ_S = 30.0
_EQUALS = 1


class Kubeflow:
    """One installation of Kubeflow Pipelines. `namespace` is a profile's, where there are any."""

    def __init__(
        self,
        endpoint: str,
        *,
        namespace: str | None = None,
        token: str | None = None,
        cookie: str | None = None,
    ) -> None:
        """Remember where it is.

        Raises:
            SettingsError: the endpoint is no URL.
        """
        if not is_address(endpoint):
            raise SettingsError(
                f"endpoint {endpoint!r} is not a URL: give something like http://127.0.0.1:8888, "
                "after kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8888:80"
            )
        self.endpoint = endpoint.rstrip("/")
        self.namespace = namespace
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        if cookie:
            self._headers["Cookie"] = cookie
        self._pool = open_pool(read_s=_READ_S, headers=self._headers)

    def check_namespace(self) -> None:
        """Ask the server what it is, and whether the namespace goes with it.

        Raises:
            SettingsError: a shared server needs a namespace; one that isn't takes none.
            KubeflowError: or a subclass: it can't be reached, or isn't Kubeflow Pipelines.
        """
        shared = self._json("GET", f"{API}/healthz").get("multi_user", False)
        if shared and self.namespace is None:
            raise SettingsError(
                f"Kubeflow at {self.endpoint} is shared by namespaces: give yours with --namespace"
            )
        if not shared and self.namespace is not None:
            raise SettingsError(
                f"Kubeflow at {self.endpoint} is not shared: its runs are in its own namespace, "
                f"not in {self.namespace!r}; leave out --namespace"
            )

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is made when there is none."""
        wanted = {"predicates": [{"operation": _EQUALS, "key": "display_name"}]}
        wanted["predicates"][0]["stringValue"] = name
        query = {"filter": json.dumps(wanted), "page_size": "1"}
        if self.namespace is not None:
            query["namespace"] = self.namespace
        found = self._json("GET", f"{API}/experiments", query=query).get("experiments")
        if found:
            return str(found[0]["experiment_id"])
        body = {"display_name": name}
        if self.namespace is not None:
            body["namespace"] = self.namespace
        return str(self._json("POST", f"{API}/experiments", body)["experiment_id"])

    def start(self, run: dict[str, Any]) -> str:
        """Create a run and return its id."""
        return str(self._json("POST", f"{API}/runs", run)["run_id"])

    def schedule(self, recurring_run: dict[str, Any]) -> str:
        """Create a recurring run and return its id."""
        made = self._json("POST", f"{API}/recurringruns", recurring_run)
        return str(made["recurring_run_id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run with its `state` and, below `run_details`, its tasks."""
        return self._json("GET", f"{API}/runs/{quote(run_id)}")

    def log(self, run_id: str, pod: str) -> str | None:
        """Return what a pod of a run has printed so far; None when it can't be had (any more)."""
        path = f"/apis/v1alpha1/runs/{quote(run_id)}/nodes/{quote(pod)}/log"
        try:
            status, content = self._send("GET", path)
        except KubeflowError:
            return None
        text = content.decode(errors="replace")
        # The server says 200 before it has looked for the pod.
        failed = status != 200 or text.startswith(('{"error', '{"code'))
        return None if failed else text

    def _json(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        query: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        path = f"{path}?{urlencode(query)}" if query else path
        status, content = self._send(method, path, body)
        if status in (401, 403) or 300 <= status < 400:
            raise KubeflowDeniedError(
                f"Kubeflow at {self.endpoint} does not let us in (HTTP {status}): "
                f"{_message(content) or 'it asks to log in'}. Give --token or --cookie, and "
                "check that they may use the namespace"
            )
        if status != 200:
            raise KubeflowError(
                f"Kubeflow at {self.endpoint} refused {method} {path.partition('?')[0]} "
                f"(HTTP {status}): {_message(content) or 'it gives no reason'}"
            )
        answer = parsed(content, dict)
        if answer is None:
            raise KubeflowError(
                f"what answers at {self.endpoint} is not Kubeflow Pipelines: give the address of "
                "its UI (ml-pipeline-ui) or of its API (ml-pipeline, port 8888)"
            )
        return answer

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        try:
            answer = self._pool.request(method, self.endpoint + path, json=body)
        except urllib3.exceptions.HTTPError as error:
            cause = cause_of(error)
            raise KubeflowUnreachableError(
                f"Kubeflow does not answer at {self.endpoint} ({cause}): check the endpoint, and "
                "that kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8888:80 runs if it is one"
            ) from error
        return answer.status, answer.data


def _message(content: bytes) -> str:
    """Return the server's own words from the body of an error."""
    try:
        answer = json.loads(content)
    except ValueError:
        return ""
    message = answer.get("message") or answer.get("error") if isinstance(answer, dict) else None
    return str(message or "")
