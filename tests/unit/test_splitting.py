"""The split is a table of what must hold."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from linnet.data.splitting import Candidate, split_pictures
from linnet.errors import SourceError
from linnet.settings import Split


def candidates(
    count: int, label: str = "cat", split: Split | None = None, group_size: int = 0
) -> list[Candidate]:
    name = f"{label}-{split}"
    return [
        Candidate(f"{name}-{i}", label, split, f"{name}-{i // group_size}" if group_size else None)
        for i in range(count)
    ]


def split(
    pictures: Sequence[Candidate], val: float = 0.15, test: float = 0.15, seed: int = 42
) -> list[Split]:
    return split_pictures(pictures, val_fraction=val, test_fraction=test, seed=seed)


def counts(pictures: Sequence[Candidate], chosen: Sequence[Split]) -> dict[str, dict[str, int]]:
    of_label: dict[str, Counter[str]] = {}
    for picture, where in zip(pictures, chosen, strict=True):
        of_label.setdefault(picture.label, Counter())[where] += 1
    return {label: dict(counter) for label, counter in of_label.items()}


@pytest.mark.parametrize(
    ("n", "val", "test", "expected"),
    [
        (100, 0.15, 0.15, {"train": 70, "val": 15, "test": 15}),
        (1000, 0.1, 0.2, {"train": 700, "val": 100, "test": 200}),
        (3, 0.15, 0.15, {"train": 1, "val": 1, "test": 1}),
        (10, 0.01, 0.01, {"train": 8, "val": 1, "test": 1}),
        (10, 0.3, 0.0, {"train": 7, "val": 3}),
        (10, 0.0, 0.0, {"train": 10}),
        (10, 0.45, 0.45, {"train": 1, "val": 5, "test": 4}),
    ],
)
def test_each_class_is_split_by_the_fractions(
    n: int, val: float, test: float, expected: dict[str, int]
) -> None:
    pictures = [*candidates(n, "cat"), *candidates(n, "dog")]
    found = counts(pictures, split(pictures, val, test))
    assert found == {"cat": expected, "dog": expected}


def test_unequal_classes_keep_their_shares() -> None:
    pictures = [*candidates(1000, "cat"), *candidates(20, "dog")]
    assert counts(pictures, split(pictures)) == {
        "cat": {"train": 700, "val": 150, "test": 150},
        "dog": {"train": 14, "val": 3, "test": 3},
    }


OFFICIAL = {
    "all three are kept": (("train", "val", "test"), {"train": 40, "val": 40, "test": 40}),
    "val is made out of train": (("train", "test"), {"train": 34, "val": 6, "test": 40}),
    "test is made out of train": (("train", "val"), {"train": 34, "val": 40, "test": 6}),
    "both are made out of train": (("train",), {"train": 28, "val": 6, "test": 6}),
}


@pytest.mark.parametrize(("splits", "expected"), OFFICIAL.values(), ids=list(OFFICIAL))
def test_official_splits_are_kept_and_missing_ones_are_made_out_of_train(
    splits: tuple[Split, ...], expected: dict[str, int]
) -> None:
    pictures = [c for label in "ab" for s in splits for c in candidates(40, label, s)]
    chosen = split(pictures)
    assert counts(pictures, chosen) == {"a": expected, "b": expected}
    for picture, where in zip(pictures, chosen, strict=True):
        assert where == picture.split or picture.split == "train"


def test_the_order_of_the_files_does_not_matter() -> None:
    pictures = [*candidates(60, "cat", group_size=3), *candidates(50, "dog")]
    expected = dict(zip(pictures, split(pictures), strict=True))
    shuffled = random.Random(0).sample(pictures, len(pictures))
    assert dict(zip(shuffled, split(shuffled), strict=True)) == expected


def test_the_seed_matters() -> None:
    pictures = [*candidates(60, "cat"), *candidates(60, "dog")]
    assert split(pictures, seed=1) != split(pictures, seed=2)
    assert split(pictures, seed=1) == split(pictures, seed=1)


@pytest.mark.parametrize("group_size", [2, 5, 7])
def test_a_group_is_never_parted_and_the_shares_still_hold(group_size: int) -> None:
    pictures = [
        *candidates(210, "cat", group_size=group_size),
        *candidates(140, "dog", group_size=group_size),
    ]
    chosen = split(pictures)
    of_group: dict[str | None, set[str]] = {}
    for picture, where in zip(pictures, chosen, strict=True):
        of_group.setdefault(picture.group, set()).add(where)
    assert all(len(splits) == 1 for splits in of_group.values())
    for label, total in (("cat", 210), ("dog", 140)):
        found = counts(pictures, chosen)[label]
        assert abs(found["train"] - 0.7 * total) <= group_size
        assert abs(found["val"] - 0.15 * total) <= group_size


def test_a_huge_group_goes_to_train_and_the_rest_fills_the_others() -> None:
    huge = [Candidate(f"huge-{i}", "cat", None, "one patient") for i in range(50)]
    pictures = [*huge, *candidates(50, "cat")]
    chosen = split(pictures)
    assert set(chosen[:50]) == {"train"}
    assert counts(pictures, chosen) == {"cat": {"train": 70, "val": 15, "test": 15}}


def test_groups_of_several_classes_leave_no_class_out() -> None:
    pictures = [
        Candidate(f"{group}-{label}", label, None, str(group))
        for group in range(4)
        for label in ("cat", "dog", "bird")[: group % 3 + 1]
    ]
    pictures += candidates(4, "bird") + candidates(4, "dog")
    found = counts(pictures, split(pictures))
    assert all(set(of_label) == {"train", "val", "test"} for of_label in found.values())


def test_few_large_groups_still_reach_every_split() -> None:
    pictures = [Candidate(f"{g}-{i}", "cat", None, g) for g in "abc" for i in range(10)]
    pictures += candidates(30, "dog")
    assert counts(pictures, split(pictures))["cat"] == {"train": 10, "val": 10, "test": 10}


@pytest.mark.parametrize("n", [1, 2])
def test_a_class_that_is_too_small_is_named_with_its_count(n: int) -> None:
    pictures = [*candidates(20, "cat"), *candidates(n, "dodo")]
    with pytest.raises(SourceError, match=f"'dodo' has {n} picture") as error:
        split(pictures)
    assert "at least 3" in str(error.value)
    assert "Add pictures" in str(error.value)


def test_a_class_of_one_group_can_not_be_split() -> None:
    patient = [Candidate(f"p-{i}", "rare", None, "patient") for i in range(9)]
    with pytest.raises(SourceError, match="9 pictures that must stay in 1 split"):
        split([*candidates(20, "cat"), *patient])


def test_a_class_without_training_pictures_is_refused() -> None:
    pictures = [
        *(c for s in ("train", "val", "test") for c in candidates(5, "cat", s)),
        *candidates(5, "dog", "test"),
    ]
    with pytest.raises(SourceError, match=r"'dog' has no train picture \(0 train, 0 val, 5 test\)"):
        split(pictures)


def test_only_a_test_split_leaves_nothing_to_train_on() -> None:
    with pytest.raises(SourceError, match="no train picture"):
        split([*candidates(5, "cat", "test"), *candidates(5, "dog", "test")])
