"""How often a rollout errs: simulated candidates, judged by the code that judges real ones.

    python -m benchmarks.rollout_errors [ROLLOUTS]

Each rollout goes by the default settings, at 20 requests a second unless its name says otherwise.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from linnet.rollout.judge import Verdict, judge
from linnet.rollout.seen import Answered, Histogram, Seen
from linnet.rollout.settings import RolloutSettings

SECONDS = (
    *(ms / 1000 for ms in (1, 1.5, 2.5, 3.5, 5, 7, 10, 15, 25, 35, 50, 70)),
    *(ms / 1000 for ms in (100, 150, 250, 350, 500, 700)),
    *(1.0, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 15.0, 30.0),
)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
CLASSES = tuple(f"class {number}" for number in range(10))
EVEN = (0.1,) * 10
SURE = (0.0, 0.0, 0.0, 0.0, 0.02, 0.03, 0.05, 0.1, 0.2, 0.2, 0.2, 0.2)
UNSURE = (0.0, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0)
MEDIAN_S = 0.012
LATE = ("time",)

Weather = Callable[[float], float]
Draws = np.random.Generator


def calm(_second: float) -> float:
    """Return no errors from without."""
    return 0.0


def outages(second: float) -> float:
    """Return the share of errors that befalls both sides: 10 %, for 20 s of every 2 minutes."""
    return 0.1 if second % 120.0 < 20.0 else 0.0


@dataclass(frozen=True)
class Server:
    """How a release answers. Times are log-normal, and one in a hundred takes ten times as long."""

    errors: float = 0.0
    refused: float = 0.0
    slower: float = 1.0
    classes: tuple[float, ...] = EVEN
    confidence: tuple[float, ...] = SURE


@cache
def times(slower: float) -> NDArray[np.float64]:
    """Return the chance of each bucket of the histogram, the one without a bound included."""

    def usual(seconds: float) -> float:
        return 0.5 * math.erfc(-math.log(seconds / (MEDIAN_S * slower)) / 0.5 / math.sqrt(2))

    below = [0.99 * usual(bound) + 0.01 * usual(bound / 10) for bound in SECONDS]
    return np.diff([*below, 1.0], prepend=0.0)


@dataclass(frozen=True)
class Case:
    """A candidate beside a champion, at a number of requests a second."""

    name: str
    candidate: Server
    champion: Server = Server(errors=0.001)
    weather: Weather = calm
    rate: float = 20.0


@dataclass
class Tally:
    """What one side answered within a window so far."""

    server: Server
    requests: int = 0
    errors: int = 0
    refused: int = 0
    times: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SECONDS) + 1, np.int64))
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    confidence: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(CONFIDENCE), np.int64)
    )

    def answer(self, requests: int, errors: float, draws: Draws) -> None:
        """Answer more requests, with errors from without on top of the server's own."""
        failed = int(draws.binomial(requests, 1 - (1 - self.server.errors) * (1 - errors)))
        refused = int(draws.binomial(requests - failed, self.server.refused))
        named = requests - failed - refused
        self.requests += requests
        self.errors += failed
        self.refused += refused
        self.times += draws.multinomial(requests, times(self.server.slower))
        self.classes += draws.multinomial(named, self.server.classes)
        self.confidence += draws.multinomial(named, self.server.confidence)

    def answered(self) -> Answered:
        """Return what the judge sees of it."""
        return Answered(
            requests=self.requests,
            errors=self.errors,
            refused=self.refused,
            seconds=_histogram(SECONDS, self.times),
            labels=dict(zip(CLASSES, self.classes.tolist(), strict=True)),
            confidence=_histogram(CONFIDENCE, np.append(self.confidence, 0)),
            ready_pods=1,
            pods=1,
        )


@dataclass(frozen=True)
class Ended:
    """How one rollout ended and at which weight, after how much, and by which checks."""

    verdict: Verdict
    weight: int
    requests: int
    seconds: float
    blamed: tuple[str, ...]


def simulate(case: Case, settings: RolloutSettings, draws: Draws) -> Ended:
    """Take one rollout from its first step to its end."""
    weight, total_seconds, requests = settings.steps[0], 0.0, 0
    before = Answered()
    while True:
        champion, candidate, seconds = Tally(case.champion), Tally(case.candidate), 0.0
        while True:
            seconds += settings.analysis.poll_s
            total_seconds += settings.analysis.poll_s
            came = int(draws.poisson(case.rate * settings.analysis.poll_s))
            to_candidate = int(draws.binomial(came, weight / 100))
            errors = case.weather(total_seconds)
            candidate.answer(to_candidate, errors, draws)
            champion.answer(came - to_candidate, errors, draws)
            requests += to_candidate
            baseline = before if weight == 100 else champion.answered()
            seen = Seen(baseline, candidate.answered(), seconds, total_seconds=total_seconds)
            judgement = judge(weight, seen, settings)
            if judgement.verdict != "hold":
                break
        if judgement.verdict != "advance":
            named = [check.name for check in judgement.checks if check.verdict == "abort"]
            late = judgement.verdict == "abort" and not named
            blamed = LATE if late else tuple(named)
            return Ended(judgement.verdict, weight, requests, total_seconds, blamed)
        before, weight = baseline, judgement.weight


def _histogram(bounds: tuple[float, ...], counts: NDArray[np.int64]) -> Histogram:
    below = np.cumsum(counts).tolist()
    return Histogram(dict(zip((*bounds, math.inf), below, strict=True)))


GOOD = (
    Case("both 0 % errors", Server(), Server()),
    Case("both 0.1 % errors", Server(errors=0.001)),
    Case("both 1 % errors", Server(errors=0.01), Server(errors=0.01)),
    Case("no errors, champion 20 %", Server(), Server(errors=0.2)),
    Case(
        "0.1 % errors as the champion, 1.4 × slower, two classes shifted by 3 %",
        Server(errors=0.001, slower=1.4, classes=(0.13, 0.07, *EVEN[2:])),
    ),
    Case("both 0 % errors, and 10 % for 20 s of every 2 minutes", Server(), Server(), outages),
)
SLOW = (
    Case("both 1 % errors, 2 requests a second", Server(0.01), Server(0.01), rate=2.0),
    Case("errors right at the margin: 0.6 %, champion 0.1 %", Server(errors=0.006)),
)
BAD = (
    *(
        Case(f"{errors:.0%} errors, champion {champion:.1%}", Server(errors), Server(champion))
        for champion in (0.001, 0.01)
        for errors in (0.05, 0.2, 0.5)
    ),
    Case("2% errors, champion 0.1%", Server(0.02)),
    Case("5% errors, champion 0.1%, 2 requests a second", Server(0.05), rate=2.0),
    Case("says to 30 % that it is full", Server(0.001, refused=0.3)),
    Case("3 × slower", Server(0.001, slower=3.0)),
    Case("10 × slower", Server(0.001, slower=10.0)),
    Case("wrong: always the same class", Server(0.001, classes=(1.0, *(0.0,) * 9))),
    Case("wrong: one class half of the time", Server(0.001, classes=(0.5, *(0.5 / 9,) * 9))),
    Case("wrong: right classes, but unsure", Server(0.001, confidence=UNSURE)),
)


def run(case: Case, rollouts: int, *, seed: int = 42) -> list[Ended]:
    """Return how each of many rollouts of a case ended."""
    draws = np.random.default_rng(seed)
    return [simulate(case, RolloutSettings(), draws) for _ in range(rollouts)]


def good_row(case: Case, ended: list[Ended]) -> str:
    """Return the table's row of a candidate that should get through."""
    late = sum(one.blamed == LATE for one in ended)
    aborted = [one for one in ended if one.verdict == "abort" and one.blamed != LATE]
    alone = sum(one.weight == 100 for one in aborted)
    minutes = np.percentile([one.seconds / 60 for one in ended], (50, 95))
    return (
        f"| {case.name} | {len(ended):,} | {len(aborted) - alone} | {alone} | {late} "
        f"| {minutes[0]:.1f}, {minutes[1]:.1f} |"
    )


def bad_row(case: Case, ended: list[Ended]) -> str:
    """Return the table's row of a candidate that should be stopped."""
    stopped = [one for one in ended if one.verdict == "abort" and one.blamed != LATE]
    requests = np.percentile([one.requests for one in stopped], (50, 95))
    seconds = np.percentile([one.seconds for one in stopped], (50, 95))
    by = ", ".join(name for name, _ in Counter(one.blamed[0] for one in stopped).most_common())
    return (
        f"| {case.name} | {len(stopped)} of {len(ended)} | {requests[0]:,.0f}, {requests[1]:,.0f} "
        f"| {seconds[0]:,.0f}, {seconds[1]:,.0f} | {by} |"
    )


def main() -> None:
    rollouts = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(
        "| candidate | rollouts | aborted beside the champion | aborted alone at 100 % "
        "| out of time | minutes: median, 95 % |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for case in (*GOOD, *SLOW):
        ended = run(case, rollouts // 10 if case in SLOW else rollouts)
        print(good_row(case, ended), flush=True)
    print("\n| candidate | stopped | its requests until then: median, 95 % | seconds | by |")
    print("| --- | --- | --- | --- | --- |")
    for case in BAD:
        print(bad_row(case, run(case, rollouts // 10)), flush=True)


if __name__ == "__main__":
    main()
