"""Which picture is for training, validation or test: a pure function of the contents and a seed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from linnet.errors import SourceError
from linnet.settings import SPLITS, Split


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture to put in a split.

    `identity` is a digest of its content; `split` the official one, if there is; pictures of one
    `group` are never parted over splits that are made here. An `added` one is of a further source.
    """

    identity: str
    label: str
    split: Split | None = None
    group: str | None = None
    added: bool = False


@dataclass(frozen=True)
class _Unit:
    """Pictures, by index, that stay together, and how many there are of each class."""

    members: list[int]
    classes: Counter[str]
    order: str


def split_pictures(
    pictures: Sequence[Candidate], *, val_fraction: float, test_fraction: float, seed: int
) -> list[Split]:
    """Return each picture's split.

    Official splits are kept. What is missing is made out of the pictures that have no split and the
    official training pictures: each class by its fraction, groups whole, in an order that depends
    on the contents and the seed alone. Added pictures change none of that: each is with its group,
    else where its own content draws it, so it stays there however many more are added.

    Raises:
        SourceError: a class is too small, or has too few groups, to be in every split; or there is
            nothing to train on.
    """
    fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
    own = [picture for picture in pictures if not picture.added]
    placed = _split_own(own, fractions, seed)
    of_group = {p.group: split for p, split in zip(own, placed, strict=True) if p.group}
    rest, chosen = iter(placed), []
    for picture in pictures:
        if not picture.added:
            chosen.append(next(rest))
            continue
        drawn = picture.split or _drawn(picture.identity, fractions, seed)
        chosen.append(of_group.setdefault(picture.group, drawn) if picture.group else drawn)
    _check_new_classes(pictures, chosen, known={picture.label for picture in own})
    return chosen


def _drawn(identity: str, fractions: dict[Split, float], seed: int) -> Split:
    """Return the split that a picture draws by its content alone."""
    drawn = int(_digest(seed, identity)[:8], 16) / 16**8
    for split, fraction in fractions.items():
        if drawn < fraction:
            return split
        drawn -= fraction
    return "train"


def _check_new_classes(
    pictures: Sequence[Candidate], chosen: Sequence[Split], *, known: set[str]
) -> None:
    """Refuse a class of added pictures alone that a split in use would not have."""
    new = [i for i, picture in enumerate(pictures) if picture.label not in known]
    used = [split for split in SPLITS if split in chosen]
    _check_classes([pictures[i] for i in new], [chosen[i] for i in new], wanted=used)


def _split_own(
    pictures: Sequence[Candidate], fractions: dict[Split, float], seed: int
) -> list[Split]:
    official = {picture.split for picture in pictures if picture.split is not None}
    shares = {s: share for s, share in fractions.items() if s not in official and share > 0}
    pool = [i for i, picture in enumerate(pictures) if picture.split in (None, "train")]
    chosen: list[Split] = [picture.split or "train" for picture in pictures]
    if pool and shares:
        units = _units(pictures, pool, seed)
        _check_enough(pictures, units, shares)
        placed = _place(units, {"train": 1 - sum(shares.values()), **shares})
        for unit, split in zip(units, placed, strict=True):
            for member in unit.members:
                chosen[member] = split
    _check_classes(pictures, chosen, wanted=[s for s in SPLITS if s in {"train", *shares}])
    return chosen


def _units(pictures: Sequence[Candidate], pool: list[int], seed: int) -> list[_Unit]:
    """Return the units, the largest first and equal ones in seeded order."""
    together: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in pool:
        picture = pictures[i]
        together[("group", picture.group) if picture.group else ("one", picture.identity)].append(i)
    units = [
        _Unit(
            members,
            Counter(pictures[i].label for i in members),
            _digest(seed, min(pictures[i].identity for i in members)),
        )
        for members in together.values()
    ]
    return sorted(units, key=lambda unit: (-len(unit.members), unit.order))


def _digest(seed: int, identity: str) -> str:
    return hashlib.sha256(f"{seed}:{identity}".encode()).hexdigest()


def _place(units: list[_Unit], shares: dict[Split, float]) -> list[Split]:
    """Return each unit's split: always the one that lacks most of the unit's classes.

    That is the steepest descent of the squared distance to the wanted counts.
    """
    totals = sum((unit.classes for unit in units), Counter[str]())
    lacks: dict[Split, dict[str, float]] = {
        split: {label: max(share * n, 1.0) for label, n in totals.items()}
        for split, share in shares.items()
    }
    placed: list[Split] = []
    for unit in units:

        def need(split: Split, unit: _Unit = unit) -> float:
            return sum(n * lacks[split][c] / totals[c] ** 2 for c, n in unit.classes.items())

        split = max(shares, key=need)
        for label, n in unit.classes.items():
            lacks[split][label] -= n
        placed.append(split)
    _fill_gaps(units, placed, list(shares))
    return placed


def _fill_gaps(units: list[_Unit], placed: list[Split], splits: list[Split]) -> None:
    """Move the smallest unit of a class to a split that has none, from where two or more are."""
    holding: dict[tuple[Split, str], list[int]] = defaultdict(list)
    for i, unit in enumerate(units):
        for label in unit.classes:
            holding[placed[i], label].append(i)
    for label in sorted({label for _, label in holding}):
        for split in splits:
            if holding[split, label]:
                continue
            source = max(splits, key=lambda s: len(holding[s, label]))
            if len(holding[source, label]) < 2:
                continue
            moved = min(holding[source, label], key=lambda i: (len(units[i].members), -i))
            placed[moved] = split
            for other in units[moved].classes:
                holding[source, other].remove(moved)
                holding[split, other].append(moved)


def _check_enough(
    pictures: Sequence[Candidate], units: list[_Unit], shares: dict[Split, float]
) -> None:
    counts = Counter(pictures[i].label for unit in units for i in unit.members)
    groups = Counter(label for unit in units for label in unit.classes)
    needed = 1 + len(shares)
    short = sorted(label for label, n in groups.items() if n < needed)
    if short:
        label = short[0]
        few, more = _counted(counts[label], "picture"), len(short) - 1
        apart = (
            "" if counts[label] == groups[label] else f" that must stay in {groups[label]} split(s)"
        )
        others = f" ({more} more classes are too small: {_names(short[1:])})" if more else ""
        raise SourceError(
            f"class {label!r} has {few}{apart}, expected at least {needed}: one each for train, "
            f"{' and '.join(shares)}{others}. Add pictures of it, leave the class out, or bring "
            "your own train, val and test folders"
        )


def _check_classes(
    pictures: Sequence[Candidate], chosen: list[Split], *, wanted: list[Split]
) -> None:
    """Refuse a class that a split of ours, or training, would not have."""
    have = Counter((split, picture.label) for split, picture in zip(chosen, pictures, strict=True))
    for label in sorted({picture.label for picture in pictures}):
        for split in wanted:
            if have[split, label]:
                continue
            counts = ", ".join(f"{have[s, label]} {s}" for s in SPLITS)
            raise SourceError(
                f"class {label!r} has no {split} picture ({counts}): add some, leave the class "
                "out, or choose other splits"
            )


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _names(labels: list[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:5])
    return shown + (", …" if len(labels) > 5 else "")
