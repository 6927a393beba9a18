"""Whether a rollout goes on: a pure decision on what was seen of champion and candidate."""

from dataclasses import dataclass
from typing import Literal

from linnet.rollout.seen import Seen
from linnet.rollout.settings import RolloutSettings

Verdict = Literal["advance", "hold", "abort", "done"]


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
    """Return what follows from the evidence at a weight; 0 is the dark start."""
    raise NotImplementedError
