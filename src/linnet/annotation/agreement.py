"""How far annotators agree, from their votes alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Return Krippendorff's alpha for nominal votes, 1 perfect and 0 as by chance.

    `units` has the votes on each picture; any number of them may be missing. None where no picture
    has two votes, or only one class was ever chosen: nothing can be said then.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C.
    """
    compared = [Counter(votes) for votes in units if len(votes) > 1]
    total: Counter[str] = Counter()
    disagreed = 0.0
    for votes in compared:
        total += votes
        count = votes.total()
        disagreed += sum(n * (count - n) for n in votes.values()) / (count - 1)
    pairable = total.total()
    by_chance = sum(n * (pairable - n) for n in total.values())
    if not by_chance:
        return None
    return 1.0 - (pairable - 1) * disagreed / by_chance


def agreeing(votes: Sequence[str]) -> float | None:
    """Return the share of pairs of votes that agree, None for less than two votes."""
    pairs = list(combinations(votes, 2))
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None
