"""The one program that the install talks to a cluster by."""

import json
import subprocess
import time
from collections.abc import Iterable
from typing import Any

import yaml

Object = dict[str, Any]

TOOLS = "https://kubernetes.io/docs/tasks/tools/"
FIELD_MANAGER = "linnet-platform"
EARLY = ("Namespace", "CustomResourceDefinition")
# What passes while a webhook starts or a definition spreads through the API server.
PASSING = (
    "failed calling webhook",
    "no matches for kind",
    "accessor error",
    "connection refused",
    "context deadline exceeded",
    "could not find the requested resource",
    "try again later",
)


class InstallError(Exception):
    """The platform can't be brought up: what is wrong, and what to do."""


class Kubectl:
    """Runs kubectl with the environment's KUBECONFIG; `timeout_s` is how long things may take."""

    def __init__(self, timeout_s: int) -> None:
        self.timeout_s = timeout_s

    def address(self) -> str:
        """Return the address of the cluster's API server, which answers.

        Raises:
            InstallError: there is no kubectl, or the cluster does not answer.
        """
        config = json.loads(self.run("config", "view", "--minify", "-o", "json"))
        self.run("get", "--raw", "/readyz", "--request-timeout=15s")
        return str(config["clusters"][0]["cluster"]["server"])

    def apply(self, objects: list[Object]) -> None:
        """Bring objects to what they say; namespaces and definitions come before the rest.

        Raises:
            InstallError: the cluster refuses one.
        """
        early = [one for one in objects if one["kind"] in EARLY]
        late = [one for one in objects if one["kind"] not in EARLY]
        self._apply(early)
        if definitions := [one for one in early if one["kind"] == "CustomResourceDefinition"]:
            names = [f"crd/{one['metadata']['name']}" for one in definitions]
            self._patiently("wait", "--for=condition=Established", "--timeout=120s", *names)
        self._apply(late)

    def delete(self, one: Object) -> None:
        """Delete an object and wait until it is gone; it may be absent."""
        kind, namespace, name = identity(one)
        self.run("delete", kind, name, "-n", namespace, "--ignore-not-found", "--timeout=120s")

    def get(self, kind: str, name: str, namespace: str) -> Object | None:
        """Return an object, or None where there is none."""
        command = ["get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found"]
        answer = self.run(*command)
        return dict(json.loads(answer)) if answer.strip() else None

    def items(self, kind: str, namespace: str, *, selector: str = "") -> list[Object]:
        """Return all objects of a kind in a namespace, those of a label selector if given."""
        answer = self.run("get", kind, "-n", namespace, "-l", selector, "-o", "json")
        return list(json.loads(answer)["items"])

    def run(self, *arguments: str, given: str | None = None) -> str:
        """Return what a command printed.

        Raises:
            InstallError: there is no kubectl, or it failed.
        """
        try:
            return subprocess.run(
                ["kubectl", *arguments],
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        except FileNotFoundError as error:
            raise InstallError(
                "kubectl is not installed: https://kubernetes.io/docs/tasks/tools/"
            ) from error
        except subprocess.CalledProcessError as error:
            raise InstallError(f"kubectl {' '.join(arguments)}: {error.stderr.strip()}") from error

    def _apply(self, objects: list[Object]) -> None:
        if objects:
            how = ["--server-side", "--force-conflicts", f"--field-manager={FIELD_MANAGER}"]
            self._patiently("apply", *how, "-f", "-", given=yaml.safe_dump_all(objects))

    def _patiently(self, *arguments: str, given: str | None = None) -> None:
        deadline = time.monotonic() + min(self.timeout_s, 180)
        while True:
            try:
                self.run(*arguments, given=given)
                return
            except InstallError as error:
                passing = any(words in str(error) for words in PASSING)
                if not passing or time.monotonic() > deadline:
                    raise
                time.sleep(3)


def identity(one: Object) -> tuple[str, str, str]:
    """Return an object's kind, namespace and name."""
    metadata = one["metadata"]
    return one["kind"], metadata.get("namespace", "default"), metadata["name"]


def read(text: str) -> list[Object]:
    """Return the objects of a YAML stream."""
    return [one for one in _load(text) if one]


def _load(text: str) -> Iterable[Object | None]:
    return yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
