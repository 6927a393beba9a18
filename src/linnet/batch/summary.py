"""What a batch's output is of, and what came of all its parts."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from linnet.batch.parts import Parts, Record
from linnet.batch.settings import BatchSettings, Shard
from linnet.errors import BatchError, StoreAbsentError
from linnet.release.opening import Release
from linnet.settings import SourceSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import ObjectStore, open_store

KIND = "linnet/batch/v1"
PLAN = "plan.json"
SUMMARY = "batch.json"
QUARANTINE = "quarantine.csv"


@dataclass(frozen=True)
class BatchSummary:
    """What a batch made, of the whole source or, while others work on, of one shard.

    `labels` counts predicted classes. Of pictures whose label the release knows, `labelled`,
    `confusion` counts by true class, then by predicted one, and `metrics` are accuracy, balanced
    accuracy and macro F1; `unknown_labels` counts labels that it doesn't know.
    `missing_shards` are those that have not finished.
    """

    output: str
    release: str
    classes: tuple[str, ...]
    pictures: int
    answered: int
    abstained: int
    left_out: dict[str, int]
    labels: dict[str, int]
    labelled: int
    unknown_labels: dict[str, int]
    metrics: dict[str, float]
    confusion: dict[str, dict[str, int]]
    missing_shards: tuple[str, ...]
    seconds: float

    @classmethod
    def load(cls, output: str, connections: Connections | None = None) -> Self:
        """Read the summary of an output whose shards have all ended.

        Raises:
            BatchError: there is none, or it is damaged.
            StoreError: or a subclass: the store denies or can't be reached.
        """
        store, prefix = open_store(output, connections)
        try:
            values = json.loads(store.read(f"{prefix}/{SUMMARY}" if prefix else SUMMARY))
            tuples = {name: tuple(values[name]) for name in ("classes", "missing_shards")}
            return cls(**{**values, **tuples})
        except StoreAbsentError as error:
            raise BatchError(
                f"{output} has no {SUMMARY}: a shard has not ended, run `linnet batch` for each"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise BatchError(
                f"{SUMMARY} of {output} is damaged ({error!r}): run a shard again"
            ) from error

    def values(self) -> dict[str, float]:
        """Return the counts and metrics, by name."""
        counts = {"pictures": self.pictures, "answered": self.answered, "abstained": self.abstained}
        return {**counts, "labelled": self.labelled, **self.metrics}

    def headline(self) -> str:
        """Return the result in one sentence."""
        left_out = sum(self.left_out.values())
        words = f"{self.release} answered {self.answered:,} of {self.pictures:,} pictures"
        words += f", {left_out:,} are in quarantine" if left_out else ""
        if self.labelled:
            words += f"; {self.metrics['accuracy']:.3f} accuracy on {self.labelled:,} with labels"
        if self.missing_shards:
            words += f"; not finished: {', '.join(self.missing_shards)}"
        return words

    def confusion_matrix(self) -> tuple[list[str], list[list[int]]]:
        """Return the categories and the matrix as KFP's `log_confusion_matrix` takes them."""
        names = list(self.classes) if self.labelled else []
        rows = (self.confusion.get(true, {}) for true in names)
        return names, [[row.get(predicted, 0) for predicted in names] for row in rows]

    def require_answers(self) -> None:
        """Check that something was answered.

        Raises:
            BatchError: all pictures are in quarantine.
        """
        if self.pictures and not self.answered:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in self.left_out.items())
            raise BatchError(
                f"none of the {self.pictures:,} pictures can be answered ({reasons}): see "
                f"{QUARANTINE} in {self.output}"
            )


class Output:
    """The place of a batch's answers: what they are of, the parts of one shard, the summary."""

    def __init__(
        self, store: ObjectStore, prefix: str, plan: Mapping[str, Any], shard: Shard
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._plan = plan
        self._shard = shard
        self.parts = self._parts_of(shard)

    @classmethod
    def open(
        cls,
        output: str,
        release: Release,
        source: SourceSettings,
        settings: BatchSettings,
        shard: Shard,
        connections: Connections | None,
    ) -> Self:
        """Begin an output, or go on with one of the same release, source and settings.

        Raises:
            BatchError: it is of something else.
            StoreError: the store denies or can't be reached.
        """
        manifest = release.manifest
        plan = {
            "kind": KIND,
            "release": f"{release.model}/{release.version}",
            "graph_sha256": manifest["files"][release.graph_path.name]["sha256"],
            "thresholds": manifest.get("thresholds"),
            "abstain_below": manifest.get("abstain_below"),
            "classes": list(manifest["classes"]),
            "source": source.model_dump(mode="json"),
            "shards": shard.of,
            "part_pictures": settings.part_pictures,
            "csv": settings.csv,
        }
        store, prefix = open_store(output, connections)
        place = cls(store, prefix, plan, shard)
        content = json.dumps(plan, indent=1, ensure_ascii=False).encode()
        if not store.create(place._key(PLAN), content):
            place._check_same(store.read(place._key(PLAN)))
        return place

    def finish(self, parts: int, scratch: Path, seconds: float) -> BatchSummary:
        """Note that this shard is done; who comes last writes quarantine and summary of all.

        Raises:
            StoreError: or a subclass: the store is full, denies or can't be reached.
        """
        self.parts.drop_from(parts)
        done = json.dumps({"parts": parts, "seconds": round(seconds, 1)}).encode()
        self._store.write(self._key(f"shards/{self._shard}.json"), done)
        shards = [Shard(number, self._shard.of) for number in range(1, self._shard.of + 1)]
        counts = {shard: self._finished(shard) for shard in shards}
        missing = tuple(str(shard) for shard, parts_of in counts.items() if parts_of is None)
        if missing:
            own = self.parts.records(parts)
            return self._summary(own, missing, seconds)
        everywhere = [(self._parts_of(shard), counts[shard] or 0) for shard in shards]
        quarantine = scratch / QUARANTINE
        with quarantine.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["key", "label", "reason", "detail"])
            records = (record for found, n in everywhere for record in found.records(n))
            summary = self._summary(_noted(records, rows), (), seconds)
        self._store.upload(quarantine, self._key(QUARANTINE))
        text = json.dumps(asdict(summary), indent=1, ensure_ascii=False)
        self._store.write(self._key(SUMMARY), text.encode())
        return summary

    def _summary(
        self, records: Iterator[Record], missing: tuple[str, ...], seconds: float
    ) -> BatchSummary:
        classes = tuple(self._plan["classes"])
        counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("labels", "unknown", "left_out")
        }
        confusion: dict[str, Counter[str]] = defaultdict(Counter)
        answered = abstained = 0
        for record in records:
            answered += record.answered
            abstained += record.abstained
            counts["labels"].update(record.labels)
            counts["unknown"].update(record.unknown_labels)
            counts["left_out"].update(row.reason for row in record.left_out)
            for true, predicted in record.confusion.items():
                confusion[true].update(predicted)
        return BatchSummary(
            output=self._store.uri(self._prefix),
            release=self._plan["release"],
            classes=classes,
            pictures=answered + counts["left_out"].total(),
            answered=answered,
            abstained=abstained,
            left_out=dict(counts["left_out"].most_common()),
            labels={name: counts["labels"][name] for name in classes},
            labelled=sum(row.total() for row in confusion.values()),
            unknown_labels=dict(counts["unknown"].most_common()),
            metrics=_metrics(confusion),
            confusion={true: dict(confusion[true]) for true in sorted(confusion)},
            missing_shards=missing,
            seconds=round(seconds, 3),
        )

    def _finished(self, shard: Shard) -> int | None:
        """Return how many parts a shard that is done has."""
        try:
            return int(json.loads(self._store.read(self._key(f"shards/{shard}.json")))["parts"])
        except StoreAbsentError:
            return None

    def _check_same(self, found: bytes) -> None:
        try:
            other = json.loads(found)
            differing = [name for name in self._plan if other.get(name) != self._plan[name]]
        except (ValueError, AttributeError):
            other, differing = {}, ["kind"]
        if differing:
            name = differing[0]
            raise BatchError(
                f"{self._store.uri(self._prefix)} holds answers of another batch: its {name} is "
                f"{other.get(name)!r:.100}, asked for is {self._plan[name]!r:.100}. Choose another "
                "output, or ask for the same to go on with it"
            )

    def _parts_of(self, shard: Shard) -> Parts:
        plan = self._plan
        return Parts(
            self._store, self._prefix, shard, release=plan["release"], classes=plan["classes"]
        )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


def _noted(records: Iterator[Record], rows: Any) -> Iterator[Record]:
    """Yield the records, and write a line for each picture that they left out."""
    for record in records:
        rows.writerows([row.key, row.true_label, row.reason, row.detail] for row in record.left_out)
        yield record


def _metrics(confusion: Mapping[str, Counter[str]]) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 over the classes that have pictures."""
    if not confusion:
        return {}
    predicted = sum(confusion.values(), Counter[str]())
    support = {true: row.total() for true, row in confusion.items()}
    hits = {true: row[true] for true, row in confusion.items()}
    return {
        "accuracy": sum(hits.values()) / sum(support.values()),
        "balanced_accuracy": fmean(hits[true] / support[true] for true in support),
        "macro_f1": fmean(2 * hits[true] / (support[true] + predicted[true]) for true in support),
    }
