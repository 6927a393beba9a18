"""The images that objects name: ours get their revision, all can be listed for a mirror."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from manifests.install.kubectl import Object

OURS = ("cpu", "gpu", "serving")
# In settings that are text: image: name:tag, "image": "name:tag"
NAMED = re.compile(r"""\b[iI]mage["']?\s*:\s*["']?([\w./-]+:[\w.-]+)""")
# In arguments: --executor-image name:tag, --acme-http01-solver-image=name:tag
ARGUMENT = re.compile(r"^--[\w-]*image=(.+)$")


@dataclass(frozen=True)
class Ours:
    """Where our images are: `prefix/cpu:tag`."""

    prefix: str
    tag: str

    def all(self) -> list[str]:
        """Return the names of the images that `make images` builds."""
        return [f"{self.prefix}/{name}:{self.tag}" for name in OURS]

    def put_into(self, one: Object) -> Object:
        """Return an object in which `linnet/…` images are named as they were built."""
        return dict(self._replace(one))

    def _replace(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._replace(item) for item in value]
        if isinstance(value, dict):
            return {key: self._image(key, self._replace(item)) for key, item in value.items()}
        return value

    def _image(self, key: str, value: Any) -> Any:
        if key == "image" and isinstance(value, str) and value.startswith("linnet/"):
            name = value.removeprefix("linnet/").split(":")[0]
            return f"{self.prefix}/{name}:{self.tag}"
        return value


def found_in(objects: Iterable[Object]) -> set[str]:
    """Return the images that pods of these objects, and what the objects configure, run."""
    return {image for one in objects if one["kind"] in _RUNNING for image in _found(one)}


_RUNNING = frozenset(
    ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "ConfigMap", "EnvoyProxy")
) | {"ClusterStorageContainer", "ClusterServingRuntime"}


def _found(value: Any, key: str = "") -> Iterator[str]:
    match value:
        case dict():
            if str(value.get("name", "")).endswith("_IMAGE") and "value" in value:
                yield str(value["value"])
            for name, item in value.items():
                if name != "_example":
                    yield from _found(item, name)
        case list():
            yield from _in_arguments([item for item in value if isinstance(item, str)])
            for item in value:
                yield from _found(item)
        case str() if key == "image":
            yield value
        case str():
            yield from NAMED.findall(value)


def _in_arguments(arguments: list[str]) -> Iterator[str]:
    for argument, following in pairwise([*arguments, ""]):
        if found := ARGUMENT.match(argument):
            yield found[1]
        elif argument.endswith("-image") and argument.startswith("--"):
            yield following
