"""Releases: made of a graph and its gated report, listed, opened and checked. No torch here."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import linnet
from linnet.data.dataset import Dataset
from linnet.errors import (
    ReleaseError,
    ReleaseExistsError,
    StoreError,
    TrackingError,
)
from linnet.evaluation.evaluate import pictures_of
from linnet.evaluation.report import MANIFEST as REPORT
from linnet.evaluation.report import PAGE, Report, load_predictions
from linnet.inference.answers import Rule
from linnet.inference.predict import Predictions
from linnet.inference.session import INPUT, MODEL, OUTPUT, GraphManifest
from linnet.monitoring.reference import REFERENCE, write_reference
from linnet.release.approval import PENDING, state_of
from linnet.release.opening import KIND, SAMPLES, Release, open_release, read_manifest
from linnet.release.publishing import MANIFEST, Shelf, natural, open_shelf, versions
from linnet.release.samples import Sample, write_samples
from linnet.release.signing import sign
from linnet.settings import ReleaseSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import sha256_of
from linnet.stores.registry import RegisteredRelease, Registry

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"v(\d+)")


@dataclass(frozen=True)
class Released:
    """What was just released, and the aliases that the registry gave it."""

    model: str
    version: str
    uri: str
    aliases: tuple[str, ...]
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the result as JSON text."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class ReleaseRow:
    """One line of a list of releases; `created` is UTC in ISO 8601."""

    model: str
    version: str
    created: str
    metrics: dict[str, float]
    aliases: tuple[str, ...]
    uri: str
    approval: str | None = None


def release(
    graph: Path,
    report: Path,
    dataset: Path,
    *,
    model: str,
    settings: ReleaseSettings,
    connections: Connections | None = None,
) -> Released:
    """Publish a graph that passed the gate as an immutable release, and register it.

    Without connections the release needs `settings.root`, a folder, and is not registered.

    Raises:
        ReleaseError: the gate refused, was not asked, or the parts don't belong together.
        ReleaseExistsError: the version asked for is there, or being released by another.
        StoreError: or a subclass: the root can't be reached, denies or is full; nothing is
            released.
        TrackingError: the release is published, and MLflow could not register it; says how to.
    """
    manifest, judged, pictures = _belonging(graph, report, dataset, model)
    shelf = open_shelf(_root(settings, connections), connections)
    version, contents = _published(
        shelf, graph, report, pictures, judged, manifest, settings, connections
    )
    uri = f"{shelf.uri}/{model}/{version}"
    logger.info("released %s %s at %s", model, version, uri)
    aliases: tuple[str, ...] = ()
    if connections is not None:
        aliases = register(uri, connections, manifest=contents).aliases
        logger.info("registered as %s", ", ".join(f"{model}@{alias}" for alias in aliases))
    return Released(model, version, uri, aliases, contents["metrics"])


def register(
    uri: str, connections: Connections, *, manifest: dict[str, Any] | None = None
) -> RegisteredRelease:
    """Register a published release, as champion when the model has none, else as candidate.

    A release that is registered already stays as it is.

    Raises:
        ReleaseError: there is no finished release at `uri`.
        TrackingError: MLflow can't be reached or refuses.
    """
    manifest = manifest or read_manifest(uri, connections)
    provenance = manifest["provenance"]
    try:
        return Registry(connections).register(
            manifest["model"],
            uri,
            run_id=provenance["tracking_run_id"],
            tags={
                "release": manifest["version"],
                "graph_sha256": manifest["files"][MODEL]["sha256"],
                "dataset_version": str(provenance["dataset_version"]),
                "gate": "release",
                **({"approval": PENDING} if manifest.get("approval") == "required" else {}),
            },
        )
    except TrackingError as error:
        raise TrackingError(
            f"{uri} is released but not registered: {error}. It need not be released again: once "
            f"MLflow answers, linnet.release.bundle.register({uri!r}, connections) registers it"
        ) from error


@contextmanager
def open_champion(model: str, connections: Connections) -> Iterator[Release | None]:
    """Yield the registry's champion of a model, opened, or None when there is none yet.

    Raises:
        ReleaseError: the champion is not whole.
        TrackingError: MLflow can't be reached.
    """
    uri = Registry(connections).champion(model)
    if uri is None:
        yield None
        return
    with TemporaryDirectory(prefix="linnet-champion-") as scratch:
        yield open_release(uri, scratch=Path(scratch), connections=connections)


def list_releases(
    root: str, *, model: str | None = None, connections: Connections | None = None
) -> list[Release]:
    """Return the finished releases below a root, by model and version; files are not checked.

    `path` of a release in S3 is meaningless until `open_release` has fetched it.

    Raises:
        StoreError: or a subclass: the store can't be reached or denies.
    """
    shelf = open_shelf(root, connections)
    models = [model] if model is not None else shelf.store.folders(shelf.key())
    found = []
    for name in models:
        for version in versions(shelf, name):
            uri = f"{shelf.uri}/{name}/{version}"
            try:
                found.append(Release(Path(uri), uri, read_manifest(uri, connections)))
            except ReleaseError as error:
                logger.debug("left out: %s", error)
    return found


def releases(
    connections: Connections, *, root: str | None = None, model: str | None = None
) -> list[ReleaseRow]:
    """Return the releases below a root with their aliases, by model and version.

    Without a root: those of the workspace, and all that the registry knows, wherever they lie.

    Raises:
        StoreError: or a subclass: the store can't be reached or denies.
        TrackingError: MLflow can't be reached.
    """
    registered = {release.uri: release for release in Registry(connections).releases(model)}
    found = {}
    if (place := root or connections.release_root) is not None:
        for release in list_releases(place, model=model, connections=connections):
            found[release.uri] = release.manifest
    if root is None:
        for uri in registered.keys() - found.keys():
            try:
                found[uri] = read_manifest(uri, connections)
            except (ReleaseError, StoreError) as error:
                logger.warning("registered, but can't be read: %s", error)
    rows = [_row(uri, manifest, registered.get(uri)) for uri, manifest in found.items()]
    return sorted(rows, key=lambda row: (row.model, natural(row.version), row.uri))


def _row(uri: str, manifest: dict[str, Any], known: RegisteredRelease | None) -> ReleaseRow:
    return ReleaseRow(
        model=manifest["model"],
        version=manifest["version"],
        created=manifest["provenance"]["created"],
        metrics=manifest["metrics"],
        aliases=() if known is None else known.aliases,
        uri=uri,
        approval=None if known is None else state_of(known.tags),
    )


def _root(settings: ReleaseSettings, connections: Connections | None) -> str:
    root = settings.root or (connections.release_root if connections is not None else None)
    if root is None:
        raise ReleaseError(
            "nothing says where releases go: set release.root to a folder or s3://bucket/prefix"
        )
    return root


def _belonging(
    graph: Path, report: Path, dataset: Path, model: str
) -> tuple[GraphManifest, Report, Dataset]:
    """Open the three parts and check that they are of one graph, which the gate let pass."""
    manifest, judged, data = GraphManifest.load(graph), Report.load(report), Dataset.open(dataset)
    if judged.gate is None:
        raise ReleaseError(
            f"the report {report} has not been through the gate: run `linnet gate`, and release "
            "with the report that it writes"
        )
    if judged.gate.decision != "release":
        reasons = "".join(f"\n  {reason}" for reason in judged.gate.reasons())
        raise ReleaseError(f"the gate refused this model, so it is not released:{reasons}")
    found = sha256_of(graph / MODEL)
    for whose, digest in (
        (f"the manifest in {graph}", manifest.sha256),
        (f"the report {report}", judged.provenance.get("graph_sha256")),
    ):
        if digest != found:
            raise ReleaseError(
                f"{graph / MODEL} has SHA-256 {found}, {whose} is of {digest}: give the very "
                "graph that was evaluated and gated"
            )
    if judged.model != model:
        raise ReleaseError(
            f"the report {report} is of model {judged.model!r}, asked for was {model!r}: "
            "evaluate with that name"
        )
    if judged.dataset_version != data.version:
        raise ReleaseError(
            f"the report {report} is of dataset version {judged.dataset_version}, {dataset} is "
            f"{data.version}: give the dataset that it was measured on"
        )
    return manifest, judged, data


def _published(
    shelf: Shelf,
    graph: Path,
    report: Path,
    pictures: Dataset,
    judged: Report,
    manifest: GraphManifest,
    settings: ReleaseSettings,
    connections: Connections | None,
) -> tuple[str, dict[str, Any]]:
    """Publish under the version asked for, or under the next free number."""
    content = f"{manifest.sha256} {sha256_of(report / REPORT)}"
    number = _last_number(shelf, judged.model)
    while True:
        number += 1
        version = settings.version or f"v{number}"
        try:
            with shelf.place(judged.model, version, content=content) as folder:
                shutil.copyfile(graph / MODEL, folder / MODEL)
                shutil.copyfile(report / REPORT, folder / REPORT)
                shutil.copyfile(report / PAGE, folder / PAGE)
                predictions = load_predictions(report)
                _write_samples(folder / SAMPLES, pictures, predictions, judged.rule, settings)
                write_reference(folder / REFERENCE, pictures, predictions, judged.rule)
                contents = _manifest(folder, version, judged, manifest)
                contents["approval"] = settings.approval
                text = json.dumps(contents, indent=1, ensure_ascii=False) + "\n"
                (folder / MANIFEST).write_text(text, encoding="utf-8")
                if connections is not None and connections.signing_key is not None:
                    sign(folder, connections.signing_key, connections.signing_password)
            return version, contents
        except ReleaseExistsError:
            if settings.version is not None:
                raise


def _last_number(shelf: Shelf, model: str) -> int:
    """Return the highest number of a finished release, 0 when there is none."""
    numbers = {
        version: int(found[1])
        for version in versions(shelf, model)
        if (found := _NUMBERED.fullmatch(version))
    }
    for version in sorted(numbers, key=lambda version: -numbers[version]):
        if shelf.store.exists(shelf.key(model, version, MANIFEST)):
            return numbers[version]
    return 0


def _manifest(folder: Path, version: str, report: Report, graph: GraphManifest) -> dict[str, Any]:
    side = graph.preprocessing.size_px
    return {
        "kind": KIND,
        "model": report.model,
        "version": version,
        "classes": list(graph.classes),
        "preprocessing": graph.preprocessing.to_json(),
        "temperature": graph.temperature,
        "precision": graph.served_precision,
        "thresholds": None if report.thresholds is None else report.thresholds.thresholds,
        "abstain_below": report.rule.abstain_below,
        "input": {"name": INPUT, "dtype": "UINT8", "shape": [-1, side, side, 3]},
        "output": {"name": OUTPUT, "dtype": "FP32", "shape": [-1, len(graph.classes)]},
        "files": {
            file.name: {"sha256": sha256_of(file), "size_bytes": file.stat().st_size}
            for file in sorted(folder.iterdir())
        },
        "metrics": report.values(),
        "provenance": {
            "dataset_version": report.dataset_version,
            "source": report.provenance.get("source"),
            "network": graph.network,
            "code_revision": graph.code_revision,
            "tracking_run_id": graph.tracking_run_id,
            "linnet": linnet.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def _write_samples(
    path: Path, dataset: Dataset, predictions: Predictions, rule: Rule, settings: ReleaseSettings
) -> None:
    """Write some test pictures with their labels and the graph's probabilities, for warm-up."""
    chosen = sample_rows(predictions, settings.sample_pictures, rule=rule)
    encoded = pictures_of(dataset, (predictions.keys[row] for row in chosen))
    write_samples(
        path,
        [
            Sample(
                key=predictions.keys[row],
                encoded=encoded[predictions.keys[row]],
                label=int(predictions.labels[row]),
                probabilities=predictions.probabilities[row],
            )
            for row in chosen
        ],
    )


def sample_rows(predictions: Predictions, count: int, *, rule: Rule | None = None) -> list[int]:
    """Return rows of at most `count` pictures: rightly answered first, the classes in turn."""
    labels = predictions.labels
    right = (rule or Rule()).labels(predictions.probabilities) == labels
    order = np.lexsort((np.arange(len(labels)), ~right))
    by_class = [[int(row) for row in order if labels[row] == label] for label in np.unique(labels)]
    in_turn = chain.from_iterable(zip_longest(*by_class))
    return [row for row in in_turn if row is not None][:count]
