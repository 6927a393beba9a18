"""A look for drift: new pictures against those that the release was measured on."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from linnet.data.preprocessing import Preprocessing
from linnet.errors import DriftError
from linnet.folders import written_whole
from linnet.inference.answers import Rule
from linnet.inference.session import Portions
from linnet.monitoring.comparison import Shift, compare
from linnet.monitoring.features import Sample, measure
from linnet.monitoring.page import render
from linnet.monitoring.pictures import pictures
from linnet.monitoring.reference import MOST_PICTURES, read_reference
from linnet.monitoring.settings import DriftSettings
from linnet.release.opening import Release, open_release
from linnet.stores.connections import Connections
from linnet.stores.registry import Registry
from linnet.stores.tracking import Tracker

log = logging.getLogger(__name__)

KIND = "linnet/drift/v1"
MANIFEST = "drift.json"
PAGE = "drift.html"

Verdict = Literal["drift", "none"]


@dataclass(frozen=True)
class DriftReport:
    """What a look found. `looked` is UTC in ISO 8601."""

    model: str
    release: str
    source: str
    reference: str
    looked: str
    pictures: int
    reference_pictures: int
    unreadable: int
    verdict: Verdict
    shifts: tuple[Shift, ...]
    settings: Mapping[str, Any]

    @property
    def drifted(self) -> list[Shift]:
        """Return what has drifted, the surest and largest first."""
        found = [shift for shift in self.shifts if shift.drifted]
        return sorted(found, key=lambda shift: (shift.chance, -shift.distance))

    @property
    def chance(self) -> float:
        """Return how often a look without drift shows as much as this one."""
        return min(shift.chance for shift in self.shifts)

    def headline(self) -> str:
        """Return the verdict in a sentence."""
        if self.verdict == "none":
            return (
                f"{self.model} {self.release}: no drift in {self.pictures} pictures "
                f"(as much is seen by chance in {self.chance:.2g} of looks)"
            )
        names = ", ".join(_named(shift) for shift in self.drifted[:5])
        return f"{self.model} {self.release}: drift in {self.pictures} pictures: {names}"

    def values(self) -> dict[str, float]:
        """Return the numbers that are recorded of a look."""
        return {
            "drift": float(self.verdict == "drift"),
            "drift_chance": self.chance,
            "drift_pictures": float(self.pictures),
            "drift_unreadable": float(self.unreadable),
            **{
                f"drift_{shift.name}": shift.distance
                for shift in self.shifts
                if shift.kind != "answers"
            },
            "drift_answers": max(s.distance for s in self.shifts if s.kind == "answers"),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the form that `drift.json` carries."""
        return {"kind": KIND, "chance": self.chance, **asdict(self)}


def look(
    source: str,
    release: str,
    destination: Path,
    settings: DriftSettings,
    *,
    reference: str | None = None,
    connections: Connections | None = None,
) -> DriftReport:
    """Compare the pictures of a source with a release's own, and write the report's folder.

    `source` and `reference` are a prediction log, a folder of pictures or a dataset; without a
    reference it is the one in the release.

    Raises:
        DriftError: there are too few pictures, or nothing to compare with.
        ReleaseError: the release is absent or not whole.
        StoreError: or a subclass: a store can't be reached, or `destination` be written.
    """
    with TemporaryDirectory(prefix="linnet-drift-") as scratch:
        opened = open_release(release, scratch=Path(scratch), connections=connections)
        before = (
            read_reference(opened)
            if reference is None
            else _measured(reference, opened, _all_of(settings), connections)
        )
        now = _measured(source, opened, settings, connections)
    _require_enough(before, reference or opened.uri, settings)
    _require_enough(now, source, settings)
    report = _report(opened, source, reference, before, now, settings)
    with written_whole(destination, MANIFEST) as folder:
        (folder / PAGE).write_text(render(report, before, now), encoding="utf-8")
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    log.log(logging.WARNING if report.verdict == "drift" else logging.INFO, "%s", report.headline())
    return report


def record(report: DriftReport, folder: Path, connections: Connections) -> None:
    """Keep a look in MLflow: a run with its numbers and page, and tags of the release's version.

    Raises:
        TrackingError: MLflow can't be reached or refuses.
    """
    with Tracker.start(connections, experiment=report.model, run_name="drift") as tracker:
        tracker.tags({"step": "drift", "release": report.release, "verdict": report.verdict})
        tracker.metrics(report.values())
        tracker.artifacts(folder, folder="drift")
    registry = Registry(connections)
    for known in registry.releases(report.model):
        if known.tags.get("release") == report.release:
            tags = {
                "drift": report.verdict,
                "drift_looked": report.looked,
                "drift_run": tracker.run_id,
                "drift_words": report.headline(),
                "drift_values": json.dumps(report.values()),
            }
            registry.tag(report.model, known.uri, tags)


def _measured(
    source: str, release: Release, settings: DriftSettings, connections: Connections | None
) -> Sample:
    digest = release.manifest["files"][release.graph_path.name]["sha256"]
    return measure(
        pictures(source, settings, connections),
        Portions(release.graph_path, sha256=digest),
        Preprocessing.from_json(release.manifest["preprocessing"]),
        Rule.of(release.manifest),
    )


def _all_of(settings: DriftSettings) -> DriftSettings:
    """Return settings that take as many pictures of a reference as a release carries."""
    return settings.model_copy(update={"pictures": MOST_PICTURES, "hours": None})


def _require_enough(sample: Sample, source: str, settings: DriftSettings) -> None:
    if len(sample) < settings.fewest_pictures:
        raise DriftError(
            f"{source} has {len(sample)} pictures that can be read ({sample.unreadable} can't), "
            f"expected {settings.fewest_pictures} or more: wait for more, give more hours, or "
            "lower fewest_pictures and find large shifts only"
        )


def _report(
    release: Release,
    source: str,
    reference: str | None,
    before: Sample,
    now: Sample,
    settings: DriftSettings,
) -> DriftReport:
    shifts = compare(
        before,
        now,
        tuple(release.manifest["classes"]),
        false_alarms=settings.false_alarms,
        smallest_shift=settings.smallest_shift,
        permutations=settings.permutations,
        seed=settings.seed,
    )
    return DriftReport(
        model=release.model,
        release=release.version,
        source=source,
        reference=reference or "the release's test pictures",
        looked=datetime.now(UTC).isoformat(timespec="seconds"),
        pictures=len(now),
        reference_pictures=len(before),
        unreadable=now.unreadable,
        verdict="drift" if any(shift.drifted for shift in shifts) else "none",
        shifts=shifts,
        settings=settings.model_dump(mode="json"),
    )


def _named(shift: Shift) -> str:
    if shift.kind == "answers":
        return f"answers {shift.name} {shift.before:.0%} → {shift.now:.0%}"
    return f"{shift.name} {shift.before:.2f} → {shift.now:.2f}"
