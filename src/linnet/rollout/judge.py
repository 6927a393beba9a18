"""Whether a rollout goes on: a pure decision on what was seen of champion and candidate.

Each check weighs one way of being worse. What is proven to be beyond its margin aborts; what only
looks like it holds, until more requests tell; so chance alone hardly ever aborts a good candidate,
and a bad one doesn't advance while it is being found out. docs/rollouts.md has the measured rates.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from linnet.rollout.seen import Answered, Histogram, Replayed, Seen
from linnet.rollout.sequential import above, exceeds, mean
from linnet.rollout.settings import AnalysisSettings, RolloutSettings

Verdict = Literal["advance", "hold", "abort", "done"]

# errors, refused, p50, p99, classes, confidence, feedback, and accuracy or agreement
_WEIGHED: Final = 8


@dataclass(frozen=True)
class Check:
    """One thing looked at, what it alone would have the rollout do, and why in words."""

    name: str
    verdict: Literal["advance", "hold", "abort"]
    words: str


@dataclass(frozen=True)
class Judgement:
    """What to do now. `weight` is the next one: the same on hold and done, 0 on abort.

    `overdue`: the rollout's time is over and settings say to hold; a person has to decide.
    """

    verdict: Verdict
    weight: int
    checks: tuple[Check, ...]
    reason: str
    overdue: bool = False


def judge(weight: int, seen: Seen, settings: RolloutSettings) -> Judgement:
    """Return what follows from the evidence at a weight; 0 is the dark start, without traffic."""
    analysis, needed = settings.analysis, needed_evidence(settings)
    checks = [_time(seen, analysis), *_pods(seen, analysis)]
    if weight > 0:
        checks += [_traffic(weight, seen, analysis), *_of_traffic(weight, seen, analysis, needed)]
    if seen.replayed is not None:
        checks.append(_of_replay(seen.replayed, analysis, needed))
    judgement = _together(weight, tuple(checks), settings)
    late = seen.total_seconds > settings.timeout_s
    return _overdue(judgement, settings) if late and judgement.verdict == "hold" else judgement


def needed_evidence(settings: RolloutSettings) -> float:
    """Return the e-value that aborts.

    `false_abort` is shared evenly by all that is weighed and by the windows of a rollout, one a
    step; within a window one may look as often as one likes.
    """
    windows = len(settings.steps) + settings.dark
    return _WEIGHED * windows / settings.analysis.false_abort


def _together(weight: int, checks: tuple[Check, ...], settings: RolloutSettings) -> Judgement:
    def words(verdict: str) -> str:
        return "; ".join(f"{each.name}: {each.words}" for each in checks if each.verdict == verdict)

    if against := words("abort"):
        return Judgement("abort", 0, checks, against)
    if waiting := words("hold"):
        return Judgement("hold", weight, checks, waiting)
    following = [step for step in settings.steps if step > weight]
    if following:
        reason = f"nothing speaks against {following[0]} %"
        return Judgement("advance", following[0], checks, reason)
    return Judgement("done", weight, checks, "nothing speaks against keeping all the traffic")


def _overdue(judgement: Judgement, settings: RolloutSettings) -> Judgement:
    reason = f"the rollout's {settings.timeout_s:,.0f} s are over, and still {judgement.reason}"
    if settings.on_timeout == "abort":
        return replace(judgement, verdict="abort", weight=0, reason=reason)
    return replace(judgement, reason=reason, overdue=True)


def _time(seen: Seen, analysis: AnalysisSettings) -> Check:
    words = f"{seen.seconds:.0f} s of at least {analysis.hold_s:.0f} s at this weight"
    return Check("time", "advance" if seen.seconds >= analysis.hold_s else "hold", words)


def _pods(seen: Seen, analysis: AnalysisSettings) -> list[Check]:
    candidate, champion = seen.candidate, seen.champion
    ready = 0 < candidate.pods == candidate.ready_pods
    # What befalls the champion's pods as well, such as a node's restart, is not the candidate's.
    usual = champion.restarts * candidate.pods / max(champion.pods, 1)
    restarting = candidate.restarts - usual > analysis.max_restarts
    return [
        Check(
            "pods",
            "advance" if ready else "hold",
            f"{candidate.ready_pods} of the candidate's {candidate.pods} ready",
        ),
        Check(
            "restarts",
            "abort" if restarting else "advance",
            f"{candidate.restarts} of the candidate's {candidate.pods} pods, {champion.restarts} "
            f"of the champion's {champion.pods}; {analysis.max_restarts} more are allowed",
        ),
    ]


def _traffic(weight: int, seen: Seen, analysis: AnalysisSettings) -> Check:
    had = seen.candidate.requests
    words = f"{had:,} requests to the candidate"
    if weight < 100:
        had = min(had, seen.champion.requests)
        words += f", {seen.champion.requests:,} to the champion"
    verdict: Literal["advance", "hold"] = "advance" if had >= analysis.min_requests else "hold"
    return Check("traffic", verdict, f"{words}; at least {analysis.min_requests:,} are needed")


def _of_traffic(weight: int, seen: Seen, analysis: AnalysisSettings, needed: float) -> list[Check]:
    beside = [
        _refused(seen, analysis, needed),
        _latency("p50", 0.5, analysis.p50_factor, seen, analysis.latency_floor_s, needed),
        _latency("p99", 0.99, analysis.p99_factor, seen, analysis.latency_floor_s, needed),
        _classes(seen, analysis.max_class_shift, needed),
        _confidence(seen, analysis.max_confidence_shift, needed),
        _feedback(seen, analysis.max_accuracy_loss, needed),
    ]
    if weight == 100:
        beside = [_of_another_time(check) for check in beside]
    return [_errors(weight, seen, analysis, needed), *beside]


def _of_another_time(check: Check) -> Check:
    """Let what only looks worse pass: the champion had another time and another load."""
    if check.verdict != "hold":
        return check
    words = f"{check.words}; the champion had another time and load, so only proof counts"
    return Check(check.name, "advance", words)


def _errors(weight: int, seen: Seen, analysis: AnalysisSettings, needed: float) -> Check:
    candidate, champion = seen.candidate, seen.champion
    alone, too_many = weight == 100 or not champion.requests, analysis.max_error_rate
    share = _share(candidate.errors, candidate.requests)
    allowed = _share(champion.errors, champion.requests) + analysis.error_margin
    words = _of_both(seen, candidate.errors, champion.errors)

    def evidence() -> float:
        absolute = float(above(candidate.errors, candidate.requests, too_many))
        if not champion.requests:
            return absolute
        worse = _exceeds("errors", candidate, champion, analysis.error_margin)
        # Alone, it may suffer from what the champion would now suffer from as well.
        return min(absolute, worse) if alone else worse

    looks = share > (max(allowed, too_many) if alone else allowed)
    check = _weighed("errors", evidence, needed, looks=looks, words=words)
    if check.verdict == "advance" and share > too_many:
        words += f": no worse, but over the {too_many:.2%} that may advance"
        return Check("errors", "hold", words)
    return check


def _refused(seen: Seen, analysis: AnalysisSettings, needed: float) -> Check:
    candidate, champion, margin = seen.candidate, seen.champion, analysis.refused_margin
    share = _share(candidate.refused, candidate.requests)
    return _weighed(
        "refused",
        lambda: _exceeds("refused", candidate, champion, margin),
        needed,
        looks=share > _share(champion.refused, champion.requests) + margin,
        words=_of_both(seen, candidate.refused, champion.refused),
    )


def _exceeds(
    what: Literal["errors", "refused"], candidate: Answered, champion: Answered, margin: float
) -> float:
    counts = (getattr(candidate, what), candidate.requests, getattr(champion, what))
    return float(exceeds(*counts, champion.requests, margin=margin))


def _latency(
    name: str, quantile: float, factor: float, seen: Seen, floor_s: float, needed: float
) -> Check:
    """Weigh a quantile by the histograms' bounds alone, so that their coarseness never accuses.

    For a bound s and the first bound t ≥ factor · s (and ≥ s + floor), the candidate is too slow
    if the champion's quantile is at most s and the candidate's more than t. Both have to be proven;
    the pairs' e-values are averaged.
    """
    candidate, champion = seen.candidate.seconds, seen.champion.seconds
    bounds = sorted(set(candidate.at_most) & set(champion.at_most))
    if not candidate.total or not champion.total:
        return Check(name, "advance", "no times of both to compare")
    low, high = _bracket(candidate, quantile), _bracket(champion, quantile)

    def evidence() -> float:
        finite = bounds[:-1]
        pairs = [
            (fast, finite[first])
            for fast in finite
            if (first := bisect_left(finite, max(factor * fast, fast + floor_s))) < len(finite)
        ]
        fast = np.array([champion.at_most[bound] for bound, _ in pairs])
        slow = np.array([candidate.total - candidate.at_most[bound] for _, bound in pairs])
        return mean(
            np.minimum(
                above(fast, champion.total, quantile), above(slow, candidate.total, 1 - quantile)
            )
        )

    return _weighed(
        name,
        evidence,
        needed,
        looks=low[0] >= max(factor * high[1], high[1] + floor_s),
        words=f"{_between(low)} at the candidate, {_between(high)} at the champion",
    )


def _classes(seen: Seen, margin: float, needed: float) -> Check:
    candidate, champion = seen.candidate.labels, seen.champion.labels
    names = sorted(candidate.keys() | champion.keys())
    total, other_total = sum(candidate.values()), sum(champion.values())
    if not total or not other_total:
        return Check("classes", "advance", "no predictions of both to compare")
    share = np.array([candidate.get(name, 0) / total for name in names])
    other = np.array([champion.get(name, 0) / other_total for name in names])
    n, m = min(total, seen.candidate.requests), min(other_total, seen.champion.requests)

    def evidence() -> float:
        more = exceeds(share * n, n, other * m, m, margin=margin)
        less = exceeds(other * m, m, share * n, n, margin=margin)
        return mean(np.concatenate([more, less]))

    most = int(np.abs(share - other).argmax())
    name = names[most]
    return _weighed(
        "classes",
        evidence,
        needed,
        looks=bool(abs(share[most] - other[most]) > margin),
        words=f"{name} changed most: {_count(candidate.get(name, 0), total)} predictions at the "
        f"candidate, {_count(champion.get(name, 0), other_total)} at the champion",
    )


def _confidence(seen: Seen, margin: float, needed: float) -> Check:
    candidate, champion = seen.candidate.confidence, seen.champion.confidence
    total, other_total = candidate.total, champion.total
    bounds = sorted(set(candidate.at_most) & set(champion.at_most))[:-1]
    if not total or not other_total or not bounds:
        return Check("confidence", "advance", "no predictions of both to compare")
    share = np.array([candidate.at_most[bound] / total for bound in bounds])
    other = np.array([champion.at_most[bound] / other_total for bound in bounds])
    n, m = min(total, seen.candidate.requests), min(other_total, seen.champion.requests)
    most = int((share - other).argmax())
    bound = bounds[most]
    return _weighed(
        "confidence",
        lambda: mean(exceeds(share * n, n, other * m, m, margin=margin)),
        needed,
        looks=bool(share[most] - other[most] > margin),
        words=f"at most {bound:g} in {_count(candidate.at_most[bound], total)} predictions at the "
        f"candidate, {_count(champion.at_most[bound], other_total)} at the champion",
    )


def _feedback(seen: Seen, margin: float, needed: float) -> Check:
    """Weigh how many answers were wrong by the true labels that came back for them."""
    candidate, champion = seen.candidate, seen.champion
    if not candidate.told or not champion.told:
        return Check("feedback", "advance", "no true labels of both came back")
    wrong = (candidate.wrong, candidate.told, champion.wrong, champion.told)
    return _weighed(
        "feedback",
        lambda: float(exceeds(*wrong, margin=margin)),
        needed,
        looks=_share(*wrong[:2]) > _share(*wrong[2:]) + margin,
        words=f"wrong by the true labels that came back: {_count(*wrong[:2])} at the candidate, "
        f"{_count(*wrong[2:])} at the champion",
    )


def _of_replay(replayed: Replayed, analysis: AnalysisSettings, needed: float) -> Check:
    """Weigh rightness where labels are known, else whether both say the same."""
    if replayed.labelled:
        lost, gained = replayed.lost, replayed.gained
        return _weighed(
            "accuracy",
            lambda: float(above(lost, lost + gained, 0.5)),
            needed,
            looks=lost - gained > analysis.max_accuracy_loss * replayed.labelled,
            words=f"of {replayed.labelled:,} labelled pictures the candidate names "
            f"{replayed.candidate_right:,} rightly, the champion {replayed.champion_right:,}; "
            f"{lost} only the champion, {gained} only the candidate",
        )
    differing = replayed.pictures - replayed.agreeing
    allowed = 1 - analysis.min_agreement
    return _weighed(
        "agreement",
        lambda: float(above(differing, replayed.pictures, allowed)),
        needed,
        looks=_share(differing, replayed.pictures) > allowed,
        words=f"both name {_count(replayed.agreeing, replayed.pictures)} replayed pictures the "
        f"same; {analysis.min_agreement:.0%} are asked for",
    )


def _weighed(
    name: str, evidence: Callable[[], float], needed: float, *, looks: bool, words: str
) -> Check:
    """Return the check of something; where it `looks` worse, the log e-value tells how surely."""
    if not looks:
        return Check(name, "advance", f"{words}: within the margin")
    found = evidence()
    shown = f"e-value {math.exp(found):.2g}" if found < 50 else "e-value beyond 1e21"
    if found < math.log(needed):
        return Check(name, "hold", f"{words}: looks worse, {shown} of {needed:,.0f}")
    return Check(name, "abort", f"{words}: worse, {shown} of {needed:,.0f}")


def _of_both(seen: Seen, candidate: int, champion: int) -> str:
    return (
        f"{_count(candidate, seen.candidate.requests)} at the candidate, "
        f"{_count(champion, seen.champion.requests)} at the champion"
    )


def _bracket(histogram: Histogram, quantile: float) -> tuple[float, float]:
    """Return the bounds that a quantile lies between, seconds."""
    low = 0.0
    for bound, count in sorted(histogram.at_most.items()):
        if count >= quantile * histogram.total:
            return low, bound
        low = bound
    return low, math.inf


def _between(bracket: tuple[float, float]) -> str:
    low, high = bracket
    return f"over {low:g} s" if math.isinf(high) else f"{low * 1e3:g}–{high * 1e3:g} ms"


def _share(count: float, of: float) -> float:
    return count / of if of else 0.0


def _count(count: float, of: float) -> str:
    return f"{count:,.0f} of {of:,.0f} ({_share(count, of):.2%})"
