"""Parts of the test split measured apart: by picture size, folder or a column of the source. Pure.

A model that is good on average can be bad where it matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import NormalDist

import numpy as np

from linnet.data.dataset import Dataset
from linnet.errors import EvaluationError
from linnet.evaluation.calibration import Labels
from linnet.settings import Split

SMALL = 30
MOST_VALUES = 20


@dataclass(frozen=True)
class Slice:
    """Pictures of a split that share a value; the interval is Wilson's, `small` says it is wide."""

    by: str
    value: str
    pictures: int
    accuracy: float
    low: float
    high: float
    macro_f1: float
    small: bool


def measure_slices(
    labels: Labels,
    predicted: Labels,
    values: dict[str, list[str]],
    *,
    confidence: float,
) -> tuple[Slice, ...]:
    """Return each part's accuracy and macro F1; a column with one value only is left out.

    Args:
        labels: index of the true class, int64 [N].
        predicted: index of the answer, int64 [N].
        values: by column, the N pictures' values.
        confidence: level of the intervals.
    """
    found = []
    for by, column in values.items():
        of = np.array(column)
        names, counts = np.unique(of, return_counts=True)
        if len(names) < 2:
            continue
        largest = names[np.argsort(-counts, kind="stable")][:MOST_VALUES]
        for value in sorted(largest.tolist(), key=_natural):
            chosen = of == value
            found.append(_slice(by, value, labels[chosen], predicted[chosen], confidence))
    return tuple(found)


def worst_slice(slices: Sequence[Slice]) -> Slice | None:
    """Return the slice with the lowest accuracy among those that are not small."""
    large = [each for each in slices if not each.small]
    return min(large, key=lambda each: each.accuracy, default=None)


def values_of(dataset: Dataset, split: Split, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of a split's pictures by column, in the order of its rows.

    Raises:
        EvaluationError: a column is neither size nor folder nor one of the dataset's attributes.
    """
    found: dict[str, list[str]] = {}
    for by in columns:
        if by == "size":
            found[by] = _sizes(dataset, split)
        elif by == "folder":
            found[by] = [str(PurePosixPath(key).parent) for key in dataset.keys(split)]
        else:
            found[by] = _attribute(dataset, split, by)
    return found


def wilson(right: int, pictures: int, confidence: float) -> tuple[float, float]:
    """Return the Wilson interval of a share, which holds for few pictures too."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = right / pictures, z**2 / pictures
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * np.sqrt(share * (1 - share) / pictures + weight / (4 * pictures))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def _slice(by: str, value: str, labels: Labels, predicted: Labels, confidence: float) -> Slice:
    right = labels == predicted
    low, high = wilson(int(right.sum()), len(labels), confidence)
    f1 = [
        2
        * int((right & (labels == index)).sum())
        / int((labels == index).sum() + (predicted == index).sum())
        for index in np.unique(labels)
    ]
    return Slice(
        by=by,
        value=value,
        pictures=len(labels),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        macro_f1=float(np.mean(f1)),
        small=len(labels) < SMALL,
    )


def _sizes(dataset: Dataset, split: Split) -> list[str]:
    """Return each picture's third by its shorter side, as a range of pixels."""
    sides = np.concatenate(
        [
            np.minimum(rows.column("width").to_pylist(), rows.column("height").to_pylist())
            for rows in dataset.rows(split, columns=("width", "height"))
        ]
    )
    edges = np.unique(np.quantile(sides, [1 / 3, 2 / 3], method="lower"))
    third = np.searchsorted(edges, sides, side="left")
    names = {}
    for index in np.unique(third):
        of = sides[third == index]
        names[index] = f"{of.min()} px" if of.min() == of.max() else f"{of.min()}–{of.max()} px"
    return [names[index] for index in third]


def _attribute(dataset: Dataset, split: Split, name: str) -> list[str]:
    known: set[str] = set()
    values = []
    for rows in dataset.rows(split, columns=("attributes",)):
        for pairs in rows.column("attributes").to_pylist():
            attributes = {pair["key"]: pair["value"] for pair in pairs or ()}
            known |= attributes.keys()
            values.append(str(attributes.get(name, "")))
    if name not in known:
        raise EvaluationError(
            f"evaluate.slices names {name!r}, the test pictures have size, folder"
            f"{''.join(f', {each}' for each in sorted(known))}: name one of them"
        )
    return [value or "(none)" for value in values]


def _natural(value: str) -> tuple[float, str]:
    digits = value.split("–")[0].split(" ")[0]
    return (float(digits) if digits.replace(".", "", 1).isdigit() else float("inf"), value)
