"""How far annotators agree: against published numbers, and at the ends of the scale."""

import pytest

from linnet.annotation.agreement import agreeing, krippendorff_alpha

# Krippendorff 2011, section C: four observers, twelve units, some values missing.
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def test_alpha_is_the_published_one() -> None:
    units = zip(*(row.split() for row in OBSERVERS), strict=True)
    votes = [[vote for vote in unit if vote != "."] for unit in units]
    assert krippendorff_alpha(votes) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_one_for_agreement_and_negative_for_systematic_disagreement() -> None:
    assert krippendorff_alpha([["cat", "cat"], ["dog", "dog", "dog"]]) == 1.0
    assert krippendorff_alpha([["cat", "dog"]] * 10) == pytest.approx(-0.9)


def test_nothing_is_said_where_nothing_can_be_compared() -> None:
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["cat"], ["dog"]]) is None
    assert krippendorff_alpha([["cat", "cat"], ["cat", "cat"]]) is None


def test_agreement_about_a_picture_is_the_share_of_pairs_that_agree() -> None:
    assert agreeing(["cat", "cat", "dog"]) == pytest.approx(1 / 3)
    assert agreeing(["cat", "cat"]) == 1.0
    assert agreeing(["cat"]) is None
