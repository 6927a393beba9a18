"""Which of the examined pictures a dataset keeps, and what becomes of those that are alike."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from linnet.data.duplicates import NearPair, clusters, near_pairs
from linnet.data.examination import Examined, Refused
from linnet.data.sources import Item
from linnet.settings import Split

# Of two equal pictures the one that is kept: a test picture must never also be trained on.
_KEEP_FIRST: tuple[Split | None, ...] = ("test", "val", "train", None)


@dataclass(frozen=True, slots=True)
class Picture:
    """A usable picture of the source: what the source says of it and what we found."""

    item: Item
    path: Path
    label: str
    facts: Examined


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A picture that is left out, and why."""

    item: Item
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Alike:
    """Two near duplicates and the bits in which their fingerprints differ."""

    first: Picture
    second: Picture
    bits: int

    @property
    def across_splits(self) -> bool:
        """Whether the source has them in two official splits."""
        return self.first.item.split != self.second.item.split

    @property
    def under_two_labels(self) -> bool:
        """Whether the source gives them different labels."""
        return self.first.label != self.second.label


@dataclass(frozen=True)
class Selection:
    """What is kept, what is left out, both sorted by key, and what looks alike."""

    kept: list[Picture]
    quarantine: list[Quarantined]
    alike: list[Alike]


def select(
    found: Iterable[tuple[Item, Examined | Refused]], near: Literal["group", "drop", "ignore"]
) -> Selection:
    """Return which pictures are kept and which are left out for what reason."""
    usable: list[Picture] = []
    quarantine: list[Quarantined] = []
    for item, facts in found:
        if isinstance(facts, Refused):
            quarantine.append(Quarantined(item, facts.reason, facts.detail))
        elif item.label is None or item.path is None:
            quarantine.append(Quarantined(item, "unlabelled", "no class is given for it"))
        else:
            usable.append(Picture(item, item.path, item.label, facts))
    kept, left_out = _without_exact_duplicates(usable)
    quarantine += left_out
    pairs = [] if near == "ignore" else near_pairs(p.facts.fingerprint for p in kept)
    alike = [Alike(kept[pair.first], kept[pair.second], pair.bits) for pair in pairs]
    if near == "drop":
        kept, left_out = _without_near_duplicates(kept, pairs)
        quarantine += left_out
    return Selection(kept, sorted(quarantine, key=lambda q: q.item.key), alike)


def groups(selection: Selection) -> list[str | None]:
    """Return what must stay together: the source's groups, joined where pictures look alike."""
    index = {picture.item.key: i for i, picture in enumerate(selection.kept)}
    links = [
        (index[alike.first.item.key], index[alike.second.item.key])
        for alike in selection.alike
        if alike.first.item.key in index and alike.second.item.key in index
    ]
    first_of_group: dict[str, int] = {}
    for i, picture in enumerate(selection.kept):
        if picture.item.group is not None:
            links.append((first_of_group.setdefault(picture.item.group, i), i))
    roots = clusters(len(selection.kept), links)
    sizes = Counter(roots)
    return [str(root) if sizes[root] > 1 else None for root in roots]


def _without_exact_duplicates(
    pictures: Sequence[Picture],
) -> tuple[list[Picture], list[Quarantined]]:
    """Keep one of each content, and none that has several labels."""
    same: dict[bytes, list[Picture]] = defaultdict(list)
    for picture in pictures:
        same[picture.facts.sha256].append(picture)
    kept: list[Picture] = []
    left_out: list[Quarantined] = []
    for copies in same.values():
        labels = sorted({picture.label for picture in copies})
        if len(labels) > 1:
            left_out += [
                Quarantined(p.item, "conflicting_labels", f"also labelled {_others(labels, p)}")
                for p in copies
            ]
            continue
        first, *rest = sorted(copies, key=_precedence)
        kept.append(first)
        left_out += [
            Quarantined(p.item, "duplicate", f"same bytes as {_place(first)}") for p in rest
        ]
    return sorted(kept, key=lambda p: p.item.key), left_out


def _without_near_duplicates(
    pictures: list[Picture], pairs: Iterable[NearPair]
) -> tuple[list[Picture], list[Quarantined]]:
    """Keep one of each cluster: of the most important split, not added, then the largest."""
    together: dict[int, list[Picture]] = defaultdict(list)
    roots = clusters(len(pictures), ((pair.first, pair.second) for pair in pairs))
    for root, picture in zip(roots, pictures, strict=True):
        together[root].append(picture)
    kept: list[Picture] = []
    left_out: list[Quarantined] = []
    for alike in together.values():
        first, *rest = sorted(alike, key=_precedence)
        kept.append(first)
        left_out += [
            Quarantined(p.item, "near_duplicate", f"looks like {_place(first)}") for p in rest
        ]
    return sorted(kept, key=lambda p: p.item.key), left_out


def _precedence(picture: Picture) -> tuple[int, bool, int, str]:
    pixels = picture.facts.width * picture.facts.height
    is_added = picture.item.added is not None
    return (_KEEP_FIRST.index(picture.item.split), is_added, -pixels, picture.item.key)


def _place(picture: Picture) -> str:
    split = picture.item.split
    return picture.item.key + (f" of {split}" if split else "")


def _others(labels: list[str], picture: Picture) -> str:
    return ", ".join(label for label in labels if label != picture.label)
