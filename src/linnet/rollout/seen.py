"""What was seen of champion and candidate over a window of time: the judge's whole input."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Histogram:
    """Counts of values at most each bound, cumulative as Prometheus has them, infinity included."""

    at_most: dict[float, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return how many values were counted."""
        return self.at_most.get(math.inf, 0)


@dataclass(frozen=True)
class Answered:
    """One side of the comparison, over the window.

    `errors` are the server's fault (5xx; gRPC's INTERNAL and the like), `refused` are answers that
    decline (4xx, above all 429 when it is full); both are part of `requests`. `labels` counts
    pictures by predicted class, classes never predicted included. `told` are pictures whose true
    label came back, `wrong` those of them that were named another. `restarts` are those within the
    window, `ready_pods` of `pods` answer now.
    """

    requests: int = 0
    errors: int = 0
    refused: int = 0
    seconds: Histogram = Histogram()
    labels: dict[str, int] = field(default_factory=dict)
    confidence: Histogram = Histogram()
    told: int = 0
    wrong: int = 0
    restarts: int = 0
    ready_pods: int = 0
    pods: int = 0


@dataclass(frozen=True)
class Replayed:
    """Pictures that were sent to both, outside the traffic.

    Of `pictures`, both named `agreeing` the same. Of the `labelled` among them `both_right` were
    named rightly by both, `lost` by the champion alone, `gained` by the candidate alone.
    """

    pictures: int
    agreeing: int
    labelled: int = 0
    both_right: int = 0
    lost: int = 0
    gained: int = 0

    @property
    def champion_right(self) -> int:
        """Return how many labelled pictures the champion names rightly."""
        return self.both_right + self.lost

    @property
    def candidate_right(self) -> int:
        """Return how many labelled pictures the candidate names rightly."""
        return self.both_right + self.gained


@dataclass(frozen=True)
class Seen:
    """Champion and candidate over the same window, which began when this weight had settled.

    At 100 % the champion gets no traffic: there `champion` is what it did at the step before.
    `seconds` is the window's length, `total_seconds` the time since the rollout began.
    """

    champion: Answered
    candidate: Answered
    seconds: float
    replayed: Replayed | None = None
    total_seconds: float = 0.0
