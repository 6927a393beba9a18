"""Evidence that may be looked at at any time."""

import math

import numpy as np
import pytest

from linnet.rollout.sequential import above, exceeds, mean

ALPHA = 0.05


def binomial(n: int, p: float) -> np.ndarray:
    return np.array([math.comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(n + 1)])


@pytest.mark.parametrize("limit", [0.01, 0.3, 0.5, 0.99])
def test_the_expected_e_value_of_a_share_within_its_limit_is_at_most_one(limit: float) -> None:
    hits = np.arange(41)
    values = np.exp(above(hits, 40, limit))
    for share in (0.0, limit / 2, limit):
        assert binomial(40, share) @ values <= 1.0 + 1e-9


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("other", [0.0, 0.05, 0.4])
def test_the_expected_e_value_of_a_share_within_the_margin_is_at_most_one(
    other: float, margin: float
) -> None:
    mine, others = np.arange(13)[:, None], np.arange(31)[None, :]
    values = np.exp(exceeds(mine, 12, others, 30, margin=margin))
    for share in (0.0, other, other + margin):
        assert binomial(12, share) @ values @ binomial(30, other) <= 1.0 + 1e-9


def test_looking_after_every_request_accuses_few_that_are_right_at_the_margin() -> None:
    draws = np.random.default_rng(7)
    mine = draws.binomial(1, 0.06, (300, 600)).cumsum(axis=1)
    others = draws.binomial(3, 0.05, (300, 600)).cumsum(axis=1)
    requests = np.arange(1, 601)
    evidence = exceeds(mine, requests, others, 3 * requests, margin=0.01)
    accused = (evidence > math.log(1 / ALPHA)).any(axis=1)
    assert accused.mean() <= ALPHA


def test_evidence_against_a_share_beyond_the_margin_grows_without_bound() -> None:
    smaller, larger = exceeds([10, 1000], [100, 10_000], [9, 900], [900, 90_000], margin=0.01)
    assert 1 < smaller < larger / 50


def test_nothing_seen_is_no_evidence() -> None:
    assert above(0, 0, 0.5) == pytest.approx(0.0)
    assert exceeds(0, 0, 0, 0, margin=0.1) == pytest.approx(0.0)
    assert exceeds(50, 100, 0, 0, margin=0.1) < 0


def test_a_smaller_share_is_no_evidence_for_a_larger_one() -> None:
    assert exceeds(0, 1000, 500, 1000, margin=0.0) < 0
    assert above(100, 1000, 0.5) < 0


def test_what_can_not_happen_within_the_limit_is_proof_when_it_does() -> None:
    assert above(1, 100, 0.0) == math.inf
    assert exceeds(100, 100, 0, 10**7, margin=0.0) > 100


def test_millions_of_requests_are_weighed_as_finely_as_hundreds() -> None:
    few = float(above(6, 100, 0.05))
    many = float(above(6_000_000, 100_000_000, 0.05))
    assert few < 0 < many
    assert math.isfinite(many)


def test_the_mean_of_e_values_is_one_too() -> None:
    assert mean(np.log([1.0, 3.0])) == pytest.approx(math.log(2.0))
    assert mean([]) == 0.0
    assert mean([-math.inf, 800.0]) == pytest.approx(800.0 - math.log(2.0))
