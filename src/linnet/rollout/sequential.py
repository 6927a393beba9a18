"""Evidence that may be looked at after every request: e-values of shares.

An e-value is what one unit staked against a hypothesis has become; while the hypothesis is true it
reaches 1/α with a chance of at most α, however often one looks and whenever one stops (Ville's
inequality). Ours are likelihood ratios by universal inference (Wasserman, Ramdas, Balakrishnan:
Universal inference, PNAS 117, 2020, section on sequential settings): above, the observations'
likelihood averaged over all shares with Jeffreys' prior (Robbins' method of mixtures); below, their
largest likelihood that the hypothesis allows. Both depend on the totals alone, so no look has to be
remembered. All arguments may be arrays that broadcast; results are natural logarithms.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_HALVINGS = 50
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def above(hits: ArrayLike, of: ArrayLike, limit: ArrayLike) -> Floats:
    """Return the log e-value against "the share is at most `limit`" after `hits` of `of`."""
    x, n, most = _floats(hits, of, limit)
    share = np.minimum(x / np.maximum(n, 1.0), most)
    return _averaged(x, n) - _log_likelihood(x, n, share)


def exceeds(
    hits: ArrayLike,
    of: ArrayLike,
    other_hits: ArrayLike,
    other_of: ArrayLike,
    *,
    margin: ArrayLike,
) -> Floats:
    """Return the log e-value against "the share is at most the other's share plus `margin`"."""
    x, n, y, m, more = _floats(hits, of, other_hits, other_of, margin)
    share, other = x / np.maximum(n, 1.0), y / np.maximum(m, 1.0)
    allowed = share <= other + more
    if not allowed.all():
        edge = _likeliest(x, n, y, m, more)
        share, other = np.where(allowed, share, edge + more), np.where(allowed, other, edge)
    hypothesis = _log_likelihood(x, n, share) + _log_likelihood(y, m, other)
    return _averaged(x, n) + _averaged(y, m) - hypothesis


def mean(log_values: ArrayLike) -> float:
    """Return the log of the e-values' mean: one e-value against all their hypotheses at once."""
    logs = np.asarray(log_values, np.float64)
    if not logs.size:
        return 0.0
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).mean()))


def _likeliest(x: Floats, n: Floats, y: Floats, m: Floats, more: Floats) -> Floats:
    """Return the likeliest share p of the other one when the first one's is p + `more`."""
    low, high = np.zeros_like(x), 1.0 - more
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_HALVINGS):
            p = (low + high) / 2
            slope = x / (p + more) - (n - x) / (1 - p - more) + y / p - (m - y) / (1 - p)
            low, high = np.where(slope > 0, p, low), np.where(slope > 0, high, p)
    return (low + high) / 2


def _averaged(x: Floats, n: Floats) -> Floats:
    """Return the log likelihood of `x` of `n`, averaged with the prior Beta(½, ½)."""
    averaged: Floats = (
        _log_gamma(x + 0.5) + _log_gamma(n - x + 0.5) - _log_gamma(n + 1.0) - math.log(math.pi)
    )
    return averaged


def _log_likelihood(x: Floats, n: Floats, share: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        hit = np.where(x > 0, x * np.log(share), 0.0)
        missed = np.where(n > x, (n - x) * np.log1p(-share), 0.0)
    return hit + missed


def _floats(*values: ArrayLike) -> list[Floats]:
    return [np.asarray(each, np.float64) for each in np.broadcast_arrays(*values)]
