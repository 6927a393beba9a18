"""Releases in MLflow's model registry: which there are, and which is champion and candidate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from linnet.errors import TrackingError
from linnet.stores.connections import Connections
from linnet.stores.tracking import open_client, tracking_errors

Alias = Literal["candidate", "champion"]


@dataclass(frozen=True)
class RegisteredRelease:
    """A release as the registry knows it: `number` is MLflow's own count, from 1."""

    model: str
    number: int
    uri: str
    aliases: tuple[str, ...]
    run_id: str | None
    tags: dict[str, str]


class Registry:
    """One registered model per model name; each of its versions points to a release."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._opened: Any = None

    def champion(self, model: str) -> str | None:
        """Return the address of the model's champion, or None when there is none yet."""
        return self.resolve(model, "champion")

    def resolve(self, model: str, alias: str) -> str | None:
        """Return the address that an alias of a model points to, or None.

        Raises:
            TrackingError: the registry can't be reached.
        """
        for release in self.releases(model):
            if alias in release.aliases:
                return release.uri
        return None

    def releases(self, model: str | None = None) -> list[RegisteredRelease]:
        """Return the registered releases of one model or of all, oldest first.

        Raises:
            TrackingError: the registry can't be reached.
        """
        if self._never_used():
            return []
        with tracking_errors(self.connections, "list releases"):
            query = None if model is None else f"name = '{model}'"
            aliases: dict[tuple[str, int], list[str]] = {}
            for registered in _pages(self._client.search_registered_models, query):
                for alias, number in registered.aliases.items():
                    aliases.setdefault((registered.name, int(number)), []).append(alias)
            versions = _pages(self._client.search_model_versions, query)
            return sorted(
                (
                    RegisteredRelease(
                        model=version.name,
                        number=int(version.version),
                        uri=version.source,
                        aliases=tuple(
                            sorted(aliases.get((version.name, int(version.version)), ()))
                        ),
                        run_id=version.run_id or None,
                        tags=dict(version.tags),
                    )
                    for version in versions
                ),
                key=lambda release: (release.model, release.number),
            )

    def register(
        self, model: str, uri: str, *, run_id: str | None = None, tags: dict[str, str] | None = None
    ) -> RegisteredRelease:
        """Register a release: as champion when the model has none, else as candidate.

        One whose approval is pending is a candidate in any case. A release that is registered
        already is left as it is and returned.

        Raises:
            TrackingError: the registry can't be reached or refuses.
        """
        for release in self.releases(model):
            if release.uri == uri:
                return release
        with tracking_errors(self.connections, f"register {uri}"):
            self._ensure_model(model)
            version = self._client.create_model_version(
                model, source=uri, run_id=run_id, tags=tags or {}, await_creation_for=0
            )
            waits = (tags or {}).get("approval") == "pending"
            alias: Alias = "candidate" if waits or self._has_champion(model) else "champion"
            self._client.set_registered_model_alias(model, alias, version.version)
        return RegisteredRelease(
            model, int(version.version), uri, (alias,), run_id, dict(tags or {})
        )

    def move(self, model: str, alias: Alias, uri: str) -> None:
        """Point an alias to a registered release.

        Raises:
            TrackingError: the release is not registered, or the registry can't be reached.
        """
        for release in self.releases(model):
            if release.uri == uri:
                with tracking_errors(self.connections, f"move @{alias} of {model}"):
                    self._client.set_registered_model_alias(model, alias, str(release.number))
                return
        raise TrackingError(
            f"{uri} is not registered as {model} in MLflow at {self.connections.tracking_shown}: "
            "register it first (linnet.release.bundle.register)"
        )

    def tag(self, model: str, uri: str, tags: dict[str, str]) -> None:
        """Add tags to a registered release; one that is not registered is left alone.

        Raises:
            TrackingError: the registry can't be reached.
        """
        for release in self.releases(model):
            if release.uri == uri:
                with tracking_errors(self.connections, f"tag {uri}"):
                    for key, value in tags.items():
                        self._client.set_model_version_tag(model, str(release.number), key, value)

    def remove(self, model: str, alias: Alias) -> None:
        """Take an alias away from whatever it points to."""
        with tracking_errors(self.connections, f"remove @{alias} of {model}"):
            self._client.delete_registered_model_alias(model, alias)

    def note(self, model: str, tags: dict[str, str]) -> None:
        """Tag a model as a whole; one that has no release yet is left alone.

        Raises:
            TrackingError: the registry can't be reached or refuses.
        """
        if self._never_used():
            return
        with tracking_errors(self.connections, f"tag {model}"):
            if _pages(self._client.search_registered_models, f"name = '{model}'"):
                for name, value in tags.items():
                    self._client.set_registered_model_tag(model, name, value)

    def notes(self, model: str) -> dict[str, str]:
        """Return the tags of a model as a whole, none where it has no release yet.

        Raises:
            TrackingError: the registry can't be reached.
        """
        if self._never_used():
            return {}
        with tracking_errors(self.connections, f"read tags of {model}"):
            found = _pages(self._client.search_registered_models, f"name = '{model}'")
        return dict(found[0].tags) if found else {}

    @property
    def _client(self) -> Any:
        if self._opened is None:
            self._opened = open_client(self.connections)
        return self._opened

    def _never_used(self) -> bool:
        """Return whether the database is a SQLite file that isn't there: no import needed."""
        uri = self.connections.tracking_uri
        return uri.startswith("sqlite:///") and not Path(urlsplit(uri).path[1:]).exists()

    def _ensure_model(self, model: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _has_champion(self, model: str) -> bool:
        return "champion" in self._client.get_registered_model(model).aliases


def _pages(search: Any, query: str | None) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(filter_string=query, max_results=1000, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
