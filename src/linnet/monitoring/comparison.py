"""Whether two samples of pictures can be of one kind: a test with an exact false-alarm rate. Pure.

Each number has its Kolmogorov-Smirnov distance, each class the difference of its shares among the
answers. Both become evidence of one scale: to first order, minus the logarithm of chance. While
nothing has changed, which picture is in which sample is arbitrary; so the largest evidence of all
is compared with what it is after random exchanges (Westfall and Young, Resampling-based multiple
testing, 1993, single-step maximum). That holds for any sample sizes, however the numbers are
distributed and depend on each other, and however many there are.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from linnet.monitoring.features import FEATURES, Floats, Sample

Kind = Literal["picture", "model", "answers"]
Masks = NDArray[np.bool_]

_AT_ONCE = 250


@dataclass(frozen=True)
class Shift:
    """One number, or one class's share of the answers, then and now.

    `before` and `now` are the medians of a number, the shares of a class. `distance` is 0 to 1: the
    largest difference of the two distributions, or of the shares. `chance` is how often a largest
    evidence like this one's comes about without any drift; `drifted` where that is too seldom and
    the distance is not too small to mind.
    """

    name: str
    kind: Kind
    before: float
    now: float
    distance: float
    chance: float
    drifted: bool


def compare(
    reference: Sample,
    now: Sample,
    classes: tuple[str, ...],
    *,
    false_alarms: float,
    smallest_shift: float,
    permutations: int,
    seed: int,
) -> tuple[Shift, ...]:
    """Return every shift, numbers first.

    Without drift, at most a share `false_alarms` of such comparisons has any shift that drifted,
    provided that the pictures are independent of each other.
    """
    n, m = len(reference), len(now)
    values = np.concatenate([reference.values, now.values])
    answers = np.concatenate([reference.answers, now.answers])
    observed = np.arange(n + m) >= n
    distances, evidence = _evidence(observed[None], values, answers, len(classes))
    largest = _largest_by_chance(values, answers, len(classes), (n, m), permutations, seed)
    beaten = (largest[:, None] >= evidence[0][None] - 1e-9).sum(axis=0)
    chances = (1 + beaten) / (1 + permutations)
    middles = zip(np.median(reference.values, axis=0), np.median(now.values, axis=0), strict=True)
    shares = zip(_shares(reference, classes), _shares(now, classes), strict=True)
    return tuple(
        Shift(
            name=name,
            kind=kind,
            before=float(before),
            now=float(after),
            distance=float(distance),
            chance=float(chance),
            drifted=bool(chance <= false_alarms and distance >= smallest_shift),
        )
        for (name, kind), (before, after), distance, chance in zip(
            _names(classes), (*middles, *shares), distances[0], chances, strict=True
        )
    )


def _names(classes: tuple[str, ...]) -> list[tuple[str, Kind]]:
    numbers: list[tuple[str, Kind]] = [
        (name, "model" if name == "confidence" else "picture") for name in FEATURES
    ]
    return [*numbers, *((name, "answers") for name in classes)]


def _shares(sample: Sample, classes: tuple[str, ...]) -> Floats:
    return np.bincount(sample.answers, minlength=len(classes)) / max(1, len(sample))


def _largest_by_chance(
    values: Floats,
    answers: NDArray[np.int64],
    classes: int,
    sizes: tuple[int, int],
    permutations: int,
    seed: int,
) -> Floats:
    """Return the largest evidence after each of the random exchanges."""
    random = np.random.default_rng(seed)
    in_order = np.arange(sum(sizes)) >= sizes[0]
    largest = []
    for start in range(0, permutations, _AT_ONCE):
        masks = np.tile(in_order, (min(_AT_ONCE, permutations - start), 1))
        masks = random.permuted(masks, axis=1)
        largest.append(_evidence(masks, values, answers, classes)[1].max(axis=1))
    return np.concatenate(largest)


def _evidence(
    masks: Masks, values: Floats, answers: NDArray[np.int64], classes: int
) -> tuple[Floats, Floats]:
    """Return distances and evidence [B, F + C] of each way [B, N] to say which pictures are now."""
    m = int(masks[0].sum())
    n = masks.shape[1] - m
    distances = [_smirnov(masks, column, n, m) for column in values.T]
    evidence = [2 * distance**2 * n * m / (n + m) for distance in distances]
    for label in range(classes):
        chosen = answers == label
        now = masks[:, chosen].sum(axis=1).astype(np.float64)
        before = chosen.sum() - now
        distances.append(np.abs(now / m - before / n))
        evidence.append(_surprise(before, n, now, m))
    return np.stack(distances, axis=1), np.stack(evidence, axis=1)


def _smirnov(masks: Masks, column: Floats, n: int, m: int) -> Floats:
    """Return the largest difference of the two distribution functions, [B]."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    ends = np.append(ordered[1:] != ordered[:-1], True)
    now = masks[:, order].cumsum(axis=1, dtype=np.int32)[:, ends]
    before = np.flatnonzero(ends) + 1 - now
    largest: Floats = np.abs(now / m - before / n).max(axis=1)
    return largest


def _surprise(before: Floats, n: int, now: Floats, m: int) -> Floats:
    """Return half the G statistic of `before` of `n` and `now` of `m`, [B]."""
    share = (before + now) / (n + m)
    parts = [(before, n * share), (n - before, n * (1 - share))]
    parts += [(now, m * share), (m - now, m * (1 - share))]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [
            np.where(seen > 0, seen * np.log(seen / expected), 0.0) for seen, expected in parts
        ]
    surprise: Floats = np.sum(terms, axis=0)
    return surprise
